"""Which faults a seed brings: a pure function of scenario and seed, so that what was drawn can be written down."""

import random
from collections.abc import Callable, Iterator
from typing import Final

from .faults import Crash, Fault, Faults, Freeze, Join, OneWay, Partition, Revoke, Skew, Slow, Weather
from .scenario import Scenario

_LENGTH_S_MIN: Final = 0.5
_BETWEEN_STAGES: Final = 0.5  # of the cuts in one direction, where there are sessions that go along stages


def draw(scenario: Scenario, seed: int) -> Scenario:
    """Return the scenario with the faults that this seed brings, beside those that it has; the same as ever for it."""
    if scenario.faults is None:
        return scenario
    drawn = _Draw(scenario, scenario.faults, random.Random(f"{seed}/faults"))
    return scenario.with_faults((*scenario.all_faults, *drawn.all()))


class _Draw:
    """One throw of the dice."""

    def __init__(self, scenario: Scenario, most: Faults, dice: random.Random) -> None:
        self._most, self._dice = most, dice
        self._first, *self._others = self._names = list(scenario.names)
        self._end_s = scenario.duration_s - scenario.settle_s
        self._comers = (f"late{number}" for number in range(len(scenario.join) + most.join))
        self._taken = {join.node for join in scenario.join}
        self._asks = scenario.language.requests > 0

    def all(self) -> Iterator[Fault]:
        makers: dict[str, Callable[[], Fault | None]] = {
            "crash": self._crash, "death": self._death, "lost_records": self._lost_records,
            "lost_disk": self._lost_disk, "freeze": self._freeze, "partition": self._partition,
            "one_way": self._one_way, "weather": self._weather, "slow": self._slow, "skew": self._skew,
            "revoke": self._revoke, "join": self._join,
        }  # fmt: skip
        for kind, make in makers.items():
            for _ in range(self._dice.randint(0, getattr(self._most, kind))):
                if (fault := make()) is not None:
                    yield fault

    # -- numbers, short enough to be written down ---------------------------------------------------------------------

    def _between(self, low: float, high: float) -> float:
        return round(self._dice.uniform(low, high), 3)

    def _at_s(self) -> float:
        return self._between(self._most.first_s, max(self._most.first_s, self._end_s - _LENGTH_S_MIN))

    def _for_s(self, at_s: float) -> float:
        longest = min(self._most.length_s_max, self._end_s - at_s)
        return max(self._between(min(_LENGTH_S_MIN, longest), longest), 0.001)

    def _until_s(self, at_s: float) -> float:
        return round(at_s + self._for_s(at_s), 3)

    def _some(self) -> tuple[str, ...]:
        """Return some nodes, not all."""
        return tuple(sorted(self._dice.sample(self._names, self._dice.randint(1, max(len(self._names) // 2, 1)))))

    def _rest(self, chosen: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in self._names if name not in chosen)

    # -- faults -------------------------------------------------------------------------------------------------------

    def _crash(self) -> Fault:
        at_s = self._at_s()
        return Crash(at_s=at_s, node=self._dice.choice(self._names), restart_after_s=self._for_s(at_s))

    def _death(self) -> Fault | None:
        """Let a device die for good; never the first, which offers the model and gives the invites."""
        return Crash(at_s=self._at_s(), node=self._dice.choice(self._others)) if self._others else None

    def _lost_records(self) -> Fault | None:
        return self._lossy("records")

    def _lost_disk(self) -> Fault | None:
        return self._lossy("everything")

    def _lossy(self, loses: str) -> Fault | None:
        if not self._others:
            return None
        at_s = self._at_s()
        node, back_s = self._dice.choice(self._others), self._for_s(at_s)
        return Crash(at_s=at_s, node=node, restart_after_s=back_s, loses=loses)  # type: ignore[arg-type]

    def _freeze(self) -> Fault:
        at_s = self._at_s()
        return Freeze(at_s=at_s, node=self._dice.choice(self._names), thaw_after_s=self._for_s(at_s))

    def _partition(self) -> Fault | None:
        at_s, group = self._at_s(), self._some()
        if not (rest := self._rest(group)):
            return None
        bridges = (self._dice.choice(rest),) if len(rest) > 1 and self._dice.random() < 0.25 else ()
        return Partition(at_s=at_s, heal_s=self._until_s(at_s), groups=(rest, group), bridges=bridges)

    def _one_way(self) -> Fault | None:
        at_s, senders = self._at_s(), self._some()
        if self._asks and self._dice.random() < _BETWEEN_STAGES:
            return OneWay(at_s=at_s, heal_s=self._until_s(at_s), during="answer")
        if not (receivers := self._rest(senders)):
            return None
        receivers = tuple(sorted(self._dice.sample(receivers, self._dice.randint(1, len(receivers)))))
        return OneWay(at_s=at_s, heal_s=self._until_s(at_s), senders=senders, receivers=receivers)

    def _weather(self) -> Fault:
        at_s, dice = self._at_s(), self._dice
        names = ["", "", *dice.sample(self._names, min(2, len(self._names)))]
        node, other = dice.choice([("", ""), (names[-1], ""), (names[-1], names[-2])])
        return Weather(
            at_s=at_s,
            end_s=self._until_s(at_s),
            node=node,
            other=other,
            loss=self._between(0.0, self._most.loss_max),
            latency_s=self._between(0.0, 0.2),  # a satellite is further away than anything in a building
            jitter_s=self._between(0.0, 0.1),
            duplication=self._between(0.0, 0.1),
            reordering=self._between(0.0, 0.3),
        )

    def _slow(self) -> Fault:
        at_s = self._at_s()
        times = self._between(2.0, max(self._most.slow_times_max, 2.0))
        return Slow(at_s=at_s, end_s=self._until_s(at_s), node=self._dice.choice(self._names), times=times)

    def _skew(self) -> Fault:
        offset_s = self._between(-self._most.skew_s_max, self._most.skew_s_max)
        drift = round(self._dice.uniform(-self._most.drift_max, self._most.drift_max), 6)
        return Skew(at_s=self._at_s(), node=self._dice.choice(self._names), offset_s=offset_s, drift=drift)

    def _revoke(self) -> Fault | None:
        return Revoke(at_s=self._at_s(), node=self._dice.choice(self._others)) if self._others else None

    def _join(self) -> Fault:
        node = next(name for name in self._comers if name not in self._taken)
        return Join(at_s=self._at_s(), node=node)
