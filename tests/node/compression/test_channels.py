"""Channels really go: a narrowed module answers as the whole one with those channels silent, from file too."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from lepton.mesh.errors import UsageError
from lepton.node.compression import Compressed, Fit, load, prune, prune_folder, quantise, quantise_folder, save
from lepton.node.compression.decoder import read_decoder
from lepton.node.compression.manifest import Pruned, write_manifest
from lepton.node.compression.measured import perplexity
from lepton.node.compression.pruning.channels import free_groups
from lepton.node.compression.pruning.narrowing import narrow, spread_out
from lepton.node.compression.pruning.tracing import groups_of
from lepton.node.compression.resizing import resize
from lepton.node.language.folder import read_config
from lepton.node.language.tokenizer import LanguageTokenizer, read_files
from lepton.node.models import build
from lepton.node.shapes import ModelSpec
from torch import Tensor, nn
from torch.nn import functional as F

from .folders import FAMILIES, SMALL, STORIES, engine_of, logits_of, made, trained
from .networks import RESNET, Mixed, photo_pieces, trained_resnet

STEPS: list[Any] = [  # that mix channels, move them, or see all at once
    lambda y: torch.roll(y, 1, dims=1),
    lambda y: y.transpose(1, 2).reshape(y.shape[0], 16, -1),
    lambda y: F.softmax(y, dim=1),
    lambda y: y + torch.arange(16.0).view(1, 16, 1),
    lambda y: y[:, [1, 0, *range(2, 16)]],
    lambda y: torch.cat((y[:, 8:], y[:, :8]), dim=1),
    lambda y: y * y.mean(dim=1, keepdim=True),
    lambda y: F.layer_norm(y.transpose(1, 2), (16,)).transpose(1, 2),
    nn.GroupNorm(4, 16),
    nn.ConstantPad1d(1, 0.5),
    nn.Linear(16, 16),
]


class Residual(nn.Module):
    """Two inner layers around which the input goes, as in He et al., with a shortcut that is a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.inner, self.outer = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 3, padding=1)
        self.beside = nn.Conv2d(16, 16, 1)
        self.wide = nn.Linear(16 * 4, 40)
        self.head = nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.outer(F.silu(self.inner(x))) + self.beside(x))
        y: Tensor = self.head(torch.relu(self.wide(F.max_pool2d(x, 4).flatten(1))) * 2)
        return y


class Mixing(nn.Module):
    """Steps after which no channel is where it was, or that see all channels at once."""

    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(4, 16, 3, padding=1), nn.Conv1d(16, 4, 3, padding=1)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.how(self.first(x)))
        return y


def answer(module: nn.Module, *x: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = module.eval()(*x)
    return found


def images(rows: int = 12) -> Tensor:
    return torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def residual() -> Residual:
    torch.manual_seed(2)
    module = Residual()
    answer(module.train(), images())
    return module.eval()


def narrowed_and_silenced(module: nn.Module, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """Drop channels at random: a copy without them, and one in which nobody listens to them."""
    narrow_one, whole = deepcopy(module).eval(), deepcopy(module).eval()
    draw = torch.Generator().manual_seed(seed)
    for group in free_groups(narrow_one)[0]:
        kept = torch.randperm(group.size, generator=draw)[: group.size // 2].sort().values
        for member in group.members:
            if member.side == "columns":
                gone = torch.ones(group.size * member.spread, dtype=torch.bool)
                gone[spread_out(kept, member)] = False
                whole.get_parameter(f"{member.layer}.weight").data[:, gone] = 0.0
        narrow(narrow_one, group, kept)
    return narrow_one, whole


def step_of(small: Compressed) -> Pruned:
    (step,) = small.manifest.steps
    assert isinstance(step, Pruned)
    return step


def mlp() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 3)
    )


def chain() -> nn.Module:
    return build(ModelSpec(architecture="mlp", inputs=(12,), classes=3, hidden=40))


@pytest.mark.parametrize("make", [mlp, chain, residual])
def test_a_narrowed_module_answers_as_one_that_does_not_listen_to_what_went(make: Callable[[], nn.Module]) -> None:
    module = make()
    x = images() if isinstance(module, Residual) else torch.randn(9, 12)
    small, silent = narrowed_and_silenced(module)
    torch.testing.assert_close(answer(small, x), answer(silent, x))
    assert sum(each.numel() for each in small.parameters()) < 0.65 * sum(each.numel() for each in module.parameters())


def test_channels_that_are_added_go_together_and_flattened_ones_with_all_their_places() -> None:
    free, left = free_groups(residual())
    members = {tuple(sorted((each.layer, each.side, each.spread) for each in group.members)) for group in free}
    assert members == {
        (("beside", "columns", 1), ("inner", "columns", 1), ("norm", "each", 1), ("stem", "rows", 1)),
        (("inner", "rows", 1), ("outer", "columns", 1)),
        (("beside", "rows", 1), ("outer", "rows", 1), ("wide", "columns", 4)),
        (("head", "columns", 1), ("wide", "rows", 1)),
    }
    assert left == {"head.weight": "it is what the module answers"}


@pytest.mark.parametrize("how", range(len(STEPS)))
def test_a_step_that_is_not_known_keeps_all_channels(how: int) -> None:
    module = Mixing(STEPS[how])
    assert all(group.frozen or all(each.side == "rows" for each in group.members) for group in groups_of(module))
    with pytest.raises(UsageError, match="No channels of this Mixing can go"):
        prune(module, kind="channels", share=0.5)


def test_layers_that_are_used_twice_or_share_weights_keep_theirs() -> None:
    shared = nn.Linear(16, 16)
    twice = nn.Sequential(nn.Linear(8, 16), shared, nn.ReLU(), shared)
    tied = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    tied[2].weight = tied[0].weight
    for module in (twice, tied, Mixed(tied=True)):
        assert not free_groups(module)[0]


def test_an_exact_part_is_taken_over_by_those_that_stay() -> None:
    first = nn.Linear(6, 16)
    with torch.no_grad():
        first.weight[8:] = first.weight[:8] * 0.5
        first.bias[8:] = first.bias[:8] * 0.5
    module = nn.Sequential(first, nn.Linear(16, 4)).eval()
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(6))
    wanted = answer(module, x)
    blind, seeing = (prune(module, kind="channels", share=0.5, data=data, must=()).module for data in (None, x))
    assert F.mse_loss(answer(seeing, x), wanted) < 0.2 * F.mse_loss(answer(blind, x), wanted)


@pytest.mark.parametrize("fit", [None, Fit(steps=60, batch_size=12, rate=3e-3)])
def test_a_narrowed_module_is_smaller_and_comes_back_from_its_file(fit: Fit | None, tmp_path: Path) -> None:
    module, x = residual(), images(40)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    small = prune(module, kind="channels", share=0.5, data=x, fit=fit, leave=("wide.*",))
    step = step_of(small)
    assert (step.kind, step.shapes["inner.weight"], step.shapes["norm.running_mean"]) == (
        "channels",
        (12, 8, 3, 3),
        (8,),
    )
    assert step.shares["inner.weight"] == 0.75
    assert step.left["wide.weight"] == "it was to be left alone"
    assert small.module.get_submodule("inner").out_channels == 12
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    save(small, tmp_path / "pruned")
    back = load(residual(), tmp_path / "pruned")
    assert torch.equal(answer(back.module, x), answer(small.module, x))
    rounded = quantise(small.module, bits=8, data=x, form="unpacked")
    both = Compressed(
        module=rounded.module,
        manifest=msgspec.structs.replace(rounded.manifest, steps=(*small.manifest.steps, *rounded.manifest.steps)),
    )
    save(both, tmp_path / "both")
    assert (tmp_path / "both/model.safetensors").stat().st_size < 0.4 * small.manifest.size_bytes
    again = load(residual(), tmp_path / "both", form="unpacked")
    assert torch.equal(answer(again.module, x), answer(both.module, x))


@pytest.mark.parametrize(
    "shapes", [{"stem.weight": (17, 3, 3, 3)}, {"stem.weight": (16, 3)}, {"stem.weight": (0, 3, 3, 3)}, {"no": (1,)}]
)
def test_a_manifest_that_makes_tensors_larger_is_refused(shapes: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    small = prune(residual(), kind="channels")
    save(small, tmp_path)
    step = msgspec.structs.replace(step_of(small), shapes=shapes)
    write_manifest(tmp_path, msgspec.structs.replace(small.manifest, steps=(step,)))
    with pytest.raises(UsageError, match="cannot have become"):
        load(residual(), tmp_path)
    resize(module := residual(), {"stem.weight": (4, 3, 3, 3)})
    assert module.stem.out_channels == 4


def test_what_was_pruned_stays_pruned_when_it_is_rounded_with_data() -> None:
    x = torch.randn(100, 12, generator=torch.Generator().manual_seed(7))
    module = nn.Sequential(nn.Linear(12, 96), nn.ReLU(), nn.Linear(96, 40))
    pruned = prune(module, share=0.6).module
    rounded = quantise(pruned, bits=4, data=x, form="unpacked", error_max=1.0)
    for name in ("0.weight", "2.weight"):
        zero = pruned.get_parameter(name) == 0
        weight: Any = rounded.module.get_submodule(name)
        assert zero.float().mean() > 0.3
        assert not weight.dense()[zero].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_narrower_folder_of_every_family_is_served_and_says_what_its_decoder_says(
    family: str, tmp_path: Path
) -> None:
    made(tmp_path / "model", family, SMALL, torch.bfloat16)
    heads = read_config(tmp_path / "model").key_value_heads - 1
    manifest = prune_folder(
        tmp_path / "model", tmp_path / "small", share=0.4, heads=heads, fit=Fit(steps=2, batch_size=4)
    )
    config = read_config(tmp_path / "small")
    assert (config.inner, config.key_value_heads) == (45, 1)
    assert manifest.size_bytes < 0.85 * manifest.size_bytes_before
    decoder, tokens = read_decoder(tmp_path / "small"), [1, 5, 9, 3, 60, 2]
    wanted = answer(decoder, torch.tensor([tokens]))[0]
    torch.testing.assert_close(
        logits_of(engine_of(tmp_path / "small", "float32"), tokens), wanted, rtol=1e-3, atol=1e-3
    )
    with pytest.raises(UsageError, match="is in use"):
        prune_folder(tmp_path / "model", tmp_path / "small")
    with pytest.raises(UsageError, match="heads cannot go"):
        prune_folder(tmp_path / "model", tmp_path / "other", heads=heads + 1)


@trained
def test_the_trained_stories_without_a_tenth_of_their_inner_channels_are_told_nearly_as_before(tmp_path: Path) -> None:
    folder = STORIES / "hf"
    text = (STORIES / "tinystories_sample.txt").read_text()
    tokens = LanguageTokenizer(read_files(folder)).encode(text.split("<|endoftext|>")[0].strip())
    prune_folder(folder, tmp_path / "small", share=0.1, text=text, fit=None)
    before, after = (perplexity(engine_of(each, "float32"), [tokens]) for each in (folder, tmp_path / "small"))
    assert after < 1.25 * before
    quantise_folder(tmp_path / "small", tmp_path / "rounded", bits=8, text=text)
    assert perplexity(engine_of(tmp_path / "rounded", "int8"), [tokens]) < 1.01 * after


@pytest.mark.skipif(not RESNET.exists(), reason="needs ../shared/data/models/resnet20")
def test_a_trained_resnet_loses_the_inner_channels_of_its_blocks() -> None:
    module, x = trained_resnet(), photo_pieces("china.jpg")[::8]
    small, silent = narrowed_and_silenced(module)
    torch.testing.assert_close(answer(small, x), answer(silent, x), rtol=1e-3, atol=1e-3)
    free, left = free_groups(module)
    assert len(free) == 9
    assert left["layer1.0.conv2.weight"] == "it is joined with something that stays"
