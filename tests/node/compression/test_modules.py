"""Any module is rounded, answers nearly as before, is stored smaller and comes back; what gains nothing is refused."""

from pathlib import Path
from typing import get_args

import msgspec
import pytest
import torch
from lepton.mesh.errors import UsageError
from lepton.node.compression import Compressed, NotFaster, NotSmaller, load, quantise, save
from lepton.node.compression.calibration import matrices, moments_of
from lepton.node.compression.choosing import Tried, choose
from lepton.node.compression.folding import fold_norms
from lepton.node.compression.forms import FORMS, PLAIN, Form, error_of, product_of, products_of
from lepton.node.compression.gptq import round_nearest
from lepton.node.compression.manifest import Bits, read_manifest
from lepton.node.compression.weight import PackedWeight
from lepton.node.models import build
from lepton.node.shapes import ModelSpec
from torch import Tensor, nn

from .networks import RESNET, Mixed, photo_pieces, trained_resnet

TOKENS = torch.randint(0, 50, (24, 9), generator=torch.Generator().manual_seed(1))
SPECS = [
    ModelSpec(architecture="mlp", inputs=(64,), classes=10, hidden=64),
    ModelSpec(architecture="cnn", inputs=(1, 8, 8), classes=10, hidden=32),
    ModelSpec(architecture="lstm", inputs=(8, 8), classes=10, hidden=64),
]
WIDTHS: list[tuple[Bits, float]] = [(8, 0.02), (4, 0.3)]


def answer(module: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = module(x)
    return found


@pytest.mark.parametrize(("bits", "bound"), WIDTHS)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.architecture)
def test_the_models_that_the_mesh_trains_are_rounded_and_come_back(
    spec: ModelSpec, bits: Bits, bound: float, tmp_path: Path
) -> None:
    model, x = build(spec), torch.randn((50, *spec.inputs), generator=torch.Generator().manual_seed(2))
    small = quantise(model, bits=bits, data=x, error_max=bound)
    assert not small.manifest.quantised[0].left
    assert error_of(answer(small.module, x), answer(model, x)) < bound
    assert small.manifest.size_bytes < (0.35 if bits == 8 else 0.25) * small.manifest.size_bytes_before
    save(small, tmp_path / "small")
    back = load(build(msgspec.structs.replace(spec, seed=9)), tmp_path / "small", form="unpacked")
    assert back.manifest == small.manifest
    assert error_of(answer(back.module, x), answer(small.module, x)) < 0.02  # another form rounds inputs otherwise


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("bits", "bound"), WIDTHS)
def test_every_kind_of_layer_is_rounded_and_comes_back(tied: bool, bits: Bits, bound: float, tmp_path: Path) -> None:
    module = Mixed(tied=tied)
    small = quantise(module, bits=bits, data=TOKENS, error_max=bound, form="unpacked")
    assert not small.manifest.quantised[0].left
    assert len(small.manifest.quantised[0].tensors) == 12 - tied
    assert error_of(answer(small.module, TOKENS), answer(module, TOKENS)) < bound
    save(small, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size == small.manifest.size_bytes
    back = load(Mixed(tied=tied), tmp_path, form="unpacked")
    assert torch.equal(answer(back.module, TOKENS), answer(small.module, TOKENS))


def test_the_module_that_was_given_stays_as_it_was() -> None:
    module = Mixed()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    quantise(module, bits=4, data=TOKENS)
    assert module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_calibration_brings_answers_nearer() -> None:
    draw = torch.Generator().manual_seed(4)
    x = torch.randn((300, 6), generator=draw) @ torch.randn((6, 96), generator=draw)
    module = nn.Sequential(nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))
    calibrated, alone = (quantise(module, bits=4, data=data, form="unpacked").module for data in (x[:200], None))
    wanted = answer(module, x[200:])
    assert error_of(answer(calibrated, x[200:]), wanted) < 0.6 * error_of(answer(alone, x[200:]), wanted)


def test_what_is_not_smaller_is_refused_with_the_figures() -> None:
    narrow = nn.Sequential(nn.Linear(1, 1000, bias=False)).to(torch.bfloat16)  # 1 byte and 2 of scale in place of 2
    draw = torch.Generator().manual_seed(1)
    noise = torch.randint(0x7F80, (1000, 1), generator=draw) - 0x8000 * torch.randint(2, (1000, 1), generator=draw)
    narrow.load_state_dict({"0.weight": noise.to(torch.int16).view(torch.bfloat16)})  # no code makes it smaller
    with pytest.raises(NotSmaller, match="2,080 bytes, and it takes 2,080 now"):
        quantise(narrow)
    with pytest.raises(NotSmaller):
        quantise(nn.BatchNorm1d(8))
    left = quantise(nn.Sequential(narrow, nn.Linear(64, 64))).manifest.quantised[0].left
    assert left == {"0.0.weight": "it would take 3,000 bytes, and takes 2,000"}


def test_what_is_not_faster_is_refused_where_it_must_be() -> None:
    x = torch.randn(1, 8)
    module = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(NotFaster, match="ms now") as caught:
        quantise(module, data=x, form="unpacked", must=("faster",))
    assert caught.value.taken_s >= caught.value.taken_s_before
    with pytest.raises(UsageError, match="with data"):
        quantise(module, must=("faster",))


def test_a_layer_that_would_answer_otherwise_stays_float() -> None:
    small = quantise(Mixed(), bits=4, data=TOKENS, error_max=1e-4, must=())
    step = small.manifest.quantised[0]
    assert not step.tensors
    assert "off by" in step.left["inner.weight"]
    few = quantise(Mixed(), data=TOKENS, bits_of=lambda name: 8 if name == "inner.weight" else 0)
    assert list(few.manifest.quantised[0].tensors) == ["inner.weight"]


@pytest.mark.parametrize("bits", [4, 8])
def test_every_form_says_what_the_weights_say(bits: int) -> None:
    weight = torch.randn((48, 96), generator=torch.Generator().manual_seed(5))
    rounded = round_nearest(weight, bits)
    x = torch.randn((20, 96), generator=torch.Generator().manual_seed(6))
    forms = dict(products_of(rounded))
    assert set(PLAIN) <= set(forms)
    for form, product in forms.items():
        assert error_of(product(x), x @ rounded[:].T) < 0.02, form
    packed = PackedWeight(rounded, (48, 96))
    layer = nn.Linear(96, 48)
    bias = layer.bias.detach()
    del layer.weight
    layer.add_module("weight", packed)
    for form in forms:
        packed.take(form)
        assert error_of(answer(layer, x.view(4, 5, 96)), (x @ rounded[:].T + bias).view(4, 5, 48)) < 0.02


def test_a_form_that_fails_its_probe_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    rounded = round_nearest(torch.randn(48, 96), 8)
    monkeypatch.setattr(torch, "_int_mm", lambda x, y: (x.float() @ y.float()).to(torch.int32) + 100_000)
    assert "dynamic" not in dict(products_of(rounded))
    monkeypatch.delattr(torch, "_int_mm")
    with pytest.raises(UsageError, match="no form 'dynamic'"):
        product_of("dynamic", rounded)
    assert "torch4" not in dict(products_of(rounded))


def test_an_operation_that_crashes_with_some_widths_is_not_tried_there() -> None:
    forms = dict(products_of(round_nearest(torch.randn(5, 40), 8)))  # a segmentation fault ends the process
    assert "torch8" not in forms
    assert set(PLAIN) <= set(forms)


def test_the_quickest_form_within_the_bound_is_chosen_and_of_equals_the_smaller() -> None:
    tried = [
        Tried(form="resident", error=0.001, taken_s=1.0),
        Tried(form="kernel", error=0.001, taken_s=1.05),
        Tried(form="dynamic", error=0.03, taken_s=0.2),
    ]
    assert choose(tried, 0.02) == "kernel"
    assert choose(tried, 0.05) == "dynamic"
    assert choose(tried, 0.0001) is None
    assert set(FORMS) == set(get_args(Form))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(12, 7, bias=False),
        nn.Conv1d(5, 7, 3, stride=2, padding=1, dilation=2, bias=False),
        nn.Conv2d(3, 7, (3, 5), padding="same", bias=False),
    ],
)
def test_moments_are_those_of_what_the_matrix_is_multiplied_with(layer: nn.Module) -> None:
    shape = (4, 12) if isinstance(layer, nn.Linear) else (4, 5, 17) if isinstance(layer, nn.Conv1d) else (4, 3, 9, 8)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    moments, y = moments_of(layer, x), answer(layer, x)
    assert moments is not None
    ((_, _, weight),) = matrices(layer)
    matrix = weight.detach().flatten(1).double()
    rows = y.movedim(1, -1).reshape(-1, 7).double()
    torch.testing.assert_close(matrix @ moments @ matrix.T, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-6)


def test_norms_behind_convolutions_are_folded_and_only_those() -> None:
    torch.manual_seed(8)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8)).eval()
    for norm in (module[1], module[3]):
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        norm.running_mean.normal_()
    x = torch.randn(2, 3, 6, 6)
    wanted = answer(module, x)
    assert fold_norms(module) == 1
    assert isinstance(module[1], nn.Identity)
    torch.testing.assert_close(answer(module, x), wanted)


def test_a_folder_of_another_module_is_refused(tmp_path: Path) -> None:
    save(quantise(nn.Sequential(nn.Linear(64, 64))), tmp_path)
    for other in (nn.Sequential(nn.Linear(64, 63)), nn.Sequential(nn.Linear(64, 64, bias=False)), Mixed()):
        with pytest.raises(UsageError, match="not of one model"):
            load(other, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"{}")
    with pytest.raises(UsageError, match="cannot be read"):
        load(nn.Sequential(nn.Linear(64, 64)), tmp_path)
    (tmp_path / "compression.json").write_bytes(b"{}")
    with pytest.raises(UsageError, match="does not say"):
        read_manifest(tmp_path)
    with pytest.raises(UsageError, match="holds no"):
        read_manifest(tmp_path / "nowhere")


@pytest.mark.skipif(not RESNET.exists(), reason="needs ../shared/data/models/resnet20")
@pytest.mark.parametrize(("bits", "least"), [(8, 0.98), (4, 0.8)])
def test_a_trained_resnet_decides_as_before_on_photographs(bits: Bits, least: float) -> None:
    network, test = trained_resnet(), photo_pieces("flower.jpg")[::2]
    data = photo_pieces("china.jpg")[::16] if bits == 4 else None
    small: Compressed = quantise(network, bits=bits, data=data, error_max=0.5)
    step = small.manifest.quantised[0]
    assert (step.folded, len(step.tensors), step.left) == (19, 20, {})
    agreed = (answer(small.module, test).argmax(1) == answer(network, test).argmax(1)).float().mean()
    assert agreed >= least
    assert small.manifest.size_bytes < (0.3 if bits == 8 else 0.17) * small.manifest.size_bytes_before
