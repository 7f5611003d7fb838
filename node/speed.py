"""How fast this device is at a stage's arithmetic: a short benchmark, once for each kind of hardware and software.

A step through a stage reads all its weights once, so seconds per byte at each precision, and what a layer costs however
small it is, foretell any stage. It takes about half a second of one core, and is kept on the disk.
"""

import copy
import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import torch

from ..mesh.errors import LeptonError
from .deployments import Precision
from .files import write_whole
from .kernels import Packed, available, pack
from .planning import BATCH, PRECISIONS, Speed, SpeedRecord

_SHAPE: Final = (1024, 1024)  # of one matrix: 1 M weights, packed in some 20 ms
_SWEEP_BYTES: Final = 24 * 1024 * 1024  # read in one go: more than most caches hold, so that memory is measured
_REPEATS: Final = 2  # of which the quickest counts: whatever else runs only makes it slower
_PRODUCTS_PER_LAYER: Final = 5  # joined queries, keys and values; output; joined gate and up; down; and one to spare
_SMALL_OPERATIONS: Final = 20  # of a layer besides: norms, rotations, attention over a short past
_LIST_MAX: Final = 16  # kinds of hardware that are remembered: homes may be on a shared disk

log = logging.getLogger(__name__)


def coarse(ns: float) -> int:
    """Round to two digits, so that equal devices say equal things and a busy minute changes little."""
    return int(float(f"{max(1.0, ns):.1e}"))


def measure_speed() -> SpeedRecord:
    """Measure. Runs for about half a second; call it in a thread."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(_SHAPE, generator=generator)
    layer_ns = _layer_ns()
    with torch.inference_mode():
        return SpeedRecord(speeds={precision: _speed(weight, precision, layer_ns) for precision in PRECISIONS})


def _speed(weight: torch.Tensor, precision: Precision, layer_ns: int) -> Speed:
    first = pack(weight, precision)
    matrices = [first, *(copy.deepcopy(first) for _ in range(_SWEEP_BYTES // first.size_bytes))]
    mib = sum(matrix.size_bytes for matrix in matrices) / 2**20
    one, many = (_quickest_ns(partial(_sweep, matrices, rows)) / mib for rows in (1, BATCH))
    return Speed(mib_ns=coarse(one), mib_many_ns=coarse(many), layer_ns=layer_ns)


def _sweep(matrices: list[Packed], rows: int) -> None:
    x, threads = torch.ones(rows, _SHAPE[1]), torch.get_num_threads()  # as the stages' engine
    for matrix in matrices:
        matrix.product(x, threads=threads)


def _layer_ns() -> int:
    """What a layer takes when its matrices are next to nothing."""
    small = pack(torch.ones(32, 32), "float32")
    x, norm = torch.ones(1, 32), torch.ones(32)

    def layer() -> None:
        for _ in range(_PRODUCTS_PER_LAYER):
            small.product(x)
        for _ in range(_SMALL_OPERATIONS):
            torch.mul(x, norm)

    with torch.inference_mode():
        return coarse(_quickest_ns(layer, repeats=20))


def _quickest_ns(work: Callable[[], None], *, repeats: int = _REPEATS) -> float:
    work()  # the first time finds nothing ready
    took = []
    for _ in range(repeats):
        began = time.perf_counter_ns()
        work()
        took.append(time.perf_counter_ns() - began)
    return float(min(took))


# -- on the disk ------------------------------------------------------------------------------------------------------


def hardware() -> str:
    """Name what speed depends on: processor, cores, versions, and whether the compiled kernel runs."""
    kernel = available()
    parts = [_processor(), os.cpu_count(), torch.__version__, torch.get_num_threads(), kernel.native, kernel.width]
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model", "CPU part"))]
    return " ".join([platform.machine(), *(named[:1] or [platform.processor()])])


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
