"""From a run that breaks to the least that breaks in the same way: fewer faults, fewer devices, less of everything.

Faults are dropped as delta debugging does (Zeller and Hildebrandt 2002, ddmin): halves first, then single ones. What
is left is minimal in that no single fault can go; a smaller set of others may exist.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from .faults import Fault, named
from .scenario import Model, Requests, Scenario, Task

Breaks = Callable[[Scenario], bool]

_NAMES: Final = re.compile(r"\b(n|late|liar|outsider)\d+(\.\d+)?\b")
_NUMBERS: Final = re.compile(r"\d[\d.]*")
_SPARE_S: Final = 1.0  # a scenario goes on for so long before its end is calm


def kind_of(what: str) -> str:
    """Return what was promised and broken, without the names and numbers of one run."""
    return _NUMBERS.sub("#", _NAMES.sub("@", what.split(":", maxsplit=1)[0]))


@dataclass(slots=True)
class Shrinker:
    """Tries smaller scenarios for as long as they break in the same way."""

    breaks: Breaks
    tell: Callable[[str], None] = lambda _what: None
    tries_max: int = 400  # of runs; each takes seconds at most

    def shrink(self, scenario: Scenario) -> Scenario:
        """Return the smallest scenario found; ``scenario`` has no faults left to draw, and breaks."""
        before = None
        while before != scenario and self.tries_max > 0:
            before = scenario
            scenario = self._fewer_faults(scenario)
            for smaller in (_shorter, _fewer_nodes, _plainer):
                scenario = self._smaller(scenario, smaller)
        return scenario

    def _try(self, scenario: Scenario) -> bool:
        if self.tries_max <= 0:
            return False
        self.tries_max -= 1
        return self.breaks(scenario)

    def _smaller(self, scenario: Scenario, steps: Callable[[Scenario], Iterator[Scenario]]) -> Scenario:
        """Take each step that still breaks, and try again from there."""
        tried = True
        while tried:
            tried = False
            for smaller in steps(scenario):
                if self._try(smaller):
                    scenario, tried = smaller, True
                    break
        return scenario

    def _fewer_faults(self, scenario: Scenario) -> Scenario:
        """Delta debugging: leave out one part after another, of parts that grow ever smaller."""
        faults: Sequence[Fault] = scenario.all_faults
        size = len(faults)
        while size >= 1:
            start = 0
            while start < len(faults):
                fewer = (*faults[:start], *faults[start + size :])
                if self._try(scenario.with_faults(fewer)):
                    faults = fewer
                    self.tell(f"{len(faults)} faults do")
                else:
                    start += size
            size = size // 2
        return scenario.with_faults(faults)


def _shorter(scenario: Scenario) -> Iterator[Scenario]:
    """Be calm earlier. The calm stays as long as it was: in a shorter one much has not come right that would."""
    busy_s = scenario.duration_s - scenario.settle_s
    for part in (0.5, 0.75, 0.9):
        if busy_s * part >= _SPARE_S:
            yield msgspec.structs.replace(scenario, duration_s=round(busy_s * part + scenario.settle_s, 1))


def _fewer_nodes(scenario: Scenario) -> Iterator[Scenario]:
    """Do without the last device, where no fault speaks of it."""
    last = scenario.names[-1]
    if scenario.nodes > 1 and not any(last in named(fault) for fault in scenario.all_faults):
        yield msgspec.structs.replace(scenario, nodes=scenario.nodes - 1)


def _plainer(scenario: Scenario) -> Iterator[Scenario]:
    """Do without liars, learning, requests, statements and bad links, one after another."""
    task, requests, replace = scenario.task, scenario.requests, msgspec.structs.replace
    plain = type(scenario.link)()
    candidates = [
        replace(scenario, liars=0),
        replace(scenario, outsiders=0),
        replace(scenario, task=Task(rounds=0)),
        replace(scenario, requests=Requests(count=0)),
        replace(scenario, statements=type(scenario.statements)()),
        replace(scenario, link=plain),
        replace(scenario, link=replace(scenario.link, loss=0.0)),
        replace(scenario, link=replace(scenario.link, duplication=0.0)),
        replace(scenario, link=replace(scenario.link, reordering=0.0)),
        replace(scenario, task=replace(task, rounds=task.rounds // 2)),
        replace(scenario, requests=replace(requests, count=requests.count // 2)),
        replace(scenario, model=Model(layers=1, copies=1)),
    ]
    for candidate in candidates:
        if candidate != scenario:
            yield candidate
