"""No target rots: each runs over its seeds and over damaged copies of them, the same in every run, without atheris."""

import importlib
import random
from pathlib import Path
from typing import Any

import pytest

TARGETS = sorted(path.stem for path in Path(__file__).parent.glob("fuzz_*.py"))
INPUTS = 100


def load(name: str) -> Any:
    return importlib.import_module(f".{name}", __package__)


def damaged(seed: bytes, rng: random.Random) -> bytes:
    data = bytearray(seed)
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(data) + 1)
        data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_takes_valid_inputs_and_bears_the_rest(name: str) -> None:
    target, rng = load(name), random.Random(name)
    taken = [target.one(seed) for seed in target.SEEDS]
    assert any(taken), "no seed is valid any more"
    for _ in range(INPUTS):
        target.one(damaged(rng.choice(target.SEEDS), rng))
        target.one(rng.randbytes(rng.randrange(300)))


@pytest.mark.parametrize("name", TARGETS)
def test_any_input_at_all_is_an_input(name: str) -> None:
    target = load(name)
    for raw in (b"", b"\x00", b"\xff" * 100, bytes(5000)):
        target.one(raw)
