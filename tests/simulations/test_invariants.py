"""The invariants can fail: each machine is broken on purpose, and the run says what broke and how to see it again."""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import numpy as np
import pytest
from lepton.gossip.averager import Averager, Effect, Event
from lepton.gossip.events import Finished
from lepton.mesh.admission import Admission
from lepton.mesh.errors import Refused
from lepton.mesh.identity import PeerId
from lepton.mesh.messages import unpack
from lepton.mesh.records import Content, Merged, Record, RecordStore, SignedRecord, open_record
from lepton.node.inference import session
from lepton.simulations import device, serving
from lepton.simulations.device import Machines
from lepton.simulations.faults import Crash
from lepton.simulations.run import Broken, simulate
from lepton.simulations.scenario import Link, Requests, Scenario, Task

SHORT = Scenario(
    about="short",
    nodes=4,
    duration_s=40,
    settle_s=10,
    liars=1,
    outsiders=1,
    task=Task(rounds=10, error_max=0.2),  # ten rounds are a beginning
    requests=Requests(count=20),
)
NO_LIARS = msgspec.structs.replace(SHORT, liars=0)
LOSSY = Scenario(
    about="lossy",
    nodes=6,
    duration_s=40,
    settle_s=10,
    check_interval_s=0.05,  # an old record is soon followed by a new one that hides it
    link=Link(loss=0.2, jitter_s=0.05),
    task=Task(rounds=0),
    requests=Requests(count=0),
)


def broken(machines: Machines, scenario: Scenario = SHORT) -> str:
    with pytest.raises(Broken) as caught:
        simulate(scenario, seed=3, name="short", machines=machines)
    assert "Seed 3; replay it with: lepton-sim run short --seed 3" in str(caught.value)
    assert caught.value.transcript
    return str(caught.value)


def test_the_same_runs_hold_with_sound_machines() -> None:
    simulate(SHORT, seed=3)
    simulate(NO_LIARS, seed=3)
    simulate(LOSSY, seed=3)


class Gullible(RecordStore):
    """Takes what is sent without a look at the signature."""

    def merge(self, signed: Iterable[SignedRecord], *, known: Callable[[PeerId], bool]) -> Merged:
        new = [Record(unpack(item.content, Content), item) for item in signed]
        return Merged(new=[record for record in new if known(record.owner) and self._keep(record)])


def test_a_forged_record_in_a_store_is_seen() -> None:
    assert "it is forged" in broken(Machines(store=Gullible))


class Latecomer(RecordStore):
    """Holds whatever came last for the newest."""

    def merge(self, signed: Iterable[SignedRecord], *, known: Callable[[PeerId], bool]) -> Merged:
        new = [record for record in map(open_record, signed) if known(record.owner)]
        return Merged(new=[record for record in new if record.owner != self._me and self._keep(record)])


def test_a_store_that_goes_back_is_seen() -> None:
    """It does so only when a word is overtaken, and is seen only if somebody looks in time: not under every seed."""

    def run_all() -> None:
        for seed in range(1, 7):
            simulate(LOSSY, seed=seed, machines=Machines(store=Latecomer))

    with pytest.raises(Broken, match="has gone back to an older record"):
        run_all()


def test_a_stranger_who_is_let_in_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Open(Admission):
        def admit(self, peer: PeerId, chain: Any, now: float) -> Any:
            try:
                return super().admit(peer, chain, now)
            except Refused:
                self._authorities[peer] = self.me
                return self.me

    monkeypatch.setattr(device, "Admission", Open)
    assert "not of this mesh" in broken(Machines())


class Twice(session.Session):
    def handle(self, event: session.Event, now: float) -> list[session.Effect]:
        effects = session.Session.handle(self, event, now)
        return effects * 2 if session.Done() in effects else effects


class Silent(session.Session):
    """Keeps its answer to itself."""

    def handle(self, event: session.Event, now: float) -> list[session.Effect]:
        effects = session.Session.handle(self, event, now)
        if session.Done() in effects:
            self.deadline = now + 1e9
        return [effect for effect in effects if effect != session.Done()]


class Restless(session.Session):
    """Wants to be called at once, for ever."""

    def handle(self, event: session.Event, now: float) -> list[session.Effect]:
        self.deadline = now
        return []


class Forlorn(session.Session):
    def handle(self, event: session.Event, now: float) -> list[session.Effect]:
        return [session.Failed("it did not feel like it")]


def test_a_request_that_ends_twice_is_seen() -> None:
    assert "ended 2 times" in broken(Machines(session=Twice))


def test_a_request_that_never_ends_is_seen() -> None:
    assert "never ended" in broken(Machines(session=Silent))


def test_a_machine_for_which_time_stands_still_is_seen() -> None:
    assert "time stands still" in broken(Machines(session=Restless))


def test_requests_that_fail_are_counted() -> None:
    assert "20 requests failed, at most 0 may" in broken(Machines(session=Forlorn))


def test_a_wrong_answer_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "run_layers", lambda first, end, x: x + 1)
    assert "right is" in broken(Machines())


class Biased(Averager):
    def handle(self, event: Event, now: float) -> list[Effect]:
        effects = super().handle(event, now)
        return [
            Finished(effect.round, effect.vector + np.float32(0.1), effect.report)
            if isinstance(effect, Finished)
            else effect
            for effect in effects
        ]


class Failing(Averager):
    def handle(self, event: Event, now: float) -> list[Effect]:
        raise ZeroDivisionError("a bug")


def test_a_result_that_is_not_the_mean_of_those_it_names_is_seen() -> None:
    assert "is not the mean of" in broken(Machines(averager=Biased))


def test_a_machine_that_raises_is_seen() -> None:
    assert "a machine raised ZeroDivisionError: a bug" in broken(Machines(averager=Failing))


def test_learning_that_ends_far_from_the_optimum_is_seen() -> None:
    strict = Scenario(about="strict", nodes=3, duration_s=40, task=Task(rounds=1, error_max=1e-6))
    assert "from the optimum" in broken(Machines(), strict)


def test_learning_that_does_not_end_is_seen() -> None:
    assert "is training at the end" in broken(
        Machines(), Scenario(about="", nodes=3, duration_s=25, task=Task(rounds=99), requests=Requests(count=0))
    )


def test_a_view_that_does_not_converge_is_seen() -> None:
    late = Scenario(
        about="late",
        nodes=3,
        duration_s=20,
        settle_s=1,
        link=Link(detection_s=100),
        task=Task(rounds=0),
        requests=Requests(count=0),
        crash=(Crash(at_s=19.99, node="n1", restart_after_s=0.005),),
    )
    assert "at the end" in broken(Machines(), late)
