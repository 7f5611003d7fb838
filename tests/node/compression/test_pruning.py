"""Pruning: exactly as many numbers go as were asked for, the least; they stay away while the rest mends."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lepton.mesh.errors import UsageError
from lepton.node.compression import Compressed, Fit, NotFaster, NotSmaller, prune
from lepton.node.compression.manifest import Pruned
from lepton.node.compression.pruning.gradual import Gradual
from lepton.node.compression.pruning.masks import best, of_all, of_runs, share_at
from lepton.node.compression.pruning.scores import shares_of_rest
from torch import Tensor, nn
from torch.nn import functional as F

from .networks import RESNET, Mixed, photo_pieces, trained_resnet

X = torch.randn(256, 64, generator=torch.Generator().manual_seed(1))


def network() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Linear(64, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 10)
    )


def step_of(small: Compressed) -> Pruned:
    (step,) = small.manifest.steps
    assert isinstance(step, Pruned)
    return step


def zeros(module: nn.Module, *names: str) -> list[float]:
    return [float((module.get_parameter(name) == 0).to(torch.float32).mean()) for name in names]


@settings(max_examples=50)
@given(gone=st.integers(0, 24), levels=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_exactly_so_many_of_each_row_go_however_many_are_equal(gone: int, levels: int, seed: int) -> None:
    scores = torch.randint(0, levels, (3, 24), generator=torch.Generator().manual_seed(seed)).float()
    kept = best(scores, gone)
    assert (~kept).sum(dim=1).tolist() == [gone] * 3
    for row, stays in zip(scores, kept, strict=True):
        if 0 < gone < 24:
            assert row[~stays].max() <= row[stays].min()
            equal = stays[row == row[~stays].max()].tolist()
            assert equal == sorted(equal)  # of equal ones the first go


def test_the_share_rises_fast_and_then_ever_slower() -> None:
    shares = [share_at(step / 10, 0.8) for step in range(11)]
    rises = [after - before for before, after in pairwise(shares)]
    assert (shares[0], shares[-1], share_at(7, 0.8)) == (0.0, 0.8, 0.8)
    assert rises == sorted(rises, reverse=True)
    assert shares[5] == pytest.approx(0.8 * 0.875)


def test_no_layer_is_emptied_because_its_numbers_are_small() -> None:
    draw = torch.Generator().manual_seed(3)
    weights = {"large": torch.randn(40, 40, generator=draw), "small": torch.randn(40, 40, generator=draw) * 1e-3}
    kept = of_all(shares_of_rest(weights), 0.5)
    assert sum(int(each.sum()) for each in kept.values()) == 1600
    assert all(600 < int(each.sum()) < 1000 for each in kept.values())
    assert torch.equal(
        kept["large"], best(weights["large"].abs().view(1, -1), 1600 - int(kept["large"].sum())).view(40, 40)
    )


def test_of_each_run_of_inputs_so_many_stay() -> None:
    kept = of_runs({"weight": torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(4))}, (2, 4))["weight"]
    assert torch.equal(kept.flatten(1)[:, :16].reshape(-1, 4).sum(dim=1), torch.full((24,), 2))
    assert kept.flatten(1)[:, 16:].all()


@pytest.mark.parametrize("kind", ["global", "layer", "n:m"])
@pytest.mark.parametrize("fit", [None, Fit(steps=12, batch_size=32)])
def test_a_module_is_pruned_by_each_kind_and_stays_as_it_was_itself(kind: Any, fit: Fit | None) -> None:
    module = network()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    small = prune(module, share=0.5, kind=kind, data=X, fit=fit, must=())
    step, names = step_of(small), ("0.weight", "3.weight")
    shares = zeros(small.module, *names)
    assert (step.kind, step.share, step.fitted_steps) == (kind, 0.5, 12 if fit else 0)
    assert [step.shares[name] for name in names] == pytest.approx(shares, abs=1e-4)
    if kind == "global":
        assert shares[0] * 64 + shares[1] * 32 == pytest.approx(48)
    else:
        assert shares == [0.5, 0.5]
    assert step.left == {"5.weight": "it has 320 numbers: nothing is saved there"}
    assert zeros(small.module, "5.weight") == [0]
    assert module.training
    assert not small.module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_embeddings_and_what_is_tied_to_them_are_left_alone_and_recurrent_layers_are_not() -> None:
    tokens = torch.randint(0, 50, (8, 9), generator=torch.Generator().manual_seed(5))
    small = prune(Mixed(tied=True), data=tokens, kind="layer", leave=("mix.*",))
    step = step_of(small)
    assert set(step.left) == {"embed.weight", "mix.weight"}
    assert {"read.weight_ih_l0", "again.weight_hh_l0_reverse", "inner.weight"} <= set(step.shares)
    assert all(share == pytest.approx(0.5, abs=0.01) for share in step.shares.values())
    untied = step_of(prune(Mixed()))
    assert untied.left["out.weight"] == "it is the head of a vocabulary"


def test_a_number_counts_with_its_input_where_data_say_so() -> None:
    x = X.clone()
    x[:, ::2] *= 100
    kept = prune(nn.Sequential(nn.Linear(64, 32)), kind="layer", data=x).module.get_parameter("0.weight") != 0
    assert kept[:, ::2].float().mean() > 0.9
    assert torch.equal(kept.sum(dim=1), torch.full((32,), 32))  # each output keeps as many


def test_what_went_stays_away_while_the_rest_learns() -> None:
    parameters = {"weight": nn.Parameter(torch.arange(1.0, 41.0).view(4, 10))}
    held = []
    gradual = Gradual(parameters, lambda found, done: of_all(found, share_at(done, 0.5)), steps=40)
    for step in range(1, 41):
        with torch.no_grad():
            parameters["weight"].add_(0.5)  # as an optimiser that has momentum would
        gradual(nn.Module(), step)
        held.append(int((parameters["weight"] == 0).sum()))
    assert held == sorted(held)
    assert held[0] < held[10] < held[19] == held[-1] == 20


def test_training_on_brings_back_what_pruning_took() -> None:
    module = network().eval()
    alone, mended = (
        prune(module, share=0.8, data=X, fit=fit).module for fit in (None, Fit(steps=150, rate=3e-3, batch_size=128))
    )
    with torch.inference_mode():
        wanted = module(X)
        worse, better = (float(F.mse_loss(each(X), wanted)) for each in (alone, mended))
    assert better < 0.3 * worse


def test_a_loss_of_ones_own_takes_what_it_wants_from_the_data() -> None:
    labels = X[:, :10].argmax(dim=1)

    def loss(now: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return F.cross_entropy(now(batch[0]), batch[1])

    small = prune(network(), kind="layer", share=0.6, data=(X, labels), loss=loss, fit=Fit(steps=200, rate=3e-3))
    with torch.inference_mode():
        assert (small.module(X).argmax(1) == labels).float().mean() > 0.9
    assert zeros(small.module, "0.weight") == pytest.approx([0.6], abs=0.01)


def test_zeros_that_must_be_faster_are_refused_with_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lepton.node.compression.pruning.pruned.least_s", lambda runs: [run() is None or 0.001 for run in runs]
    )
    small = prune(network(), data=X)
    assert (small.taken_s_before, small.taken_s) == (0.001, 0.001)
    with pytest.raises(NotFaster, match="50 % zeros, which make a file smaller and an answer no quicker,"):
        prune(network(), data=X, must=("faster",))
    noise = nn.Linear(64, 64)
    noise.weight = nn.Parameter(torch.randint(0, 2**31, (64, 64), dtype=torch.int32).view(torch.float32).nan_to_num_(1))
    with pytest.raises(NotSmaller):
        prune(noise, share=0.001)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"share": 0.0}, "A share of 0 cannot"),
        ({"share": 1.0}, "A share of 1 cannot"),
        ({"kind": "n:m", "pattern": (4, 4)}, "Of each 4 numbers 4 cannot stay"),
        ({"fit": Fit()}, "takes data"),
        ({"must": ("faster",)}, "takes data"),
        ({"leave": ("*",)}, "Nothing of this Sequential can be pruned"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(asked: Any, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        prune(network(), **asked)


@pytest.mark.skipif(not RESNET.exists(), reason="needs ../shared/data/models/resnet20")
def test_a_trained_resnet_without_a_fifth_of_its_numbers_decides_as_before() -> None:
    module, x = trained_resnet(), photo_pieces("flower.jpg")[::2]
    small = prune(module, share=0.2)
    with torch.inference_mode():
        same = (small.module(x).argmax(1) == module(x).argmax(1)).float().mean()
    assert same > 0.93
    assert small.manifest.size_bytes < 0.75 * small.manifest.size_bytes_before
