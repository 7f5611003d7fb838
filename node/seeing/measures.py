"""What a node counts of its own work for `/metrics`: plain numbers, so that nobody pays for figures who reads none.

Labels are bounded: what would be one set too many is counted as `other`, whoever thinks up the names.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

LABELS_MAX: Final = 256  # sets of one figure: 32 services of 8 methods
OTHER: Final = "other"
# Of seconds: a call on this device takes milliseconds, a long text minutes.
SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 120.0)

Labels = tuple[str, ...]


@dataclass(slots=True)
class Spread:
    """How often values fell up to each bound; one place more is for those beyond all of them."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    total: float = 0.0

    @property
    def count(self) -> int:
        return sum(self.counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Return how many values were up to each bound, the last of them infinite, as Prometheus counts."""
        bounds = [*map(repr, SECONDS), "+Inf"]
        return [(bound, sum(self.counts[: at + 1])) for at, bound in enumerate(bounds)]


class Figure:
    """A count, or seconds, for each set of labels. ``names`` are those of the labels."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.counts: dict[Labels, float] = {}
        self.spreads: dict[Labels, Spread] = {}

    def add(self, *labels: str, by: float = 1) -> None:
        key = self._bounded(labels, self.counts)
        self.counts[key] = self.counts.get(key, 0) + by

    def observe(self, seconds: float, *labels: str) -> None:
        spread = self.spreads.setdefault(self._bounded(labels, self.spreads), Spread())
        spread.counts[bisect.bisect_left(SECONDS, seconds)] += 1
        spread.total += seconds

    def _bounded(self, labels: Labels, known: dict[Labels, float] | dict[Labels, Spread]) -> Labels:
        return labels if labels in known or len(known) < LABELS_MAX else (OTHER,) * len(labels)


class Measures:
    """All figures of one node that nothing else counts."""

    def __init__(self) -> None:
        self.web = Figure(("route", "status"))
        self.web_seconds = Figure(("route",))
        self.sessions = Figure(("outcome",))  # of language models, asked for by this node
        self.tokens = Figure(())
        self.first_token_seconds = Figure(())
        self.service_calls = Figure(("service", "method", "outcome"))  # made by this node
        self.service_seconds = Figure(("service", "method"))
        self.refusals = Figure(())
        self.rounds = Figure(("task",))
