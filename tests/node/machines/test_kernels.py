"""Products with packed weights: the same bits in any batch, near to the exact sum, and without a compiler too."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.errors import UsageError
from lepton.node.kernels import Matrix, Packed, Precision, arithmetic, available, native, pack
from lepton.node.kernels.grouping import grouped, halves_joined, halves_parted
from lepton.node.kernels.native import NativePacked
from lepton.node.kernels.plain import TILE, PlainPacked, tile_rows

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
WIDTHS = [width for width in native.WIDTHS if available().native and native.library().lepton_runs(width)]
KINDS = ["torch", *(f"native on {width}" for width in WIDTHS)]
compiled = pytest.mark.skipif(not WIDTHS, reason="no compiled kernel here")


def make(kind: str, weight: Matrix, precision: Precision) -> Packed:
    if kind == "torch":
        return PlainPacked(weight, precision)
    return NativePacked(weight, precision, width=int(kind.rpartition(" ")[2]))


def draw(seed: int, *shape: int) -> torch.Tensor:
    """Numbers of many magnitudes, so that another order of sums shows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.randn(shape, generator=generator).exp()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
@given(
    outputs=st.integers(1, 150),
    inputs=st.integers(1, 200),
    rows=st.integers(1, 21),
    threads=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
def test_a_row_of_a_product_does_not_depend_on_the_others(
    kind: str, precision: Precision, outputs: int, inputs: int, rows: int, threads: int, seed: int
) -> None:
    packed = make(kind, draw(seed, outputs, inputs), precision)
    x = draw(seed + 1, rows, inputs)
    alone = torch.cat([packed.product(row.unsqueeze(0)) for row in x])
    assert torch.equal(packed.product(x, threads=threads), alone)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(packed.product(x[order], threads=threads), alone[order])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_a_large_product_does_not_depend_on_the_others(kind: str, precision: Precision) -> None:
    packed = make(kind, draw(1, 1100, 513), precision)
    x = draw(2, 70, 513)
    alone = torch.cat([packed.product(row.unsqueeze(0)) for row in x])
    for pieces in ([70], [64, 6], [8, 13, 49], [1, 2, 3, 4, 60]):
        assert torch.equal(torch.cat([packed.product(piece) for piece in x.split(pieces)]), alone)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_product_is_near_to_the_exact_one_of_the_rows(kind: str, precision: Precision) -> None:
    packed = make(kind, draw(3, 90, 700), precision)
    x = draw(4, 5, 700)
    rows = packed.rows(torch.arange(90)).double()
    # Higham, Accuracy and Stability, (3.5): the error of a sum of n products is below n u / (1 - n u) times the sum of
    # magnitudes; 700 products one after another, u = 2^-24.
    bound = (x.double().abs() @ rows.abs().T) * 701 * 2.0**-24
    assert ((packed.product(x) - x.double() @ rows.T).abs() <= bound).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_weights_within_their_precision(kind: str, precision: Precision) -> None:
    weight = draw(5, 37, 75)
    rows = make(kind, weight, precision).rows(torch.arange(37))
    largest = torch.nn.functional.pad(weight, (0, 21)).unflatten(1, (-1, 32)).abs().amax(2).repeat_interleave(32, 1)
    # Half a step of the grid; with int4 the far end on the side of lesser magnitude is a whole step away.
    steps = {"float32": torch.zeros(()), "bfloat16": weight.abs() / 256, "int8": largest / 254, "int4": largest / 8}
    allowed = steps[precision] if precision in {"float32", "bfloat16"} else steps[precision][:, :75]
    assert ((rows - weight).abs() <= allowed * 1.01).all()


@compiled
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_compiled_kernel_sums_in_the_order_that_is_written_down(kind: str, precision: Precision) -> None:
    weight, x = draw(6, 18, 70), draw(7, 1, 70)
    packed = make(kind, weight, precision)
    plain = packed.rows(torch.arange(18))
    scaled = precision in {"int8", "int4"}
    integers, scales = plain, torch.ones(18, 3)
    if scaled:
        padded = torch.nn.functional.pad(weight, (0, 26))
        groups, scales = grouped(padded, 8 if precision == "int8" else 4)
        integers = groups.flatten(1)
    expected = [reference(integers[n, :70].tolist(), scales[n].tolist(), x[0].tolist()) for n in range(18)]
    assert packed.product(x)[0].tolist() == expected


def reference(weights: list[float], scales: list[float], x: list[float]) -> float:
    """The order that products.h promises, in exact arithmetic with one rounding a step."""
    total = Fraction(0)
    for group, scale in enumerate(scales):
        part = Fraction(0)
        for k in range(group * 32, min(group * 32 + 32, len(x))):
            part = rounded(Fraction(weights[k]) * Fraction(x[k]) + part)
        total = rounded(Fraction(scale) * part + total)
    return float(total)


def rounded(exact: Fraction) -> Fraction:
    """To the nearest float32; what is halfway between two does not come up here."""
    near = np.float32(float(exact))
    around = [near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))]
    return min((Fraction(float(each)) for each in around), key=lambda each: abs(each - exact))


@compiled
@pytest.mark.parametrize("precision", PRECISIONS)
def test_both_implementations_hold_the_same_weights_and_nearly_the_same_products(precision: Precision) -> None:
    weight, x = draw(8, 600, 100), draw(9, 12, 100)
    ours, theirs = pack(weight, precision, native=True), pack(weight, precision, native=False)
    ids = torch.tensor([599, 0, 17, 17])
    assert torch.equal(ours.rows(ids), theirs.rows(ids))
    torch.testing.assert_close(ours.product(x), theirs.product(x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_what_the_precision_says(kind: str) -> None:
    weight = torch.ones(512, 768)
    bits = {precision: make(kind, weight, precision).size_bytes * 8 / weight.numel() for precision in PRECISIONS}
    assert bits == {"float32": 32, "bfloat16": 16, "int8": 8.5, "int4": 4.5}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_strides_and_types_of_what_comes_do_not_matter(kind: str, precision: Precision) -> None:
    weight, x = draw(10, 48, 64).bfloat16(), draw(11, 5, 64)
    packed = make(kind, weight, precision)
    wide = torch.zeros(64, 10)
    wide[:, ::2] = x.T
    assert torch.equal(packed.product(wide[:, ::2].T), packed.product(x))
    assert torch.equal(make(kind, weight.float().T.contiguous().T, precision).product(x), packed.product(x))
    assert packed.product(x[:0]).shape == (0, 48)
    assert packed.rows(torch.arange(0)).shape == (0, 64)
    assert torch.equal(packed.rows(torch.tensor([3, 1], dtype=torch.int32)), packed.rows(torch.arange(4))[[3, 1]])


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_refused(kind: str) -> None:
    packed = make(kind, torch.ones(8, 40), "int8")
    for x in (torch.ones(2, 41), torch.ones(40), torch.ones(2, 40, dtype=torch.float64)):
        with pytest.raises(UsageError, match=r"takes float32 \(M, 40\)"):
            packed.product(x)
    for ids in (torch.tensor([8]), torch.tensor([-1]), torch.tensor([[1]])):
        with pytest.raises(UsageError, match="from 0 to 7"):
            packed.rows(ids)
    for weight in (torch.ones(3), torch.ones(3, 0), torch.ones(3, 3, dtype=torch.int32)):
        with pytest.raises(UsageError, match="weights"):
            make(kind, weight, "float32")
    with pytest.raises(UsageError, match="NaN or infinity"):
        make(kind, torch.tensor([[1.0, torch.inf]]), "int4")
    wrong: Any = "int3"
    with pytest.raises(UsageError, match="no precision 'int3'"):
        make(kind, torch.ones(3, 3), wrong)


class Sliced:
    """A matrix that is nowhere whole, and notes how much of it was asked for at once."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight
        self.shape, self.dtype = tuple(weight.shape), weight.dtype
        self.asked: list[int] = []

    def __getitem__(self, rows: slice) -> torch.Tensor:
        self.asked.append(self._weight[rows].nbytes)
        return self._weight[rows].clone()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_is_packed_slice_by_slice(kind: str, precision: Precision) -> None:
    weight, x = draw(16, 3000, 330), draw(17, 1, 330)
    sliced = Sliced(weight)
    packed, whole = make(kind, sliced, precision), make(kind, weight, precision)
    assert sum(sliced.asked) == weight.nbytes
    assert max(sliced.asked) <= 2**20
    assert torch.equal(packed.rows(torch.arange(3000)), whole.rows(torch.arange(3000)))
    assert torch.equal(packed.product(x), whole.product(x))


@pytest.mark.parametrize("bits", [8, 4])
def test_a_group_of_zeros_stays_zero(bits: int) -> None:
    integers, scales = grouped(torch.zeros(2, 64), bits)
    assert not integers.any()
    assert not scales.any()


def test_halves_of_bytes_come_back() -> None:
    integers = torch.arange(-8, 8, dtype=torch.int8).repeat(2).unflatten(0, (-1, 2))
    assert torch.equal(halves_parted(halves_joined(integers)), integers)


def test_a_tile_whose_rows_differ_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tile_rows(768, 512, torch.get_num_threads()) in {1, TILE}
    tile_rows.cache_clear()
    places = torch.arange(TILE, dtype=torch.float32).unsqueeze(1)
    monkeypatch.setattr("lepton.node.kernels.plain.F.linear", lambda x, weight: x @ weight.T + places)
    assert tile_rows(64, 16, 1) == 1
    tile_rows.cache_clear()


@compiled
def test_two_callers_at_once_share_the_threads_without_harm() -> None:
    packed, x = pack(draw(12, 500, 256), "int8", native=True), draw(13, 3, 256)
    expected = packed.product(x)
    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(lambda threads: packed.product(x, threads=threads), [1, 2, 3, 4] * 50))
    assert all(torch.equal(each, expected) for each in found)


@compiled
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_makes_its_own_threads() -> None:
    packed, x = pack(draw(14, 500, 64), "int4", native=True), draw(15, 2, 64)
    expected = packed.product(x, threads=2)
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a child that hangs ends, and not well
        os._exit(0 if torch.equal(packed.product(x, threads=2), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def _no_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    caches = (native.library, native.available)
    for each in caches:
        each.cache_clear()
    monkeypatch.setattr(native, "library_path", lambda: None)
    yield
    for each in caches:
        each.cache_clear()


@pytest.mark.usefixtures("_no_library")
def test_without_a_library_torch_computes_and_the_reason_is_told() -> None:
    here = native.available()
    assert not here.native
    assert "no C compiler" in here.reason
    assert pack(torch.ones(3, 3), "int8").kind == "torch"
    assert arithmetic().startswith(f"torch-{torch.__version__} ")
    with pytest.raises(UsageError, match="no C compiler"):
        pack(torch.ones(3, 3), "int8", native=True)


@pytest.mark.usefixtures("_no_library")
def test_a_library_that_is_none_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "_native.so").write_bytes(b"not a library")
    monkeypatch.setattr(native, "library_path", lambda: tmp_path / "_native.so")
    assert not native.available().native


@compiled
def test_all_compiled_kernels_have_one_name() -> None:
    assert arithmetic() == "compiled-1"


def test_a_processor_that_cannot_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        lepton_runs = staticmethod(lambda width: 0)

    monkeypatch.setattr(native, "library", Library)
    assert "neither AVX2" in native.available.__wrapped__().reason
