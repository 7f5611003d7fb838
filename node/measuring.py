"""A short benchmark of a stage's arithmetic on this device.

A step through a stage reads all its weights once, so seconds per byte at each precision, and what a layer costs however
small it is, foretell any stage. It takes about a third of a second of one core.

A start is a busy moment. So time is that which the processor gave this thread, the least of several passes through all
figures counts, and while the figures cannot be true together it goes on.
"""

import copy
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec
import torch

from .deployments import Precision
from .kernels import Packed, pack
from .planning import BATCH, PRECISIONS, Speed, SpeedRecord
from .plausible import bounded, coarse

_SHAPE: Final = (1024, 1024)  # of one matrix: 1 M weights, packed in some 10 ms
_SWEEP_BYTES: Final = 24 * 1024 * 1024  # read in one go: more than most caches hold, so that memory is measured
_PASSES: Final = 5  # each of 20 to 30 ms with the compiled kernel; the least of 3 differs by a tenth from that of 30
_PASSES_SLOW: Final = 2  # where these take longer than
_CPU_S: Final = 0.3
_PASSES_MAX: Final = 10  # while figures contradict each other
_PRODUCTS_PER_LAYER: Final = 5  # joined queries, keys and values; output; joined gate and up; down; and one to spare
_SMALL_OPERATIONS: Final = 20  # of a layer besides: norms, rotations, attention over a short past
_RESOLUTION_S: Final = 1e-5  # of a clock that is of use here; that of Windows has 16 ms
_COUNTS_THREADS: Final = time.get_clock_info("thread_time").resolution <= _RESOLUTION_S

Least = dict[tuple[Precision, int], float]  # nanoseconds for a MiB, by precision and sessions in the step


def measured() -> SpeedRecord:
    """Measure, for about a third of a second; call it in a thread."""
    weight = torch.randn(_SHAPE, generator=torch.Generator().manual_seed(0))
    layer_ns, least, began = _layer_ns(), Least(), time.thread_time()
    with torch.inference_mode():
        packed = [pack(weight, precision) for precision in PRECISIONS]
        for done in range(1, _PASSES_MAX + 1):
            for matrix in packed:
                _measure(matrix, least)
            found = _record(least, layer_ns)
            slow = time.thread_time() - began > _CPU_S
            if done >= (_PASSES_SLOW if slow else _PASSES) and bounded(found) == found:
                break
    return found


def _record(least: Least, layer_ns: int) -> SpeedRecord:
    def speed(precision: Precision) -> Speed:
        one, many = coarse(least[precision, 1]), coarse(least[precision, BATCH])
        return Speed(mib_ns=one, mib_many_ns=max(one, many), layer_ns=layer_ns)

    return SpeedRecord(speeds={precision: speed(precision) for precision in PRECISIONS})


def _measure(first: Packed, least: Least) -> None:
    """Sweep once through copies of a matrix, and once more for many sessions."""
    matrices = [first, *(copy.deepcopy(first) for _ in range(_SWEEP_BYTES // first.size_bytes))]
    mib = sum(matrix.size_bytes for matrix in matrices) / 2**20
    for rows in (1, BATCH):
        took = _quickest_ns(partial(_sweep, matrices, rows), warm=partial(_sweep, matrices[:1], rows)) / mib
        key = (first.precision, rows)
        least[key] = min(took, least.get(key, took))


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
        return coarse(_quickest_ns(layer, warm=layer, repeats=20))


def _quickest_ns(work: Callable[[], None], *, warm: Callable[[], None], repeats: int = 1) -> float:
    warm()  # the first time finds nothing ready
    took = []
    for _ in range(repeats):
        began = _clock_ns()
        work()
        took.append(_clock_ns() - began)
    return float(min(took))


def _clock_ns() -> int:
    """Time that this thread was computing; where the system counts it too coarsely, time that passed."""
    return time.thread_time_ns() if _COUNTS_THREADS else time.perf_counter_ns()


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(measured()))
