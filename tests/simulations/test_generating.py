"""Sessions of a language model in the simulated world: whole and in order whatever dies; broken machines are seen."""

from collections.abc import Callable

import msgspec
import pytest
from lepton.node.generation import asker, stage
from lepton.node.generation.steps import Drop
from lepton.simulations.device import Machines
from lepton.simulations.faults import OneWay, Revoke
from lepton.simulations.generating import Generating
from lepton.simulations.language import Language
from lepton.simulations.run import Broken, simulate
from lepton.simulations.scenario import Requests, Scenario, Task, load

SHORT = Scenario(
    about="short",
    nodes=6,
    duration_s=25,
    settle_s=10,
    task=Task(rounds=0),
    requests=Requests(count=0),
    language=Language(requests=12, interval_s=0.3),
)


def broken(machines: Machines, read: Scenario = SHORT) -> str:
    with pytest.raises(Broken) as caught:
        simulate(read, seed=3, machines=machines)
    return str(caught.value)


def test_every_session_is_answered_where_nothing_goes_wrong() -> None:
    told = simulate(SHORT, seed=3).transcript
    assert sum(" tokens in " in line for line in told) == 12
    assert not any("pauses" in line or "failed" in line for line in told)


def test_sessions_go_on_whatever_dies_stops_or_is_cut_off_in_mid_answer() -> None:
    outcome = simulate(load("answers"), seed=2)
    figures, told = outcome.figures, outcome.transcript
    assert figures.sessions_answered + figures.sessions_abandoned == figures.sessions > 80
    assert figures.sessions_mended > 10
    assert figures.crashes == 2
    assert sum(" >| " in line and "is cut" in line for line in told) == 2


def test_the_same_seed_gives_the_same_sessions() -> None:
    few = msgspec.structs.replace(SHORT, duration_s=15, settle_s=3, language=Language(requests=4))
    assert simulate(few, seed=5).transcript == simulate(few, seed=5).transcript != simulate(few).transcript


def changed(what: Callable[[asker.AskerEffect], list[asker.AskerEffect]]) -> Machines:
    """An asker that does something else with what it gives out."""

    class Other(asker.Asker):
        def handle(self, event: asker.AskerEvent, now: float) -> list[asker.AskerEffect]:
            return [other for effect in super().handle(event, now) for other in what(effect)]

    return Machines(asker=Other)


def test_a_wrong_token_is_seen() -> None:
    assert "right is" in broken(
        changed(lambda e: [asker.Emit(e.position, e.id ^ 1)] if isinstance(e, asker.Emit) else [e])
    )


def test_a_token_that_comes_twice_is_seen() -> None:
    assert "; next is" in broken(changed(lambda e: [e, e] if isinstance(e, asker.Emit) else [e]))


def test_a_token_that_is_lost_is_seen() -> None:
    assert "; next is" in broken(changed(lambda e: [] if isinstance(e, asker.Emit) and e.position % 9 == 0 else [e]))


def test_a_session_that_ends_before_its_last_token_is_seen() -> None:
    def early(effect: asker.AskerEffect) -> list[asker.AskerEffect]:
        return [effect, asker.Finished("length")] if isinstance(effect, asker.Emit) else [effect]

    assert "tokens and length; right is" in broken(changed(early))


def test_a_session_that_ends_twice_is_seen() -> None:
    assert "ended 2 times" in broken(changed(lambda e: [e, e] if isinstance(e, asker.Finished) else [e]))


def test_a_session_that_never_ends_is_seen() -> None:
    assert "never ended" in broken(changed(lambda e: [] if isinstance(e, asker.Finished) else [e]))


def test_a_session_that_fails_is_seen() -> None:
    failed = asker.Failed("failed", "it did not feel like it")
    assert "12 sessions failed, at most 0 may" in broken(
        changed(lambda e: [failed] if isinstance(e, asker.Finished) else [e])
    )


def test_a_failure_without_a_reason_is_seen() -> None:
    failed = asker.Failed("failed", "")
    assert "without a reason" in broken(changed(lambda e: [failed] if isinstance(e, asker.Finished) else [e]))


class Hoarder(stage.Stage):
    """Keeps every session for ever."""

    def _end(self, session: object) -> None:
        return


class Forgetful(stage.Stage):
    """Gives back what sessions were promised, and never their caches."""

    def handle(self, event: stage.Event, now: float, *, more: bool = False) -> list[stage.Effect]:
        self._ops = [op for op in self._ops if not isinstance(op, Drop)]
        return super().handle(event, now, more=more)


def test_a_stage_that_holds_what_has_ended_is_seen() -> None:
    assert "sessions at the end" in broken(Machines(stage=Hoarder))


def test_caches_that_are_not_given_back_are_seen() -> None:
    assert "caches take" in broken(Machines(stage=Forgetful))


class Mute(stage.Stage):
    """Keeps the tokens that it draws to itself."""

    def _drawn(self, session: object, token: int) -> None:
        return


class Generous(stage.Stage):
    """Has always room for one more."""

    def _make_room(self, positions: int) -> bool:
        return True


def test_a_session_that_could_go_on_and_does_not_is_seen() -> None:
    few = msgspec.structs.replace(SHORT, duration_s=75, language=Language(requests=1))
    assert "has waited for token 0 since 10.000 s, and all along there was a route" in broken(Machines(stage=Mute), few)


def test_a_stage_that_promises_more_memory_than_it_has_is_seen() -> None:
    many = msgspec.structs.replace(SHORT, language=Language(requests=30, interval_s=0.01, sessions=1, step_s=0.1))
    assert "for caches" in broken(Machines(stage=Generous), many)


def test_a_device_that_goes_on_to_serve_who_is_thrown_out_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose answers do not come is told for a second before it is hung up on."""
    silent = OneWay(at_s=10.9, heal_s=13, senders=("n3",), receivers=("n0", "n1", "n2", "n4", "n5"))
    questions = Language(requests=40, interval_s=0.1)
    thief = msgspec.structs.replace(SHORT, language=questions, one_way=(silent,), revoke=(Revoke(at_s=11, node="n3"),))
    assert simulate(thief, seed=3).figures.sessions_answered > 20
    monkeypatch.setattr(Generating, "_expelled", lambda _self, _peer: None)
    assert "of whose revocation it has heard" in broken(Machines(), thief)
