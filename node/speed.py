"""How fast this device is: known from the disk, where it was measured before on this hardware and software."""

import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from ..mesh.errors import LeptonError
from .files import write_whole
from .planning import SpeedRecord

_TIMEOUT_S: Final = 60.0  # a small and busy device loads torch for seconds
_LIST_MAX: Final = 16  # kinds of hardware that are remembered: homes may be on a shared disk

log = logging.getLogger(__name__)


def measure_speed() -> SpeedRecord:
    """Measure, for about half a second after torch is loaded; call it in a thread.

    In a process of its own where that works: its memory is given back, and a node that is idle never loads torch.
    """
    command = [sys.executable, "-m", f"{__package__}.measuring"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=True)
        return msgspec.json.decode(done.stdout, type=SpeedRecord)
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as error:
        log.info("the speed of this device is measured in its own process: %s", error)
        from .measuring import measured

        return measured()


# -- on the disk ------------------------------------------------------------------------------------------------------


def hardware() -> str:
    """Name what speed depends on: processor, cores, threads, versions, and whether there is a compiled kernel."""
    kernel = any((Path(__file__).parent / "kernels").glob("_native.*"))
    parts = [_processor(), os.cpu_count(), os.environ.get("OMP_NUM_THREADS"), version("torch"), kernel]
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model", "CPU part"))]
    can = [line.partition(":")[2].strip() for line in lines if line.startswith(("flags", "Features"))]
    return " ".join([platform.machine(), *(named[:1] or [platform.processor()]), *can[:1]])


def cache_file() -> Path:
    """Return where all nodes of this user keep what was measured on this machine."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "lepton" / "speed.json"


def known_speed(path: Path) -> SpeedRecord | None:
    """Return what was measured here before; None when nothing was, or it cannot be read."""
    return _read(path).get(hardware())


def load_or_measure(path: Path) -> SpeedRecord:
    """Return what was measured here before, or measure and keep it where that is possible."""
    known = known_speed(path)
    if known is not None:
        return known
    measured = measure_speed()
    others = list(_read(path).items())[-_LIST_MAX + 1 :]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, msgspec.json.encode({**dict(others), hardware(): measured}))
    except (OSError, LeptonError) as error:
        log.info("the speed of this device is measured at each start: cannot write %s: %s", path, error)
    return measured


def _read(path: Path) -> dict[str, SpeedRecord]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, SpeedRecord])
    except (OSError, msgspec.DecodeError):
        return {}
