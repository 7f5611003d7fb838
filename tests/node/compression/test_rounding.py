"""Rounding by calibration beats rounding to the nearest, and what is stored is what is packed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.errors import UsageError
from lepton.node.compression.gptq import round_compensated, round_nearest, round_searched
from lepton.node.compression.refining import refined
from lepton.node.compression.scales import best_scales
from lepton.node.kernels import Packed, Precision, Rounded, available, pack
from lepton.node.kernels.grouping import grouped
from torch import Tensor

KINDS = [False, True] if available().native else [False]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def related(inputs: int, seed: int = 0) -> Tensor:
    """Samples (400, inputs) whose columns go together, as a network's do."""
    return normal(seed, 400, 8) @ normal(seed + 1, 8, inputs) + 0.3 * normal(seed + 2, 400, inputs)


def values(packed: Packed) -> Tensor:
    return packed.rows(torch.arange(packed.outputs))


def error(weight: Tensor, rounded: Rounded, x: Tensor) -> float:
    return float(((rounded[:] - weight) @ x.T).square().mean())


@pytest.mark.parametrize("inputs", [64, 75])
def test_calibrated_rounding_beats_the_nearest_by_far(inputs: int) -> None:
    weight, x = normal(1, 48, inputs), related(inputs).double()
    moments = x.T @ x / len(x)
    nearest = error(weight, round_nearest(weight, 4), x.float())
    assert error(weight, round_compensated(weight, 4, moments), x.float()) < 0.25 * nearest


def test_searched_scales_keep_weights_better_than_the_largest_weight_does() -> None:
    weight, alone = normal(1, 48, 96), torch.eye(96)
    assert error(weight, round_searched(weight, 4), alone) < 0.9 * error(weight, round_nearest(weight, 4), alone)


def test_refining_never_makes_a_layer_worse() -> None:
    weight, x = normal(2, 20, 96).double(), related(96).double()
    h = x.T @ x / len(x) + 0.1 * torch.eye(96)
    groups, scales = grouped(weight, 4)

    def loss(integers: Tensor, steps: Tensor) -> float:
        missed = (integers * steps.unsqueeze(2)).flatten(1) - weight
        return float(((missed @ h) * missed).sum())

    before = loss(groups.double(), scales.double())
    after = loss(*refined(weight, groups.double(), scales.double(), h, 4))
    assert after < 0.5 * before


def test_rows_and_groups_of_zeros_stay_zero() -> None:
    weight = normal(3, 6, 64)
    weight[2], weight[:, 32:] = 0, 0
    x = related(64).double()
    rounded = round_compensated(weight, 4, x.T @ x)
    assert not rounded[:][2].any()
    assert not round_searched(weight, 4)[:][:, 32:].any()


def test_inputs_that_are_never_there_do_not_break_it() -> None:
    weight = normal(4, 6, 64)
    assert error(weight, round_compensated(weight, 4, torch.zeros(64, 64)), normal(5, 9, 64)) < 1
    with pytest.raises(UsageError, match="NaN"):
        round_compensated(weight, 4, torch.full((64, 64), torch.nan))
    with pytest.raises(UsageError, match="NaN"):
        round_searched(weight / 0, 4)


@pytest.mark.parametrize("bits", [4, 8])
def test_scales_are_numbers_that_bfloat16_holds(bits: int) -> None:
    scales = best_scales(normal(6, 5, 3, 32), bits)
    assert torch.equal(scales, scales.to(torch.bfloat16).to(torch.float32))


@pytest.mark.parametrize("native", KINDS)
@given(
    outputs=st.integers(1, 40),
    inputs=st.integers(1, 100),
    bits=st.sampled_from([4, 8]),
    seed=st.integers(0, 2**32),
)
def test_what_is_stored_is_what_is_packed(native: bool, outputs: int, inputs: int, bits: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    low, high = (-8, 8) if bits == 4 else (-127, 128)
    groups = torch.randint(low, high, (outputs, -(-inputs // 32), 32), generator=draw).to(torch.int8)
    scales = torch.randn(groups.shape[:2], generator=draw).to(torch.bfloat16)
    rounded = Rounded.of(groups, scales, bits, inputs)
    exact = (groups * scales.float().unsqueeze(2)).flatten(1)[:, :inputs]
    assert torch.equal(rounded[:], exact)
    precision: Precision = "int4" if bits == 4 else "int8"
    assert torch.equal(values(pack(rounded, precision, native=native)), exact)
    assert torch.equal(values(pack(rounded, "float32", native=native)), exact)
    assert rounded.size_bytes == rounded.integers[:].nbytes + scales.nbytes


def test_what_is_not_stored_as_it_must_be_is_refused() -> None:
    whole, scales = torch.zeros(4, 40, dtype=torch.int8), torch.zeros(4, 2, dtype=torch.bfloat16)
    assert Rounded(whole, scales, 40).bits == 8
    with pytest.raises(UsageError, match="stored as"):
        Rounded(whole, scales, 41)
    with pytest.raises(UsageError, match="stored as"):
        Rounded(whole, scales[:, :1], 40)
    with pytest.raises(UsageError, match="int8 or uint8"):
        Rounded(whole.float(), scales, 40)
    with pytest.raises(UsageError, match="damaged"):
        Rounded(whole, scales / 0, 40)[:]
