"""A short benchmark of a stage's arithmetic on this device.

A step through a stage reads all its weights once, so seconds per byte at each precision, and what a layer costs however
small it is, foretell any stage. It takes about half a second of one core.
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

_SHAPE: Final = (1024, 1024)  # of one matrix: 1 M weights, packed in some 20 ms
_SWEEP_BYTES: Final = 24 * 1024 * 1024  # read in one go: more than most caches hold, so that memory is measured
_REPEATS: Final = 2  # of which the quickest counts: whatever else runs only makes it slower
_PRODUCTS_PER_LAYER: Final = 5  # joined queries, keys and values; output; joined gate and up; down; and one to spare
_SMALL_OPERATIONS: Final = 20  # of a layer besides: norms, rotations, attention over a short past


def coarse(ns: float) -> int:
    """Round to two digits, so that equal devices say equal things and a busy minute changes little."""
    return int(float(f"{max(1.0, ns):.1e}"))


def measured() -> SpeedRecord:
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


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(measured()))
