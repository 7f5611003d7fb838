"""`/metrics`: what a node is and has done, in Prometheus' format, read when somebody asks.

Names end in their unit, counters in `_total`. Labels are of bounded sets: no peer's id, no text of a stranger's.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Final, Literal

from ..seeing.measures import Figure, Spread

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
PREFIX: Final = "lepton_"
_SERIES_MAX: Final = 64  # tasks or states of one family: a mesh has few


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One name with its samples, by their labels' values."""

    name: str  # without the prefix and, of a counter, without `_total`
    kind: Literal["gauge", "counter", "histogram"]
    says: str
    labels: tuple[str, ...] = ()
    values: Mapping[tuple[str, ...], float] = field(default_factory=dict)
    spreads: Mapping[tuple[str, ...], Spread] = field(default_factory=dict)


def gauge(name: str, says: str, value: float) -> Family:
    return Family(name=name, kind="gauge", says=says, values={(): value})


def bounded(values: Mapping[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
    """Return so many of a family's samples as it may have."""
    return dict(sorted(values.items())[:_SERIES_MAX])


def gauges(name: str, says: str, label: str, values: Mapping[str, float]) -> Family:
    found = dict(sorted(values.items())[:_SERIES_MAX])
    return Family(name=name, kind="gauge", says=says, labels=(label,), values={(k,): v for k, v in found.items()})


def counter(name: str, says: str, value: float) -> Family:
    return Family(name=name, kind="counter", says=says, values={(): value})


def counters(name: str, says: str, label: str, values: Mapping[str, float]) -> Family:
    found = dict(sorted(values.items())[:_SERIES_MAX])
    return Family(name=name, kind="counter", says=says, labels=(label,), values={(k,): v for k, v in found.items()})


def counted(name: str, says: str, figure: Figure) -> Family:
    """Return what a node counted itself."""
    values = figure.counts or ({} if figure.names else {(): 0.0})
    return Family(name=name, kind="counter", says=says, labels=figure.names, values=values)


def timed(name: str, says: str, figure: Figure) -> Family:
    """Return how long something took."""
    spreads = figure.spreads or ({} if figure.names else {(): Spread()})
    return Family(name=name, kind="histogram", says=says, labels=figure.names, spreads=spreads)


def exposition(families: Iterable[Family]) -> bytes:
    """Return families as the text that Prometheus reads, with what the process takes behind them."""
    from prometheus_client import generate_latest

    return generate_latest(_Collected(families)) + generate_latest(_process())


class _Collected:
    """What prometheus_client asks for metrics; a registry of its own for each answer."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = list(families)

    def collect(self) -> "Iterator[Metric]":
        for family in self._families:
            yield _metric(family)


def _metric(family: Family) -> "Metric":
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    name, labels = PREFIX + family.name, list(family.labels)
    if family.kind == "histogram":
        spread_of = HistogramMetricFamily(name, family.says, labels=labels)
        for key, spread in sorted(family.spreads.items()):
            spread_of.add_metric(list(key), spread.buckets(), spread.total)
        return spread_of
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric: CounterMetricFamily | GaugeMetricFamily = kind(name, family.says, labels=labels)
    for key, value in sorted(family.values.items()):
        metric.add_metric(list(key), value)
    return metric


@cache
def _process() -> "CollectorRegistry":
    from prometheus_client import CollectorRegistry, ProcessCollector

    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry
