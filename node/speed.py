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
from ..mesh.messages import Natural
from .files import write_whole
from .planning import SpeedRecord
from .plausible import bounded, settled

_TIMEOUT_S: Final = 60.0  # a small and busy device loads torch for seconds
_LASTS_S: Final = 7 * 24 * 3600  # a governor, a cooler or a firmware may be another by then
_LIST_MAX: Final = 16  # kinds of hardware that are remembered: homes may be on a shared disk

log = logging.getLogger(__name__)


class Kept(SpeedRecord, frozen=True, kw_only=True):
    """A record on the disk, and when it was measured, in seconds of the wall clock."""

    measured_at_s: Natural = 0


def measure_speed() -> SpeedRecord:
    """Measure, for about a third of a second after torch is loaded; call it in a thread.

    In a process of its own where that works: its memory is given back, and a node that is idle never loads torch.
    """
    command = [sys.executable, "-m", f"{__package__}.measuring"]
    quiet = {**os.environ, "OMP_WAIT_POLICY": "passive"}  # else torch's threads spin for seconds on busy cores
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=True, env=quiet)
        return msgspec.json.decode(done.stdout, type=SpeedRecord)
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as error:
        log.info("the speed of this device is measured in its own process: %s", error)
        from .measuring import measured

        return measured()


# -- on the disk ------------------------------------------------------------------------------------------------------


def hardware() -> str:
    """Name what speed depends on: processor, cores, threads, versions, and which build of the compiled kernel."""
    builds = sorted((Path(__file__).parent / "kernels").glob("_native.*"))
    kernel = [hashlib.sha256(path.read_bytes()).hexdigest() for path in builds]
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


def kept_speed(path: Path) -> Kept | None:
    """Return what was measured here before, and when; None when nothing was, or it cannot be read."""
    return _read(path).get(hardware())


def known_speed(path: Path) -> SpeedRecord | None:
    """Return what was measured here before, however long ago; None when nothing was, or it cannot be read."""
    known = kept_speed(path)
    return SpeedRecord(speeds=known.speeds) if known is not None else None


def load_or_measure(path: Path, now_s: float) -> SpeedRecord:
    """Return what was measured here in the last week, or measure and keep it where that is possible.

    Figures that cannot be true together are brought into bounds, and measured again at the next start.
    """
    known = _read(path).get(hardware())
    if known is not None and abs(now_s - known.measured_at_s) < _LASTS_S:
        return SpeedRecord(speeds=known.speeds)
    measured = measure_speed()
    found = bounded(measured)
    if known is not None:
        found = settled(known, found)
    _write(path, Kept(speeds=found.speeds, measured_at_s=int(now_s) if bounded(measured) == measured else 0))
    return found


def _write(path: Path, kept: Kept) -> None:
    others = {name: one for name, one in _read(path).items() if name != hardware()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, msgspec.json.encode({**dict(list(others.items())[-_LIST_MAX + 1 :]), hardware(): kept}))
    except (OSError, LeptonError) as error:
        log.info("the speed of this device is measured at each start: cannot write %s: %s", path, error)


def _read(path: Path) -> dict[str, Kept]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Kept])
    except (OSError, msgspec.DecodeError):
        return {}
