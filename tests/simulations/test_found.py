"""What simulations found, held at the machine that it was found in."""

import numpy as np
import pytest

from lepton.gossip.averager import Averager
from lepton.gossip.events import Ready, Received, Send

MEMBERS = ("a", "b")
ROUND = 2  # as far ahead as messages are kept for


def averager(me: str, first_round: int = 0) -> Averager:
    return Averager(me, "task", mesh=b"mesh", dimension=8, codec_name="float32", first_round=first_round)


def ready(round_: int, value: float) -> Ready:
    return Ready(round_, np.full(8, value, dtype=np.float32), 1.0, MEMBERS)


def test_who_skips_to_a_round_has_what_was_sent_for_it_before() -> None:
    """A machine made anew in its place waits 20 s for what came already, is overtaken, skips again, and so on: after a
    partition was healed one half of the nodes never finished a round of its own."""
    behind, ahead = averager("a"), averager("b", first_round=ROUND)
    behind.handle(ready(0, 1.0), now=0.0)  # nobody is in this round any more
    for effect in ahead.handle(ready(ROUND, 3.0), now=0.0):
        if isinstance(effect, Send):
            behind.handle(Received("b", effect.message), now=0.1)

    behind.skip_to(ROUND)

    assert not behind.running
    assert behind.round == ROUND
    sent = [effect.message for effect in behind.handle(ready(ROUND, 1.0), now=0.2) if isinstance(effect, Send)]
    assert {type(message).__name__ for message in sent} == {"Contribution", "Mean"}, "the other's part is in already"


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
