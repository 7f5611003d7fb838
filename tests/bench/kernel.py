"""The products of one step of a model of 134 million parameters: our kernel and our torch beside ``F.linear``.

Run ``python -m tests.bench.kernel`` from the root of the project (JSON=FILE writes the ratios as flat JSON, ROUNDS
changes the effort; numbers as arguments are other sizes of a batch). Random weights: 12 layers of width 768 with an
inner width of 2,048 and 32,000 words, as a Llama; attention and norms are left out. One thread and its CPU time, which
other work on the machine disturbs less. What is compared runs in turns, figures are medians, and a ratio above 1 says
that we are faster than ``F.linear`` in bfloat16.

Aims: with a batch of 1 int8 three times as fast as that, int4 faster still, and a batch of 8 at 2.5 times the tokens of
a batch of 1.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from lepton.node.kernels import Precision, available, pack
from torch.nn import functional as F

ROUNDS = int(os.environ.get("ROUNDS", "9"))
BATCHES = [1, 4, 8, 64]
WIDTH, INNER, LAYERS, WORDS = 768, 2048, 12, 32000
LAYER = [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (2 * INNER, WIDTH), (WIDTH, INNER)]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
PEER = "F.linear bfloat16"

Step = Callable[[int], object]


def weights() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape) / 30 for shape in [*LAYER * LAYERS, (WORDS, WIDTH)]]


def steps() -> dict[str, Step]:
    """What is compared: functions that do all products of a step with so many rows."""
    found: dict[str, Step] = {}
    plain = weights()
    for dtype in (torch.float32, torch.bfloat16):
        found[f"F.linear {str(dtype).removeprefix('torch.')}"] = stock([weight.to(dtype) for weight in plain], dtype)
    for native in (True, False):
        for precision in PRECISIONS:
            if not native or available().native:
                found[f"{'kernel' if native else 'torch'} {precision}"] = ours(plain, precision, native=native)
    return found


def stock(matrices: list[torch.Tensor], dtype: torch.dtype) -> Step:
    def step(rows: int) -> None:
        for weight in matrices:
            F.linear(inputs(rows, weight.shape[1]).to(dtype), weight)

    return step


def ours(plain: list[torch.Tensor], precision: Precision, *, native: bool) -> Step:
    matrices = [pack(weight, precision, native=native) for weight in plain]

    def step(rows: int) -> None:
        for packed in matrices:
            packed.product(inputs(rows, packed.inputs))

    return step


def inputs(rows: int, width: int) -> torch.Tensor:
    return INPUTS[:rows, :width]


INPUTS = torch.randn(128, INNER)


def measure(compared: dict[str, Step], rows: int) -> dict[str, float]:
    """Median seconds of CPU of a step."""
    taken: dict[str, list[float]] = {name: [] for name in compared}
    for _ in range(ROUNDS):
        for name, step in compared.items():
            begin = time.thread_time()
            step(rows)
            taken[name].append(time.thread_time() - begin)
    return {name: statistics.median(times[1:] or times) for name, times in taken.items()}  # the first one warms


def main(batches: list[int]) -> None:
    compared = steps()
    medians = {rows: measure(compared, rows) for rows in batches}
    print(f"tokens per second of CPU (and times {PEER}), by batch; {available()}")  # noqa: T201
    print(f"{'':>18}" + "".join(f"{rows:>18}" for rows in batches))  # noqa: T201
    figures: dict[str, float] = {}
    for name in compared:
        ratios = {rows: medians[rows][PEER] / medians[rows][name] for rows in batches}
        cells = "".join(f"{rows / medians[rows][name]:11.0f} ({ratios[rows]:4.2f})" for rows in batches)
        print(f"{name:>18}{cells}")  # noqa: T201
        key = name.replace(" ", "_").replace(".", "_")
        figures |= {f"{key}_batch{rows}_vs_bfloat16": ratio for rows, ratio in ratios.items()}
        if {1, 8} <= set(batches):
            figures[f"{key}_batch8_vs_batch1"] = 8 * medians[1][name] / medians[8][name]
    if path := os.environ.get("JSON"):
        rounded = {key: round(value, 3) for key, value in figures.items()}
        Path(path).write_text(json.dumps(rounded, indent=1) + "\n")


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or BATCHES)
