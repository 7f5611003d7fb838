"""Coded tensors: bit for bit what they were, as small as their numbers are worth, and nothing believed of a file."""

from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from lepton.mesh.errors import UsageError
from lepton.node.compression import prune, quantise, save
from lepton.node.compression.coded import DENSE, GAPS, MASKED, decoded, encoded
from lepton.node.compression.contents import plain_bytes
from lepton.node.compression.stored import load
from lepton.node.kernels.grouping import halves_joined
from lepton.node.language.layout import CODED
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SHAPE, LARGE = torch.Size((40, 50)), torch.Size((100, 200))


def sparse(density: float, shape: torch.Size = SHAPE) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=draw).masked_fill_(torch.rand(shape, generator=draw) >= density, 0.0)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64))


@settings(max_examples=60)
@given(
    density=st.floats(0, 1), seed=st.integers(0, 2**32 - 1), count=st.integers(1, 900),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.int64]),
)  # fmt: skip
def test_what_is_decoded_is_what_was_encoded(density: float, seed: int, count: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(seed)
    numbers = (torch.randn(count, generator=draw) * 40 * (torch.rand(count, generator=draw) < density)).to(dtype)
    data = encoded(numbers)
    if data is not None:
        assert len(data) < numbers.nbytes
        assert torch.equal(decoded(data, numbers.shape, dtype).view(torch.uint8), numbers.view(torch.uint8))


@pytest.mark.parametrize(
    ("density", "layout", "bits"), [(0.5, MASKED, 15), (0.2, MASKED, 6.4), (0.01, GAPS, 0.5), (0, GAPS, 0.05)]
)
def test_zeros_take_next_to_nothing(density: float, layout: int, bits: float) -> None:
    data = encoded(numbers := sparse(density, LARGE))
    assert data is not None
    assert (int(data[0]), 8 * len(data) < bits * numbers.numel()) == (layout, True)
    assert torch.equal(decoded(data, LARGE, torch.float32), numbers)


def test_numbers_of_four_bits_take_less_than_four() -> None:
    halves = (torch.randn(64, 128, generator=torch.Generator().manual_seed(1)) * 2).round().clamp(-8, 7)
    halves[:, ::2] = 0
    bytes_ = halves_joined(halves.to(torch.int8).unflatten(1, (-1, 2)))
    data = encoded(bytes_, halves=True)
    assert data is not None
    assert 8 * len(data) < 2.7 * halves.numel()
    assert torch.equal(decoded(data, bytes_.shape, torch.uint8, halves=True), bytes_)


def test_numbers_that_are_noise_stay_plain() -> None:
    assert encoded(torch.randint(-128, 128, (5000,), generator=torch.Generator().manual_seed(2)).to(torch.int8)) is None


def of(layout: int, first: bytes, *planes: bytes) -> Tensor:
    whole = bytes([layout]) + len(first).to_bytes(4, "little") + first
    return torch.frombuffer(
        bytearray(whole + b"".join(len(one).to_bytes(4, "little") + one for one in planes)), dtype=torch.uint8
    )


def squeezed(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(raw)


BOMB = squeezed(bytes(64 * 1024 * 1024))
BITS = np.packbits([True] + [False] * 1999).tobytes()
STREAMED = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(2000))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (torch.zeros(3, dtype=torch.uint8), "row of bytes"),
        (torch.zeros(30), "row of bytes"),
        (of(9, b"", b""), "no layout 9"),
        (of(DENSE, b"", BOMB), "67,108,864 bytes, which it cannot have"),
        (of(MASKED, BOMB), "cannot have"),
        (of(GAPS, BOMB), "cannot have"),
        (of(DENSE, b"", STREAMED), "cannot"),
        (of(DENSE, b"", squeezed(bytes(1999))), "1,999 bytes, which it cannot have"),
        (of(DENSE, b"", squeezed(bytes(2000))[:-3]), "cannot be unpacked"),
        (of(DENSE, b"", b"nothing"), "cannot be unpacked"),
        (of(DENSE, b"", *[squeezed(bytes(2000))] * 5), "belong to nothing"),
        (of(DENSE, b"", squeezed(bytes(2000)) + b"more"), "cannot be unpacked"),
        (of(MASKED, squeezed(BITS), *[squeezed(b"")] * 4), "0 bytes, which it cannot have"),
        (of(GAPS, squeezed(bytes([255] * 4)), *[squeezed(b"")] * 4), "middle of a distance"),
        (of(GAPS, squeezed(bytes([255] * 8 + [0])), *[squeezed(b"\1")] * 4), "behind its end"),
    ],
)  # fmt: skip
def test_bytes_that_are_no_tensor_are_refused_before_they_take_memory(data: Tensor, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        decoded(data, SHAPE, torch.float32)


def test_bits_behind_the_end_are_refused() -> None:
    with pytest.raises(UsageError, match="behind its end"):
        decoded(of(MASKED, squeezed(b"\1")), torch.Size((7,)), torch.int8)


@pytest.mark.parametrize("length", range(0, 60, 7))
def test_a_cut_or_changed_tensor_is_refused_or_has_its_shape(length: int) -> None:
    data = encoded(sparse(0.2))
    assert data is not None
    changed = data.clone()
    changed[length] ^= 0x55
    for bad in (data[:length], changed):
        try:
            assert decoded(bad, SHAPE, torch.float32).shape == SHAPE
        except UsageError:
            continue


@pytest.mark.parametrize("bits", [4, 8, None])
def test_a_pruned_module_comes_back_exactly_and_its_file_is_as_small_as_was_said(
    bits: int | None, tmp_path: Path
) -> None:
    small = prune(network(), share=0.7)
    if bits:
        small = quantise(small.module, bits=4 if bits == 4 else 8, form="unpacked", error_max=0.5)
    save(small, tmp_path)
    said, before = small.manifest.size_bytes, plain_bytes(network())
    assert (tmp_path / "model.safetensors").stat().st_size == said
    assert said < {4: 0.10, 8: 0.16, None: 0.36}[bits] * before
    assert small.manifest.size_bytes_before == before
    back = load(network(1), tmp_path, form="unpacked")
    for name, wanted in small.module.state_dict().items():
        assert torch.equal(back.module.state_dict()[name], wanted), name


def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    save(prune(network(), share=0.7), tmp_path)
    path = tmp_path / "model.safetensors"
    good = load_file(path)
    name = "0.weight" + CODED
    broken = good[name].clone()
    broken[0] = 77
    for tensors, why in (
        (good | {name: broken}, "'0.weight' is damaged: a coded tensor has no layout 77"),
        (good | {"0.bias": torch.full((96,), torch.nan)}, "NaN or infinity in '0.bias'"),
        (good | {"other" + CODED: broken}, "'other' is not in both"),
        (good | {"0.bias": torch.zeros(97)}, r"'0.bias' is \(96,\) here"),
        ({key: good[key] for key in good if key != name}, "'0.weight' is not in both"),
        (good | {"0.bias": torch.zeros(2_000_000)}, "larger than this module could be"),
    ):
        save_file(tensors, path)
        with pytest.raises(UsageError, match=why):
            load(network(), tmp_path)
