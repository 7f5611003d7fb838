"""A scenario's words name an exchange; what does not go together is refused with what would."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from lepton.gossip.errors import BadSetup
from lepton.simulations.fleet.exchange import Exchange
from lepton.simulations.fleet.exchanges.choice import exchange_for
from lepton.simulations.fleet.exchanges.grouped import Grouped
from lepton.simulations.fleet.exchanges.whole import Complete
from lepton.simulations.fleet.scenario import Averaging, CodecName, Scenario, Topology

from .walking import DIMENSION, moment, random_models


def chosen(nodes: int = 40, **said: Any) -> Exchange:
    return exchange_for(Scenario(about="one", nodes=nodes, rounds=1, averaging=Averaging(**said)))


@pytest.mark.parametrize("codec", get_args(CodecName))
@pytest.mark.parametrize("topology", get_args(Topology))
def test_every_topology_mixes_with_every_codec_and_loses_nothing_but_precision(topology: Any, codec: Any) -> None:
    before, after = random_models(40, 300, 1), random_models(40, 300)
    here, own = np.arange(40) != 3, after.clone()
    mixed = chosen(topology=topology, codec=codec).mix(moment(before, after, here=here, loss=0.05))
    assert mixed.models.dtype == torch.float32
    assert torch.isfinite(mixed.models).all()
    if topology != "alone":  # the engine has the models of who is away as they were
        assert torch.equal(mixed.models[3], before[3])
        assert not torch.equal(mixed.models[0], own[0])
        assert np.count_nonzero(mixed.bytes_sent) >= 38  # the one who has only node 3 to send to sends nothing
    assert mixed.bytes_sent[3] == mixed.bytes_received[3] == 0
    drift = (mixed.models[here] - own[here]).mean(0)
    assert float(drift.abs().max()) < 0.25
    assert mixed.averaged[3] == 1
    assert mixed.hops == {"groups": 4, "pull": 2, "complete": 2, "alone": 0}.get(topology, 1)


def test_the_same_dice_give_the_same_bits() -> None:
    before, after = random_models(40, 300, 1), random_models(40, 300)
    for topology in get_args(Topology):
        exchange = chosen(topology=topology, codec="int8")
        one, other = (exchange.mix(moment(before, after.clone(), loss=0.1)) for _ in range(2))
        assert torch.equal(one.models, other.models)
        assert np.array_equal(one.bytes_sent, other.bytes_sent)


@pytest.mark.parametrize(
    ("said", "instead"),
    [
        ({"policy": "private", "codec": "int8"}, "float32"),
        ({"policy": "private", "topology": "ring"}, "groups"),
        ({"policy": "private", "group_size": 4}, "8 or 16"),
        ({"policy": "robust"}, "pull"),
        ({"policy": "robust", "topology": "pull", "degree": 2}, "3 models"),
        ({"noise": 1.0}, "private"),
    ],
)
def test_what_does_not_go_together_is_refused(said: dict[str, Any], instead: str) -> None:
    with pytest.raises(BadSetup, match=instead):
        chosen(**said)


def test_policies_choose_their_machines() -> None:
    private = chosen(policy="private", noise=0.1, clip=2.0)
    robust = chosen(policy="robust", topology="pull", degree=8)
    assert (type(private).__name__, type(robust).__name__) == ("Hidden", "Pulled")


@pytest.mark.parametrize("weighted", [True, False])
def test_complete_is_the_mean_of_all_who_are_here(weighted: bool) -> None:
    after, weights = random_models(40), np.arange(1.0, 41)
    mixed = chosen(topology="complete", weighted=weighted).mix(moment(after, after.clone(), weights=weights))
    shares = weights / weights.sum() if weighted else np.full(40, 1 / 40)
    np.testing.assert_allclose(mixed.models, np.tile(shares @ after.numpy(), (40, 1)), atol=1e-6)
    assert mixed.bytes_sent.sum() == pytest.approx(2 * 39 * 4 * DIMENSION, abs=40)
    assert mixed.averaged.tolist() == [40] * 40


def test_complete_rounds_differences_where_all_began_alike() -> None:
    before = random_models(1, 512).repeat(8, 1)
    after = before + random_models(8, 512, 1) * 1e-3
    exchange = chosen(8, topology="complete", codec="int8")
    assert isinstance(exchange, Complete)
    error = exchange.mix(moment(before, after.clone())).models[0] - after.mean(0)
    assert float(error.abs().max()) < 2e-4


def test_memory_beyond_the_models_does_not_grow_with_the_nodes() -> None:
    held = []
    for nodes in (2048, 8192):
        exchange = Grouped(nodes, chosen(codec="int8")._rounding, size=8)  # type: ignore[attr-defined]
        exchange.mix(moment(random_models(nodes, 256, 1), random_models(nodes, 256)))
        held.append(sum(one.numel() for one in exchange._scratch._held.values()))
    assert held[0] == held[1]


@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_complete_takes_ten_thousand_nodes(codec: CodecName) -> None:
    """What grew with their square would not fit into memory."""
    after = random_models(10_000, 300)
    mean = after.mean(0)
    mixed = chosen(10_000, topology="complete", codec=codec).mix(moment(random_models(10_000, 300, 1), after))
    np.testing.assert_allclose(mixed.models[-1], mean, atol=2e-3)
