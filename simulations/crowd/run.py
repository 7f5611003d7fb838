"""Plays a crowd: what happens when, the invariants, and the figures.

Invariants, at checkpoints: nothing is held that its owner did not say. At the end: everybody sees who is here and
nobody else, those who came late too; all hold the same records, and what was said durably is among them.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...mesh.identity import PeerId
from ..world import Violation
from .crowd import Crowd
from .report import Figures
from .scenario import CrowdScenario

_COLLECT_EACH = 100_000  # objects more than before: messages come and go by the million, and hold no cycles


def play(scenario: CrowdScenario, *, seed: int | None = None) -> Figures:
    """Play a scenario. Raises Violation when an invariant does not hold."""
    crowd = Crowd(scenario, scenario.seed if seed is None else seed)
    live(crowd, check_words)
    check_end(crowd)
    return Figures.of(crowd)


def live(crowd: Crowd, look: Callable[[Crowd], None] = lambda _crowd: None) -> None:
    """Let a crowd begin and live through its scenario. ``look`` is called now and then."""
    crowd.found()
    _schedule(crowd)
    end_s, interval_s = crowd.scenario.duration_s, crowd.scenario.check_interval_s
    with _all_kept():
        while crowd.clock.now < end_s:
            crowd.clock.run(min(crowd.clock.now + interval_s, end_s))
            look(crowd)


@contextmanager
def _all_kept() -> Iterator[None]:
    """What a crowd is made of stays until its end: the collector of cycles need not look through it again and again."""
    gc.collect()
    gc.freeze()
    before = gc.get_threshold()
    gc.set_threshold(_COLLECT_EACH)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


# -- what happens -----------------------------------------------------------------------------------------------------


def _schedule(crowd: Crowd) -> None:
    """Draw when who comes and goes. Who speaks is drawn when somebody does."""
    scenario, dice = crowd.scenario, crowd.clock.dice("churn")
    churn, first_s = scenario.churn, min(10.0, scenario.duration_s / 4)
    last_s = max(scenario.duration_s - scenario.settle_s, first_s)
    gone = dice.sample(sorted(crowd.members), churn.leavers + churn.crashes)
    for number, peer in enumerate(gone):
        down_s = churn.down_s * dice.uniform(0.5, 1.5)
        back = number >= churn.leavers
        end_s = dice.uniform(first_s, max(last_s - down_s * back, first_s))
        crowd.clock.at(end_s, crowd.end, peer, dice.random() < churn.silent)
        if back:
            crowd.clock.at(end_s + down_s, crowd.restart, peer)
    for number in range(churn.newcomers):
        crowd.clock.at(dice.uniform(first_s, last_s), crowd.join, f"newcomer {number}")
    crowd.clock.at(first_s, _speak_on, crowd, last_s)


def _speak_on(crowd: Crowd, last_s: float) -> None:
    crowd.speak()
    next_s = crowd.clock.now + crowd.dice.expovariate(1.0 / crowd.scenario.change_every_s)
    if next_s <= last_s:
        crowd.clock.at(next_s, _speak_on, crowd, last_s)


# -- the invariants ---------------------------------------------------------------------------------------------------


def check_words(crowd: Crowd) -> None:
    """Nothing forged, and nobody broke a rule. Raises Violation."""
    for member in crowd.members.values():
        for record in member.picture.store.all():
            if record.id not in crowd.ledger.published:
                raise Violation(f"{_at(crowd)} {member.id} holds {record.key}, which its owner never said")
    if crowd.ledger.broken:
        raise Violation(f"{_at(crowd)} somebody is said to have broken a rule: {crowd.ledger.broken[0]}")


def check_end(crowd: Crowd) -> None:
    """Views converge, and nothing is lost. Raises Violation."""
    here, wrong = set(crowd.members), dict[PeerId, set[PeerId]]()
    for peer, member in crowd.members.items():
        wrong[peer] = member.members.present ^ (here - {peer})
    if bad := sorted(peer for peer, difference in wrong.items() if difference):
        first = wrong[bad[0]]
        raise Violation(
            f"{_at(crowd)} {len(bad)} members do not see who is here: {bad[0]} is wrong about {len(first)}, "
            f"of them {len(first & here)} are here"
        )
    if len({member.picture.store.fingerprint for member in crowd.members.values()}) > 1:
        raise Violation(f"{_at(crowd)} not all members hold the same records")
    store = next(iter(crowd.members.values())).picture.store
    for key, record in crowd.ledger.durable.items():
        gone = crowd.ledger.away.get(record.owner)
        if store.with_id(record.id) is None and gone is None:
            raise Violation(f"{_at(crowd)} {key} was said durably and is lost")


def _at(crowd: Crowd) -> str:
    return f"seed {crowd.clock.seed}, at {crowd.clock.now:.1f} s:"
