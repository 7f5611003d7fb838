"""A layer in one call of the compiled kernel: what a layer is, and the same bits in any batch and in any pieces."""

from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lepton.mesh.errors import UsageError
from lepton.node.kernels import Precision, available, native
from lepton.node.kernels.block import BlockBatch, BlockShape, BlockWeights, FusedBlock
from lepton.node.kernels.native import NativePacked

pytestmark = pytest.mark.skipif(not available().native, reason="no compiled kernel here")

Float = npt.NDArray[np.float32]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
WIDTHS = [width for width in native.WIDTHS if available().native and native.library().lepton_runs(width)]
LLAMA = BlockShape(width=48, inner=72, heads=4, shared=2, head_width=12, epsilon=1e-5)
QWEN = replace(LLAMA, head_width=80, window=5, inner=33)
SHAPES = {"llama": LLAMA, "qwen": QWEN}
PAGES = {LLAMA: 4, QWEN: 64}  # positions: so few that sessions go over many pages, and what the kernel likes best


def draw(seed: int, *shape: int) -> Float:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def make_weights(shape: BlockShape, precision: Precision = "float32", width: int = 0) -> BlockWeights:
    """A Llama has neither biases nor norms of heads; what is called a Qwen here has all that any has."""
    attended = shape.heads * shape.head_width
    outputs = {"qkv": attended + 2 * shape.shared * shape.head_width, "out": shape.width}
    outputs |= {"gate_up": 2 * shape.inner, "down": shape.width}
    inputs = {"qkv": shape.width, "out": attended, "gate_up": shape.width, "down": shape.inner}
    parts: dict[str, Any] = {
        name: NativePacked(torch.from_numpy(draw(n, outputs[name], inputs[name])) / 8, precision, width=width)
        for n, name in enumerate(inputs)
    }
    parts |= {"norm": draw(5, shape.width), "second_norm": draw(6, shape.width)}
    if shape is LLAMA:
        return BlockWeights(**parts)
    parts |= {"query_norm": draw(7, shape.head_width), "key_norm": draw(8, shape.head_width)}
    parts |= {f"{name}_bias": draw(10 + n, outputs[name]) for n, name in enumerate(outputs)}
    return BlockWeights(**parts)


@dataclass
class Session:
    """Pages of one session, in two layers of which the second is used, and what came out."""

    shape: BlockShape
    length: int = 0
    pages: list[Float] = field(default_factory=list)

    def reserve(self, count: int) -> None:
        positions = PAGES[self.shape]
        while len(self.pages) * positions < self.length + count:
            self.pages.append(np.full((2, 2, self.shape.shared, self.shape.head_width, positions), np.nan, np.float32))


def angles(shape: BlockShape, positions: npt.NDArray[np.int64]) -> tuple[Float, Float]:
    turns = positions[:, None] * 100.0 ** -np.linspace(0, 1, shape.head_width // 2)
    return np.cos(turns).astype(np.float32), np.sin(turns).astype(np.float32)


def run(block: FusedBlock, shape: BlockShape, pieces: list[tuple[Session, Float]], threads: int = 1) -> list[Float]:
    for session, x in pieces:
        session.reserve(len(x))
    counts, starts = [len(x) for _, x in pieces], [session.length for session, _ in pieces]
    positions = np.concatenate([np.arange(start, start + count) for start, count in zip(starts, counts, strict=True)])
    batch = BlockBatch(counts, starts, [session.pages for session, _ in pieces], *angles(shape, positions))
    y = np.concatenate([x for _, x in pieces])
    block.run(y, batch, threads=threads)
    for session, x in pieces:
        session.length += len(x)
    return np.split(y, np.cumsum(counts)[:-1])


def expected(shape: BlockShape, weights: BlockWeights, x: Float) -> npt.NDArray[np.float64]:
    """The layer in float64, all positions of one session at once."""

    def times(name: str, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        packed: NativePacked = getattr(weights, name)
        bias = getattr(weights, f"{name}_bias")
        product: npt.NDArray[np.float64] = x @ packed.rows(torch.arange(packed.outputs)).double().numpy().T
        return product if bias is None else product + bias

    def norm(x: npt.NDArray[np.float64], weight: Float | None) -> npt.NDArray[np.float64]:
        if weight is None:
            return x
        y: npt.NDArray[np.float64] = x / np.sqrt((x * x).mean(-1, keepdims=True) + shape.epsilon) * weight
        return y

    def turn(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        cos, sin = (each.astype(np.float64)[:, None] for each in angles(shape, np.arange(len(x))))
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)

    y = x.astype(np.float64)
    heads = times("qkv", norm(y, weights.norm)).reshape(len(x), -1, shape.head_width)
    q, k, v = np.split(heads, (shape.heads, shape.heads + shape.shared), axis=1)
    q, k = turn(norm(q, weights.query_norm)), turn(norm(k, weights.key_norm))
    k, v = (np.repeat(each, shape.heads // shape.shared, axis=1) for each in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(shape.head_width)
    far = np.subtract.outer(np.arange(len(x)), np.arange(len(x)))
    scores[:, (far < 0) | (far >= (shape.window or len(x)))] = -np.inf
    soft = np.exp(scores - scores.max(-1, keepdims=True))
    soft /= soft.sum(-1, keepdims=True)
    y = y + times("out", np.einsum("hqk,khd->qhd", soft, v).reshape(len(x), -1))
    gate, up = np.split(times("gate_up", norm(y, weights.second_norm)), 2, axis=-1)
    with np.errstate(over="ignore"):
        return y + times("down", gate / (1 + np.exp(-gate)) * up)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", SHAPES)
def test_a_fused_block_is_a_layer(name: str, precision: Precision) -> None:
    shape = SHAPES[name]
    weights, x = make_weights(shape, precision), draw(20, 70, shape.width)
    (y,) = run(FusedBlock(shape, weights, index=1), shape, [(Session(shape), x)])
    np.testing.assert_allclose(y, expected(shape, weights, x), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("width", WIDTHS)
def test_all_instruction_sets_give_the_same_bits(width: int) -> None:
    for shape in SHAPES.values():
        x = draw(21, 9, shape.width) * 10
        best = run(FusedBlock(shape, make_weights(shape), index=1), shape, [(Session(shape), x)])[0]
        same = run(FusedBlock(shape, make_weights(shape, width=width), index=1), shape, [(Session(shape), x)])[0]
        assert np.array_equal(best, same)


BLOCKS = {name: FusedBlock(shape, make_weights(shape, "int8"), index=1) for name, shape in SHAPES.items() if WIDTHS}


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=40)  # of up to 67 runs each
@given(cuts=st.sets(st.integers(1, 66)), lengths=st.lists(st.integers(1, 9), max_size=3), threads=st.integers(1, 3))
def test_pieces_and_neighbours_do_not_change_a_bit(name: str, cuts: set[int], lengths: list[int], threads: int) -> None:
    shape, block = SHAPES[name], BLOCKS[name]
    x = draw(22, 67, shape.width)
    alone = Session(shape)
    one_by_one = np.concatenate([run(block, shape, [(alone, row[None])])[0] for row in x])
    session, found = Session(shape), []
    for number, piece in enumerate(np.split(x, sorted(cuts))):
        others = [(Session(shape), draw(30 + n, length, shape.width)) for n, length in enumerate(lengths)]
        others.insert(number % (len(others) + 1), (session, piece))
        found.append(run(block, shape, others, threads)[number % len(others)])
    assert np.array_equal(np.concatenate(found), one_by_one)
    kept, rebuilt = (np.stack([page[1] for page in each.pages]) for each in (alone, session))
    assert np.array_equal(kept, rebuilt, equal_nan=True)


def test_large_numbers_neither_overflow_nor_vanish() -> None:
    weights = make_weights(LLAMA)
    x = draw(23, 6, LLAMA.width) * np.float32(1e15)
    weights = replace(weights, second_norm=weights.second_norm * np.float32(1e3))
    (y,) = run(FusedBlock(LLAMA, weights, index=0), LLAMA, [(Session(LLAMA), x)])
    np.testing.assert_allclose(y, expected(LLAMA, weights, x), rtol=1e-4)


def test_what_does_not_fit_is_refused() -> None:
    weights, pages = make_weights(LLAMA), [np.zeros((2, 2, 2, 12, 4), np.float32)]
    block, cos = FusedBlock(LLAMA, weights, index=1), np.zeros((1, 6), np.float32)
    batch = BlockBatch([1], [0], [pages], cos, cos)
    with pytest.raises(UsageError, match="writable float32"):
        block.run(np.zeros((1, 47), np.float32), batch)
    with pytest.raises(UsageError, match="writable float32"):
        block.run(np.zeros((1, 96), np.float32)[:, ::2], batch)
    with pytest.raises(UsageError, match="no place for layer 2"):
        FusedBlock(LLAMA, weights, index=2).run(np.zeros((1, 48), np.float32), batch)
    with pytest.raises(UsageError, match="no room for 2 positions behind 3"):
        BlockBatch([2], [3], [pages], cos, cos)
    with pytest.raises(UsageError, match="has a count"):
        BlockBatch([1], [0], [], cos, cos)
    with pytest.raises(UsageError, match="all alike"):
        BlockBatch([1, 1], [0, 0], [[pages[0][:1]], pages], cos, cos)
    with pytest.raises(UsageError, match="all alike"):
        BlockBatch([1], [0], [[pages[0].astype(np.float64)]], cos, cos)
    with pytest.raises(UsageError, match="cos and sin"):
        BlockBatch([1], [0], [pages], cos, cos[:, :5])
    with pytest.raises(UsageError, match="gate_up is"):
        FusedBlock(replace(LLAMA, inner=71), weights, index=0)
    with pytest.raises(UsageError, match="packed alike, not as float32, int8"):
        FusedBlock(LLAMA, replace(weights, out=make_weights(LLAMA, "int8").out), index=0)
    with pytest.raises(UsageError, match="share 3 evenly"):
        FusedBlock(replace(LLAMA, shared=3), weights, index=0)
    with pytest.raises(UsageError, match="norm is"):
        FusedBlock(LLAMA, replace(weights, norm=np.zeros(47, np.float32)), index=0)
