"""What simulations found, held at the machine that it was found in."""

from typing import Any

import numpy as np
import pytest
from lepton.gossip.averager import Averager
from lepton.gossip.events import Expired, Finished, Ready, Received, Send
from lepton.simulations.faults import Crash, Revoke
from lepton.simulations.run import simulate
from lepton.simulations.scenario import Requests, Scenario, Statements, Task

MEMBERS = ("a", "b")
ROUND = 2  # as far ahead as messages are kept for


def averager(me: str, first_round: int = 0) -> Averager:
    return Averager(me, "task", mesh=b"mesh", dimension=8, codec_name="float32", first_round=first_round)


def ready(round_: int, value: float) -> Ready:
    return Ready(round_, np.full(8, value, dtype=np.float32), 1.0, MEMBERS)


def test_who_skips_to_a_round_has_what_was_sent_for_it_before() -> None:
    """A machine made anew in its place waits 20 s for what came already, is overtaken, skips again, and so on: after a
    partition was healed one half of the nodes never finished a round of its own.
    """
    behind, ahead = averager("a"), averager("b", first_round=ROUND)
    behind.handle(ready(0, 1.0), now=0.0)  # nobody is in this round any more
    for effect in ahead.handle(ready(ROUND, 3.0), now=0.0):
        if isinstance(effect, Send):
            behind.handle(Received("b", effect.message), now=0.1)

    behind.skip_to(ROUND)

    assert not behind.running
    assert behind.round == ROUND
    sent = [effect.message for effect in behind.handle(ready(ROUND, 1.0), now=0.2) if isinstance(effect, Send)]
    assert {type(message).__name__ for message in sent} == {"Status", "Contribution"}, "the other's word is in already"


def test_nobody_skips_back() -> None:
    machine = averager("a", first_round=5)
    machine.skip_to(3)
    assert machine.round == 5


@pytest.mark.parametrize("round_", [0, 1, 4])
def test_what_was_kept_for_rounds_that_are_skipped_is_dropped(round_: int) -> None:
    machine, other = averager("a"), averager("b", first_round=round_)
    for effect in other.handle(ready(round_, 3.0), now=0.0):
        if isinstance(effect, Send):
            machine.handle(Received("b", effect.message), now=0.0)
    machine.skip_to(4 + 1)
    assert machine.counts.dropped + machine.counts.behind == 1


def finish(machine: Averager, effects: list[Any]) -> Finished:
    """Wait for the end of a round, which is soon: those who have gone on are asked some times what came of it."""
    while not any(isinstance(effect, Finished) for effect in effects):
        assert machine.deadline < 4.0
        effects = list(machine.handle(Expired(), machine.deadline))
    return next(effect for effect in effects if isinstance(effect, Finished))


def contributions(me: str, round_: int) -> list[Received]:
    effects = averager(me, first_round=round_).handle(ready(round_, 3.0), now=0.0)
    return [Received(me, effect.message) for effect in effects if isinstance(effect, Send)]


def test_nobody_waits_for_a_peer_that_is_in_a_later_round() -> None:
    """With a tenth of all messages lost, nodes waited 20 s for what would never come, and were overtaken meanwhile."""
    machine = averager("a")
    machine.handle(ready(0, 1.0), now=0.0)
    (later,) = contributions("b", 1)
    finished = finish(machine, machine.handle(later, now=0.5))
    assert {absence.why for absence in finished.report.missing} == {"the peer is in a later round"}
    assert machine.round == 1
    sent = machine.handle(ready(1, 1.0), now=1.0)
    assert len(sent) == 2, "what came early is used in its own round: my values go out at once"


def test_who_begins_late_does_not_wait_for_those_who_have_gone_on() -> None:
    machine = averager("a")
    for event in contributions("b", 1):
        machine.handle(event, now=0.0)
    assert finish(machine, machine.handle(ready(0, 1.0), now=0.1)).round == 0


def test_one_who_has_gone_on_is_not_waited_for_but_the_others_are() -> None:
    members = ("a", "b", "c")
    machine = averager("a")
    machine.handle(Ready(0, np.ones(8, dtype=np.float32), 1.0, members), now=0.0)
    for event in contributions("b", 1):
        machine.handle(event, now=0.1)
    assert machine.running


def test_who_was_away_while_another_was_revoked_forgets_its_records_when_it_is_back() -> None:
    """It held them for good, and its picture was never again the same as that of others."""
    scenario = Scenario(
        about="away",
        nodes=4,
        duration_s=60,
        task=Task(rounds=0),
        requests=Requests(count=0),
        statements=Statements(interval_s=3),
        crash=(Crash(at_s=15, node="n2", restart_after_s=10),),
        revoke=(Revoke(at_s=20, node="n3"),),
    )
    simulate(scenario, seed=1)
