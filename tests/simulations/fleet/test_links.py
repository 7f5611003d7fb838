"""Graphs of a fleet: the weights of the machines' graphs, doubly stochastic, and nothing lost but what is said."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lepton.gossip.graphs import Circulant, Graph, OnePeerExponential
from lepton.simulations.fleet.exchanges import links
from lepton.simulations.fleet.exchanges.linked import Linked
from lepton.simulations.fleet.exchanges.links import Draw, Links
from lepton.simulations.fleet.exchanges.ranks import names_of
from lepton.simulations.fleet.exchanges.rounding import rounding

from .walking import moment, random_models

GRAPHS = ("ring", "regular", "epidemic", "exponential", "hypercube")


def graph(name: str, nodes: int, degree: int = 4) -> Draw:
    match name:
        case "regular":
            return links.regular(nodes, degree, 3)
        case "epidemic":
            return links.epidemic(nodes, degree)
        case _:
            made: Draw = getattr(links, name)(nodes)
            return made


def matrix(drawn: Links, nodes: int) -> np.ndarray:
    whole = np.zeros((nodes, nodes))
    np.add.at(whole, (drawn.to, drawn.of), drawn.weight)
    assert np.count_nonzero(whole) == len(drawn.to)  # nobody is linked twice
    np.fill_diagonal(whole, whole.diagonal() + 1 - whole.sum(1))
    return whole


def everybody(nodes: int) -> np.ndarray:
    return np.ones(nodes, dtype=bool)


@given(st.sampled_from(GRAPHS), st.integers(1, 40), st.integers(1, 9), st.integers(0, 7))
def test_every_matrix_is_doubly_stochastic(name: str, nodes: int, degree: int, round_: int) -> None:
    mixing = matrix(graph(name, nodes, degree)(round_, everybody(nodes), np.random.default_rng(round_)), nodes)
    np.testing.assert_allclose(mixing.sum(0), 1)
    np.testing.assert_allclose(mixing.sum(1), 1)
    assert mixing.min() >= 0


@given(st.integers(1, 60), st.integers(1, 8), st.integers(0, 99))
def test_a_random_graph_gives_everybody_as_many_neighbours(nodes: int, degree: int, seed: int) -> None:
    pairs = links.random_regular(nodes, degree, np.random.default_rng(seed))
    degrees = np.bincount(pairs.ravel(), minlength=nodes)
    wanted = min(degree, nodes - 1)
    assert degrees.max(initial=0) <= wanted
    if nodes > 2 * degree + 2:
        assert degrees.sum() == nodes * wanted // 2 * 2


@pytest.mark.parametrize(("name", "machines"), [("ring", Circulant()), ("exponential", OnePeerExponential())])
@pytest.mark.parametrize("nodes", [1, 2, 3, 8, 13])
def test_the_weights_are_those_of_the_machines_graphs(name: str, machines: Graph, nodes: int) -> None:
    names = names_of(nodes)
    for round_ in range(5):
        drawn = graph(name, nodes)(round_, everybody(nodes), np.random.default_rng(0))
        found = [
            {names[of]: weight for to, of, weight in zip(drawn.to, drawn.of, drawn.weight, strict=True) if to == me}
            for me in range(nodes)
        ]
        assert found == [machines.heard_by(name, names, round_) for name in names]


@pytest.mark.parametrize("name", GRAPHS)
def test_mixing_is_the_product_with_the_matrix(name: str) -> None:
    before, after = random_models(16, 700, 1), random_models(16, 700)
    exchange = Linked(graph(name, 16), rounding("float32"))
    expected = matrix(exchange.draw(2, everybody(16), np.random.default_rng(5)), 16) @ after.double().numpy()
    mixed = exchange.mix(moment(before, after.clone(), round=2))
    np.testing.assert_allclose(mixed.models, expected, atol=1e-5)
    assert mixed.averaged.tolist() == [1 + {"ring": 2, "regular": 4, "epidemic": 4}.get(name, 1)] * 16


@pytest.mark.parametrize("name", ["ring", "regular", "epidemic", "hypercube"])
def test_who_is_away_takes_no_mass_along(name: str) -> None:
    before, after = random_models(32, 300, 1), random_models(32, 300)
    here = np.arange(32) % 5 > 0
    mixed = Linked(graph(name, 32), rounding("float32")).mix(moment(before, after.clone(), here=here))
    np.testing.assert_allclose(mixed.models[here].sum(0), after[here].sum(0), atol=1e-4)
    assert torch.equal(mixed.models[~here], before[~here])
    assert not mixed.bytes_sent[~here].any()


def test_pairs_keep_their_mass_whatever_is_lost_and_other_links_nearly() -> None:
    after = random_models(32, 300)
    pairs = Linked(graph("hypercube", 32), rounding("float32"), in_pairs=True).mix(
        moment(after, after.clone(), loss=0.3)
    )
    np.testing.assert_allclose(pairs.models.sum(0), after.sum(0), atol=1e-4)
    assert 0 < (pairs.averaged == 2).sum() < 32
    one_way = Linked(graph("epidemic", 32), rounding("float32")).mix(moment(after, after.clone(), loss=0.3)).models
    assert not np.allclose(one_way.sum(0), after.sum(0), atol=1e-3)
    same = Linked(graph("epidemic", 32), rounding("float32")).mix(moment(after, torch.ones(32, 300), loss=0.3)).models
    np.testing.assert_allclose(same, 1, rtol=1e-6)  # rows add up to 1 in any case


def test_a_model_is_rounded_once_for_all_who_hear_it_and_not_for_oneself() -> None:
    after = random_models(2, 512)
    mixed = Linked(graph("ring", 2), rounding("int8")).mix(moment(after, after.clone())).models
    heard = 2 * (mixed[0] - after[0] / 2)  # what node 0 heard of node 1
    errors = (heard - after[1]).abs() / (after[1].view(2, 256).abs().amax(1) / 127).repeat_interleave(256)
    assert 0.1 < float(errors.mean()) < 0.6
    assert float(errors.max()) < 1.02
