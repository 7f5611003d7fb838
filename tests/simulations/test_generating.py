"""Sessions of a language model in the simulated world: whole and in order whatever dies; broken machines are seen."""

from collections.abc import Callable

import pytest
from lepton.node.generation import asker, stage
from lepton.node.generation.steps import Drop
from lepton.simulations.device import Machines
from lepton.simulations.language import Language
from lepton.simulations.run import Broken, simulate
from lepton.simulations.scenario import Requests, Scenario, Task

SHORT = Scenario(
    about="short",
    nodes=6,
    duration_s=25,
    settle_s=10,
    task=Task(rounds=0),
    requests=Requests(count=0),
    language=Language(requests=12, interval_s=0.3),
)


def broken(machines: Machines) -> str:
    with pytest.raises(Broken) as caught:
        simulate(SHORT, seed=3, machines=machines)
    return str(caught.value)


def test_every_session_is_answered_where_nothing_goes_wrong() -> None:
    told = simulate(SHORT, seed=3).transcript
    assert sum(" tokens in " in line for line in told) == 12
    assert not any("pauses" in line or "failed" in line for line in told)


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
