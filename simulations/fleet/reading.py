"""Learning scenarios from files: one, or several that differ in what their `[[variant]]` tables say.

A scenario with variants is a comparison: each is the whole file with some keys changed, under a name of its own.
"""

from collections.abc import Mapping
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...mesh.errors import UsageError
from ...node.config import merged
from ...node.objective import is_of_classes
from ..files import converted, parsed, path_of
from .partition import by_owner, partition
from .population import Measure, Population
from .scenario import Scenario
from .sources.known import source_of
from .sources.source import Floats, Source, Whole


def shipped() -> dict[str, Path]:
    """Return the learning scenarios that come with Lepton, by name."""
    folder = Path(str(resources.files(__package__) / "scenarios"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load(file_or_name: str, changes: Mapping[str, Any] | None = None) -> dict[str, Scenario]:
    """Read a file, or a shipped scenario by its name: its variants in order, or itself alone under the file's name.

    ``changes`` win over what it says, as in ``{"rounds": 2, "data": {"folder": "data"}}``.

    Raises UsageError that says what is wrong and where.
    """
    path = path_of(file_or_name, shipped())
    return read(parsed(path), str(path), path.stem, changes or {})


def read(found: Mapping[str, Any], where: str, name: str, changes: Mapping[str, Any]) -> dict[str, Scenario]:
    """Check what a file says. Raises UsageError."""
    common = {key: value for key, value in found.items() if key != "variant"}
    variants = _variants(found, where) or {name: {}}
    return {
        name: converted(merged(merged(common, variant), changes), Scenario, where) for name, variant in variants.items()
    }


def _variants(found: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    tables = found.get("variant", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{where}: variants are tables, each begun with [[variant]].")
    named: dict[str, dict[str, Any]] = {}
    for table in tables:
        name = table.get("name")
        if not isinstance(name, str) or not name or name in named:
            raise UsageError(f"{where}: every variant has a name of its own, and {name!r} is not.")
        named[name] = {key: value for key, value in table.items() if key != "name"}
    return named


# -- whose data --------------------------------------------------------------------------------------------------------


def population_for(scenario: Scenario, *, folder: Path | None = None) -> Population:
    """Read the scenario's data and give them out to its nodes; ``folder`` counts where the scenario names none.

    Raises UsageError where they are missing or do not go with the scenario.
    """
    data = scenario.data
    source = source_of(data.name, Path(data.folder) if data.folder else folder).cut(data.samples, data.test)
    _check_objective(scenario, source)
    order, starts = partition(
        data, source.labels, scenario.nodes, np.random.default_rng([scenario.seed, _SPLITTING]), silos=source.silos
    )
    silos = data.split == "silo"
    return Population(
        inputs=torch.from_numpy(source.inputs),
        labels=torch.from_numpy(source.labels),
        order=order,
        starts=starts,
        test_inputs=torch.from_numpy(source.test_inputs),
        test_labels=torch.from_numpy(source.test_labels),
        classes=source.classes,
        names=source.names[: scenario.nodes] if silos else (),
        own_tests=_own_tests(scenario, source) if silos and data.tested_on == "own" else (),
        measure=_measure(source),
    )


_SPLITTING = 1  # the part of the seed's chance that deals out samples, apart from the engine's


def _check_objective(scenario: Scenario, source: Source) -> None:
    values = source.labels.ndim == 2
    if values == is_of_classes(scenario.objective):
        kind, instead = ("values", "'mse', 'mae' or 'huber'") if values else ("classes", "'cross_entropy'")
        raise UsageError(
            f"objective: {scenario.data.name!r} has {kind}, so it is {instead}, not {scenario.objective!r}."
        )


def _own_tests(scenario: Scenario, source: Source) -> tuple[Whole, ...]:
    if source.test_silos is None:
        raise UsageError(f"data.tested_on: the test of {scenario.data.name!r} is of all silos together; take 'all'.")
    picked = np.where(source.test_silos < scenario.nodes, source.test_silos, -1)
    order, starts = by_owner(picked, scenario.nodes)
    parts = tuple(order[start:end] for start, end in pairwise(starts))
    if not all(map(len, parts)):
        raise UsageError("data.test: a silo is left without a test of its own; take more, or tested_on = 'all'.")
    return parts


def _measure(source: Source) -> Measure | None:
    score = source.score
    if score is None:
        return None
    labels = source.test_labels
    marks = np.zeros((len(labels), 0), np.float32) if source.marks is None else source.marks

    def measure(outputs: Floats, picked: Whole) -> Mapping[str, float]:
        return score(outputs, labels[picked], marks[picked])

    return measure
