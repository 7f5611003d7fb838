"""How long a call would take at a replica, as one caller sees it. Pure.

expected = overhead + service x (1 + waves), where ``service`` is what the replica says a call's work takes, ``waves``
the calls that are before this one over those that it works on at once (concurrency x batch x instances), and
``overhead`` all that answers took beyond what the replica's words explained: the link, and its lies.

Those before it are this caller's own, counted exactly, and others' as the last answer told them; hearsay fades.
"""

import math
from dataclasses import dataclass, field
from typing import Final

from ..messages import Load

SMOOTHING: Final = 0.05  # of new in old: about the last twenty answers count; fewer, and luck looks like a difference
HEARSAY_S: Final = 0.1  # what was told of others' calls fades so: queues of short calls change that quickly
FORGIVING: Final = 100.0  # answers of others, after which what was slow is worth another look: else nobody would ask it


@dataclass(slots=True)
class Told:
    """What one instance said with its last answer."""

    others: float  # calls of other callers there, running and waiting
    at: float


@dataclass(slots=True)
class Estimate:
    """What one caller knows of one replica's time."""

    service_s: float | None = None
    overhead_s: float | None = None
    at_answer: int = 0  # the number of the last answer, among those of all replicas
    answers: int = 0
    own: int = 0  # this caller's calls there that are under way
    told: dict[str, Told] = field(default_factory=dict)  # by instance

    def took(self, took_s: float, before: float, slots: int, number: int) -> None:
        """Note an answer, and which it was of all; ``before`` were in front when it was asked."""
        explained = _work_s(self.service_s or 0.0, before, slots)
        self.overhead_s = _smooth(self.overhead_s, took_s - explained)
        self.at_answer = number
        self.answers += 1

    def hears(self, load: Load, instances: int, now: float) -> None:
        """Note what one of so many instances said. The numbers come from a peer: what is no time is passed over."""
        if math.isfinite(load.service_ms) and load.service_ms >= 0:
            self.service_s = _smooth(self.service_s, load.service_ms / 1000)
        calls = load.running + load.waiting
        self.told[load.instance] = Told(max(0.0, calls - self.own / instances), now)

    def before(self, now: float) -> float:
        """Return how many calls would be in front of one that is made now."""
        hearsay = (told.others * math.exp(-max(0.0, now - told.at) / HEARSAY_S) for told in self.told.values())
        return self.own + sum(hearsay)

    def expected_s(self, slots: int, now: float, number: int, *, service_s: float, overhead_s: float) -> float:
        """Return the time of a call made now, after so many answers; the keywords stand for what nobody knows."""
        work_s = service_s if self.service_s is None else self.service_s
        if self.overhead_s is not None:
            overhead_s = max(0.0, self.overhead_s) * math.exp(-(number - self.at_answer) / FORGIVING)
        return overhead_s + _work_s(work_s, self.before(now), slots)


def _work_s(service_s: float, before: float, slots: int) -> float:
    return service_s * (1.0 + max(0.0, before + 1.0 - slots) / slots)


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else old + SMOOTHING * (new - old)
