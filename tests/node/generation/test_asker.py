"""The asking side, step by step: whom it blames, how long it waits, and what it says when there is no way."""

import random
from collections.abc import Collection

import pytest
from lepton.mesh.identity import PeerId
from lepton.node.generation.apart import Pair
from lepton.node.generation.asker import (
    Asked,
    Asker,
    AskerEffect,
    Cancel,
    Emit,
    Failed,
    Finished,
    Paused,
    Picture,
)
from lepton.node.generation.events import Came, Expired, Lost, Send
from lepton.node.generation.messages import Alive, Broke, Close, Data, Declined, Need, Open, Probe, Said, Token
from lepton.node.generation.route import Load, Route, Run, Serving, choose
from lepton.node.generation.sampling import Sampling

ME, A, B, B2 = map(PeerId, ("me", "a", "b", "b2"))
TWO: dict[Run, list[PeerId]] = {(0, 2): [A], (2, 4): [B, B2]}
ONE: dict[Run, list[PeerId]] = {(0, 2): [A], (2, 4): [B]}
ID = bytes(16)


def load(peer: PeerId, _run: Run) -> Load:
    """The first by name is the quickest."""
    return Load(0.001 * len(peer))


def asker(count: int = 3) -> Asker:
    asked = Asked(
        session=ID, name="toy", version=1, layers=4, prompt=(5, 6), positions=2 + count, stop_ids=frozenset({9}),
        sampling=Sampling(),
    )  # fmt: skip

    def chosen(
        s: Serving, avoid: Collection[PeerId], keep: Collection[PeerId], apart: Collection[Pair]
    ) -> Route | None:
        return choose(s, 4, rng=random.Random(0), avoid=avoid, keep=keep, apart=apart, load=load)

    return Asker(ME, asked, chosen, 0.0)


def said(effects: list[AskerEffect], kind: type) -> list[tuple[PeerId, Said]]:
    found = [(e.peer, e.said) for e in effects if isinstance(e, Send)]
    return [(peer, one) for peer, one in found if isinstance(one, kind)]


def begun(serving: dict[Run, list[PeerId]] = TWO) -> Asker:
    machine = asker()
    ((peer, opened),) = said(machine.handle(Picture(serving), 0.0), Open)
    assert isinstance(opened, Open)
    assert (peer, opened.route, opened.known, opened.epoch) == (A, (A, B), 2, 1)
    need = Came(A, Need(session=ID, epoch=1, position=0, loads=(0.01, 0.02)))
    assert said(machine.handle(need, 0.1), Data) == [(A, Data(ID, 1, 0, (5, 6)))]
    assert machine.loads == {(A, (0, 2)): 0.01, (B, (2, 4)): 0.02}
    return machine


def test_tokens_are_given_out_once_and_in_order_and_all_is_closed() -> None:
    machine = begun()
    assert machine.handle(Came(B, Token(ID, 1, 2, 7)), 0.2) == [Emit(2, 7)]
    for passed_over in (Came(B, Token(ID, 1, 2, 7)), Came(B, Token(ID, 1, 4, 7)), Came(A, Token(ID, 1, 3, 7)),
                        Came(B, Token(ID, 0, 3, 7)), Came(B2, Token(ID, 1, 3, 7))):  # fmt: skip
        assert machine.handle(passed_over, 0.2) == []
    effects = machine.handle(Came(B, Token(ID, 1, 3, 9)), 0.3)
    assert effects[:2] == [Emit(3, 9), Finished("stop")]
    assert [peer for peer, _ in said(effects, Close)] == [A, B]
    assert machine.handle(Came(B, Token(ID, 1, 4, 1)), 0.4) == []


@pytest.mark.parametrize(
    "event",
    [
        Lost(B, "left the mesh"),
        Lost(B, "was lost", left=False),
        Came(A, Broke(session=ID, epoch=1, peer=B, reason="gone")),
        Came(B, Declined(session=ID, epoch=1, why="gone", reason="it moves")),
        Came(B, Declined(session=ID, epoch=1, why="busy", reason="full")),
    ],
)
def test_a_replica_takes_over_and_the_token_is_the_next(event: Came | Lost) -> None:
    machine = begun()
    machine.handle(Came(B, Token(ID, 1, 2, 7)), 0.2)
    effects = machine.handle(event, 0.3)
    ((_, opened),) = said(effects, Open)
    assert isinstance(opened, Open)
    assert (opened.route, opened.known, opened.epoch) == ((A, B2), 3, 2)
    assert any(isinstance(effect, Paused) for effect in effects)
    assert machine.handle(Came(B, Token(ID, 1, 3, 8)), 0.4) == []  # of the old epoch
    machine.handle(Came(A, Need(session=ID, epoch=2, position=2)), 0.4)
    assert machine.handle(Came(B2, Token(ID, 2, 3, 8)), 0.5) == [Emit(3, 8)]
    assert machine.tally.pauses == [pytest.approx(0.2)]


def test_a_stage_that_says_nothing_is_asked_and_then_left() -> None:
    machine = begun()
    effects = machine.handle(Expired(), machine.deadline)
    assert [peer for peer, _ in said(effects, Probe)] == [A, B]
    machine.handle(Came(A, Alive(session=ID, epoch=1, state="idle", length=2)), machine.deadline - 0.1)
    effects = machine.handle(Expired(), machine.deadline)
    assert [peer for peer, _ in said(effects, Close)] == [B]
    ((_, opened),) = said(effects, Open)
    assert isinstance(opened, Open)
    assert opened.route == (A, B2)


def test_stages_that_work_are_waited_for_and_idle_ones_are_opened_anew() -> None:
    machine = begun(ONE)

    def probe(state: str, length: int) -> list[AskerEffect]:
        assert said(machine.handle(Expired(), machine.deadline), Probe)
        idle = Alive(session=ID, epoch=1, state="idle", length=length, asked=True)
        machine.handle(Came(A, idle), machine.deadline)
        alive = Alive(session=ID, epoch=1, state=state, length=length)  # type: ignore[arg-type]
        return machine.handle(Came(B, alive), machine.deadline)

    assert all(probe("working", 2) == [] for _ in range(50))
    assert all(probe("idle", length) == [] for length in range(20))  # it moves
    for _ in range(machine._config.quiet_max - 1):
        assert probe("idle", 19) == []
    ((_, opened),) = said(probe("idle", 19), Open)
    assert isinstance(opened, Open)
    assert (opened.route, opened.epoch) == ((A, B), 2)


def test_without_a_route_it_waits_and_says_what_is_missing() -> None:
    machine = asker()
    machine.handle(Picture({(0, 2): [A]}), 0.0)
    effects: list[AskerEffect] = []
    while not machine.over:
        effects = machine.handle(Picture({(0, 2): [A]}), machine.deadline)
    assert effects == [Failed("link", "No next token within 60 s: nobody who is here serves layer 2 of 4 of 'toy'.")]


def test_caches_are_kept_while_layers_are_loaded_elsewhere() -> None:
    machine = begun(ONE)
    machine.handle(Came(B, Token(ID, 1, 2, 7)), 0.2)
    effects = machine.handle(Lost(B, "left the mesh"), 0.3)
    assert effects == [Paused("b left the mesh")]
    assert [peer for peer, _ in said(machine.handle(Picture({(0, 2): [A]}), machine.deadline), Probe)] == [A, B]
    ((_, opened),) = said(machine.handle(Picture({(0, 2): [A], (2, 4): [B2]}), 9.0), Open)
    assert isinstance(opened, Open)
    assert opened.route == (A, B2)


@pytest.mark.parametrize(("why", "attempts"), [("usage", 1), ("refused", 1), ("busy", 2), ("failed", 2)])
def test_what_stages_say_is_the_reason(why: str, attempts: int) -> None:
    machine = begun()
    effects: list[AskerEffect] = []
    for _ in range(attempts):
        last = machine.route.peers[-1]
        declined = Declined(session=ID, epoch=machine.tally.attempts, why=why, reason="so it is")  # type: ignore[arg-type]
        effects = machine.handle(Came(last, declined), 0.3)
    (failed,) = [effect for effect in effects if isinstance(effect, Failed)]
    assert (failed.why, failed.reason, machine.over) == (why, "so it is", True)


def test_who_does_not_want_it_any_more_has_it_closed() -> None:
    machine = begun()
    effects = machine.handle(Cancel(), 0.3)
    assert [peer for peer, _ in said(effects, Close)] == [A, B]
    assert machine.over


def test_whom_one_stage_cannot_reach_is_reached_through_another() -> None:
    a2 = PeerId("a2")
    machine = begun({(0, 2): [A, a2], (2, 4): [B]})
    effects = machine.handle(Came(A, Broke(session=ID, epoch=1, peer=B, reason="no way")), 0.3)
    ((_, opened),) = said(effects, Open)
    assert isinstance(opened, Open)
    assert opened.route == (a2, B)


def test_who_has_no_route_is_told_at_once_and_fails_soon_where_nobody_is_about_to_serve() -> None:
    lacking = Picture({(0, 2): [A]}, "no devices that are here can hold it")
    machine = asker()
    (paused,) = machine.handle(lacking, 0.0)
    assert paused == Paused("nobody who is here serves layer 2 of 4 of 'toy': no devices that are here can hold it")
    assert machine.handle(lacking, 4.9) == []  # said once; the picture may still grow
    (failed,) = machine.handle(lacking, 5.0)
    assert failed == Failed("link", "'toy' cannot be answered from: no devices that are here can hold it.")
    assert machine.over


def test_who_had_a_route_waits_for_a_device_that_may_come_back_but_not_for_an_older_version() -> None:
    machine = begun()
    machine.handle(Lost(A, "left the mesh"), 1.0)
    gone = {(2, 4): [B, B2]}
    assert not said(machine.handle(Picture(gone, "12 GB of memory for serving are missing"), 30.0), Close)
    failed, *_closes = machine.handle(Picture(gone, "version 2 of it is served now", for_good=True), 31.0)
    assert failed == Failed("link", "'toy' cannot be answered from: version 2 of it is served now.")


def test_a_session_goes_on_with_who_serves_now_and_not_with_who_did_when_it_began() -> None:
    machine = begun({(0, 2): [A], (2, 4): [B]})
    assert machine.handle(Picture({(0, 2): [A], (2, 4): [B2]}), 0.1) == []
    ((_, opened),) = said(
        machine.handle(Came(B, Declined(session=ID, epoch=1, why="gone", reason="it drains")), 0.2), Open
    )
    assert isinstance(opened, Open)
    assert opened.route == (A, B2)
