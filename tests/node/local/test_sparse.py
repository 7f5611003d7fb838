"""Pruning within a task: all who have a round's model have its mask, whoever is late, lost or in another group."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from lepton.gossip.averager import Effect
from lepton.gossip.events import Finished
from lepton.gossip.messages import Message
from lepton.gossip.part import Reference
from lepton.mesh.errors import UsageError
from lepton.node.learning.data import Dataset, digits
from lepton.node.learning.partition import partition_dirichlet
from lepton.node.learning.settings import Parts, Prune
from lepton.node.learning.shared import Shared
from lepton.node.learning.sparse import Sparse
from lepton.node.learning.task import task_from
from lepton.node.learning.trainer import Trainer, settings_for
from lepton.node.models import build
from lepton.node.shapes import ModelSpec
from torch import nn

from ...bench.virtual import Node, VirtualMesh

MLP = ModelSpec(architecture="mlp", inputs=(64,), classes=10)
PRUNE = Prune(share=0.7, from_round=10, to_round=30)
CUT_OFF = 15
LARGE = 64 * 64  # the one matrix of this model that is large enough


def trainers(count: int, *, prune: Prune | None = PRUNE, spec: ModelSpec = MLP) -> list[Trainer]:
    data = digits(0)
    shares = partition_dirichlet(data.y, count, 1.0, np.random.default_rng(0))
    parts = [Dataset(x=data.x[i], y=data.y[i], classes=10, x_test=data.x_test, y_test=data.y_test) for i in shares]
    return [Trainer(spec, part, settings_for(spec), prune=prune) for part in parts]


class SparseMesh(VirtualMesh):
    """Does what `learner.py` does with the models of rounds, and writes down which masks nodes train with."""

    def __init__(self, trainers: Sequence[Trainer], **said: Any) -> None:
        super().__init__(trainers, **said)
        self.masks: dict[tuple[int, bytes], set[bytes]] = defaultdict(
            set
        )  # by round, and the model that it begins with
        self.counts: dict[int, list[int]] = defaultdict(list)

    def _train(self, node: Node) -> None:
        node.trainer.hold_zeros(node.round)
        held = node.trainer._zeros
        mask = np.zeros(LARGE, bool) if held is None else held[:LARGE].numpy()
        self.masks[node.round, node.reference].add(mask.tobytes())
        self.counts[node.round].append(int(mask.sum()))
        super()._train(node)

    def _apply(self, node: Node, effects: Iterable[Effect]) -> None:
        super()._apply(node, [self._pruned(node, each) for each in effects])

    def _send(self, node: Node, peer: Node, message: Message) -> None:
        """Cut the first node off through a whole round: it comes to nothing there."""
        if self._loss and "00" in {node.name, peer.name} and self.nodes["00"].round == CUT_OFF:
            return
        super()._send(node, peer, message)

    def _pruned(self, node: Node, effect: Effect) -> Effect:
        if not isinstance(effect, Finished) or node.trainer.sparse is None:
            return effect
        agreed, name = effect.report.agreed, effect.report.reference
        vector = node.trainer.sparse.thinned(effect.vector, effect.round + 1, common=agreed)
        if agreed:
            node.averager.refer_to(Reference(name, vector))
        return Finished(effect.round, vector, effect.report)


def sparse_of(prune: Prune, module: nn.Module | None = None) -> Sparse:
    module = module or build(MLP)
    return Sparse(prune, module, Shared(module))


def test_as_many_go_as_are_due_the_least_and_of_equal_ones_the_first() -> None:
    sparse = sparse_of(Prune(share=0.5, to_round=4))
    vector = np.ones(64 * 64 + 64 + 640 + 10, np.float32)
    vector[1000:] = -2.0
    before = vector.copy()
    new = sparse.thinned(vector, 4, common=True)
    assert np.array_equal(vector, before)
    assert int((new == 0).sum()) == LARGE // 2
    assert not new[:1000].any()  # the least
    assert np.array_equal(new[2048:], before[2048:])
    assert not np.signbit(new[new == 0]).any()
    assert sparse.thinned(vector, 0, common=True) is vector
    assert sparse.thinned(vector, 4, common=False) is vector
    assert sparse.share_in(new) == 0.5


def test_the_share_rises_between_the_two_rounds() -> None:
    sparse = sparse_of(PRUNE)
    shares = [sparse.share_after(rounds) for rounds in (0, 10, 11, 20, 30, 99)]
    assert shares[:2] == [0, 0]
    assert shares == sorted(shares)
    assert shares[-2:] == [0.7, 0.7]


@pytest.mark.parametrize(("kind", "wanted"), [("layer", [0.5, 0.5]), ("global", [0.0, 1.0])])
def test_layers_are_compared_with_all_or_each_with_itself(kind: Any, wanted: list[float]) -> None:
    module = nn.Sequential(nn.Linear(40, 40, bias=False), nn.Linear(40, 40, bias=False))
    vector = np.linspace(1, 2, 3200, dtype=np.float32)
    vector[1600:] -= 3.5  # larger magnitudes, and negative
    vector[:1600] += 5
    new = sparse_of(Prune(share=0.5, kind=kind, to_round=1), module).thinned(vector, 1, common=True)
    assert [float((part == 0).mean()) for part in (new[:1600], new[1600:])] == wanted


def test_what_stays_at_home_keeps_all_its_numbers() -> None:
    module = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    shared = Shared(module, Parts(local=("0.*",)))
    sparse = Sparse(Prune(share=0.5, to_round=1), module, shared)
    position = torch.zeros(2 * 1640)
    held = sparse.zeros(position, 1)
    assert held is not None
    assert (int(held[:1640].sum()), int(held[1640:3240].sum()), int(held[3240:].sum())) == (0, 1600, 0)
    with pytest.raises(UsageError, match="nothing of this model can be pruned"):
        sparse_of(PRUNE, nn.Linear(8, 8))


def test_numbers_that_are_zero_stay_so_through_steps_and_others_move() -> None:
    (trainer,) = trainers(1)
    assert trainer.sparse is not None
    vector = trainer.sparse.thinned(trainer.vector(), 30, common=True)
    trainer.adopt(vector, averaged=True)
    trainer.hold_zeros(30)
    trainer.run_steps(5)
    after = trainer.vector()
    assert np.array_equal(after[:LARGE] == 0, vector[:LARGE] == 0)
    assert (after != vector).any()
    trainer.hold_zeros(5)  # before pruning begins a zero is a number like all others
    trainer.run_steps(5)
    assert (trainer.vector()[:LARGE] == 0).sum() < (vector[:LARGE] == 0).sum()


@pytest.mark.parametrize("codec", ["int8", "float32"])
@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_all_who_have_a_rounds_model_have_its_mask(codec: str, loss: float) -> None:
    mesh = SparseMesh(trainers(5), rounds=45, local_steps=10, codec=codec, loss=loss, seed=3)
    nodes = list(mesh.nodes.values())
    mesh.begin_without(nodes[4])
    mesh.world.after(34.0 if loss else 12.0, lambda: mesh.come_back(nodes[4]))  # in the middle of the rise
    accuracies = mesh.run()
    agreed = {key: masks for key, masks in mesh.masks.items() if key[1]}
    assert len(agreed) >= 40
    assert all(len(masks) == 1 for masks in agreed.values())
    if not loss:
        assert {len(each) for each in mesh.masks.values()} == {1}
        assert all(set(mesh.counts[round_]) == {round(0.7 * LARGE)} for round_ in range(30, 45))
    else:
        assert [report.round for report in nodes[0].reports if not report.agreed] == [CUT_OFF]
    assert nodes[4].first_round > 10
    for node in nodes:
        assert int((node.trainer.vector()[:LARGE] == 0).sum()) >= round(0.7 * LARGE) * (not loss)
    assert min(accuracies) > 0.93


def test_one_group_never_brings_back_what_went() -> None:
    mesh = SparseMesh(trainers(4), rounds=35, local_steps=5)
    mesh.run()
    by_round = {round_: next(iter(masks)) for (round_, _), masks in mesh.masks.items()}
    rising = [np.frombuffer(by_round[round_], bool) for round_ in sorted(by_round)]
    assert len(rising) == 36  # and what the last one left
    assert rising[-1].any()
    assert all((before <= after).all() for before, after in pairwise(rising))


def test_masks_of_several_groups_come_together() -> None:
    mesh = SparseMesh(trainers(8), rounds=48, local_steps=5, group_size=4, seed=1)
    accuracies = mesh.run()
    masks = np.stack([node.trainer.vector()[:LARGE] == 0 for node in mesh.nodes.values()])
    assert (masks.sum(axis=1) == round(0.7 * LARGE)).all()
    alike = masks.all(axis=0).sum() / masks.any(axis=0).sum()
    by_chance = 0.7**8 / (1 - 0.3**8)
    assert alike > 0.8 > 10 * by_chance
    assert min(accuracies) > 0.9


def test_a_task_says_how_it_prunes_and_what_cannot_be_is_refused() -> None:
    said: dict[str, Any] = {
        "name": "digits",
        "data": "digits",
        "prune": {"share": 0.5, "from_round": 5, "to_round": 40},
    }
    assert task_from(said, "TASK.toml").prune == Prune(share=0.5, from_round=5, to_round=40)
    for change, why in (
        ({"policy": "robust"}, "TASK.toml: prune: a robust task has no model that several nodes hold alike"),
        ({"prune": {"share": 0.5, "from_round": 5, "to_round": 5}}, "from_round has to be before to_round"),
        ({"prune": {"share": 0.5, "to_round": 101}}, "in a task of 100 rounds"),
        ({"prune": {"share": 1.0, "to_round": 9}}, "prune.share"),
        ({"prune": {"share": 0.5, "to_round": 9, "kind": "channels"}}, "prune.kind"),
        ({"prune": {"share": 0.5, "to_rounds": 9}}, "to_round"),
    ):
        with pytest.raises(UsageError, match=why):
            task_from(said | change, "TASK.toml")


def test_a_trainer_that_goes_on_from_a_checkpoint_has_the_mask() -> None:
    one, other = (trainers(1)[0] for _ in range(2))
    assert one.sparse is not None
    one.adopt(one.sparse.thinned(one.vector(), 20, common=True), averaged=True)
    other.restore(one.vector(), one.state())
    for each in (one, other):
        each.hold_zeros(20)
        each.run_steps(3)
    assert np.array_equal(one.vector(), other.vector())
    assert msgspec.structs.asdict(PRUNE)["kind"] == "layer"
