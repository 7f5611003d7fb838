"""A session stays with stages that round alike as long as there are any, and its user hears when there are none."""

import random
from collections.abc import Mapping
from functools import partial

from lepton.mesh.identity import PeerId
from lepton.node.generation.alike import Alike
from lepton.node.generation.route import Load, Route, Serving, choose

C, T = "compiled-1", "torch-2.13.0 x86_64 AVX2 1"
KINDS = {PeerId(name): C if name[0] == "c" else T for name in ("c1", "c2", "c3", "t1", "t2", "t3")}


def peers(*names: str) -> list[PeerId]:
    return [PeerId(name) for name in names]


class Session:
    """An `Alike` with what it told, over two stages."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.alike = Alike(self.told.append)

    def go(
        self, serving: Serving, *, begun: bool, avoid: tuple[str, ...] = (), loads: Mapping[str, float] | None = None
    ) -> tuple[str, ...]:
        find = partial(
            choose,
            layers=4,
            avoid=peers(*avoid),
            rng=random.Random(0),
            load=lambda peer, _: Load((loads or {}).get(peer, 0.01)),
        )
        route = self.alike.choose(find, serving, KINDS, begun=begun)
        assert isinstance(route, Route | None)
        return () if route is None else route.peers


def two(first: str, second: str) -> Serving:
    return {(0, 2): peers(*first.split()), (2, 4): peers(*second.split())}


def test_a_session_begins_on_stages_that_round_alike_though_others_are_quicker() -> None:
    serving, quick = two("c1 t1", "c2 t2"), {"t1": 0.0001, "c2": 0.0001}
    session = Session()
    assert session.go(serving, begun=False, loads=quick) == ("c1", "c2")
    assert session.go({(0, 4): peers("c3", "t3")}, begun=False, loads={"t3": 0.0001}) == ("t3",)  # any one will do
    assert session.told == []


def test_who_takes_over_rounds_as_who_died_did_as_long_as_there_is_one() -> None:
    serving, quick = two("c1 c3 t1", "c2"), {"c1": 0.001, "t1": 0.0001}
    session = Session()
    assert session.go(serving, begun=False, loads=quick) == ("c1", "c2")
    assert session.go(serving, begun=True, avoid=("c1",), loads=quick) == ("c3", "c2")
    assert session.told == []
    assert session.go(serving, begun=True, avoid=("c1", "c3"), loads=quick) == ("t1", "c2")
    (told,) = session.told
    assert told.startswith(f"goes on with other arithmetic ({C} and {T}) than it began with ({C})")
    assert session.go(serving, begun=True, avoid=("c1", "c3"), loads=quick) == ("t1", "c2")
    assert len(session.told) == 1


def test_stages_that_never_round_alike_serve_and_it_is_told_once() -> None:
    session = Session()
    for begun in (False, True):
        assert session.go(two("c1", "t2"), begun=begun) == ("c1", "t2")
    assert len(session.told) == 1
    assert "do not round alike" in session.told[0]


def test_before_the_first_token_nothing_has_to_stay_alike() -> None:
    session = Session()
    assert session.go(two("c1", "c2"), begun=False) == ("c1", "c2")
    assert session.go(two("t1", "t2"), begun=False) == ("t1", "t2")
    assert session.go({}, begun=True) == ()
    assert session.told == []
