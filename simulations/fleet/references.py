"""What a fleet has to be better than: methods that nobody would call learning together, on the very same test.

Each is a line of figures in the units of the run. They are worked out in a second or so; where that cannot be done,
there is none.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from .population import Population
from .reading import population_for
from .report.table import aligned, number
from .scenario import Scenario
from .sources.cameras import pixels_of, scaled
from .sources.series import PAST

Figures = Mapping[str, float]
_Floats = npt.NDArray[np.float32]
_Answers = Callable[[int, npt.NDArray[np.int64]], _Floats]  # a node and test samples (t,) to outputs (t, K)

FEATURES_MAX: Final = 100  # for a logistic regression in a second; pictures of more pixels take a minute
_ITERATIONS_MAX: Final = 200  # lbfgs takes some dozens on standardised columns
_STRENGTH: Final = 1.0  # scikit-learn's default regularisation


def references_for(scenario: Scenario, population: Population) -> dict[str, Figures]:
    """Return lines by name: accuracy or what the data's own measure gives."""
    match scenario.data.name:
        case "traffic" | "nab":
            lines = {"what is now stays": measured(population, lambda _, picked: _zeros(population, len(picked)))}
            if scenario.data.name == "traffic":
                lines["one linear rule for all"] = measured(population, _linear(population))
            return lines
        case "video":
            return {
                "difference to own background": measured(population, _background(population)),
                "the same, light evened out": measured(population, _background(population, evened=True)),
            }
        case _ if population.labels.ndim == 1:
            return _of_classes(population)
        case _:
            return {}


def lines_for(scenario: Scenario, folder: Path | None) -> list[str]:
    """Return the same as a table in text, nothing where there are none. Raises UsageError where data are missing."""
    found = references_for(scenario, population_for(scenario, folder=folder))
    if not found:
        return []
    names = list(dict.fromkeys(name for figures in found.values() for name in figures))
    rows = [
        (line, *(number(figures[name]) if name in figures else "" for name in names)) for line, figures in found.items()
    ]
    return ["", aligned([("without a mesh, on the first run's test", *names), *rows])]


def measured(population: Population, answers: _Answers) -> Figures:
    """Return the mean of the population's own measure over its nodes; nodes that share a test share the figure."""
    if population.measure is None:
        return {}
    tests = population.own_tests or (np.arange(len(population.test_labels)),)
    found = [population.measure(answers(node, picked), picked) for node, picked in enumerate(tests)]
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def _zeros(population: Population, count: int) -> _Floats:
    return np.zeros((count, population.classes), np.float32)


def _linear(population: Population) -> _Answers:
    """Least squares over an hour of the past: an autoregression of order 12, the same for all sensors."""
    used = _with_one(population.inputs[np.unique(population.order), : PAST + 1].numpy())
    found = np.linalg.lstsq(used, population.labels[np.unique(population.order)].numpy(), rcond=None)[0]

    def answers(_: int, picked: npt.NDArray[np.int64]) -> _Floats:
        outputs: _Floats = (_with_one(population.test_inputs[picked, : PAST + 1].numpy()) @ found).astype(np.float32)
        return outputs

    return answers


def _with_one(x: _Floats) -> npt.NDArray[np.float64]:
    return np.column_stack([x, np.ones(len(x))])


def _background(population: Population, *, evened: bool = False) -> _Answers:
    """The mean of the frames that a camera trains on; with ``evened`` as bright as the frame it is held against."""
    starts = population.starts

    def answers(node: int, picked: npt.NDArray[np.int64]) -> _Floats:
        mine = population.order[starts[node] : starts[node + 1]]
        mean = pixels_of(population.inputs[mine].numpy()).mean(0)
        frames = pixels_of(population.test_inputs[picked].numpy())
        light = np.median(frames, 1, keepdims=True) / np.median(mean) if evened else np.ones((len(frames), 1))
        return scaled(mean * light)

    return answers


def _of_classes(population: Population) -> dict[str, Figures]:
    train, truth = np.unique(population.order), population.test_labels.numpy()
    labels = population.labels[train].numpy()
    lines: dict[str, Figures] = {
        "always the most frequent": {"accuracy": float((truth == np.bincount(labels).argmax()).mean())}
    }
    x, x_test = (part.reshape(len(part), -1).numpy() for part in (population.inputs[train], population.test_inputs))
    if population.inputs.is_floating_point() and x.shape[1] <= FEATURES_MAX:
        lines["logistic regression, all data"] = _logistic(population, x, labels, x_test)
    return lines


def _logistic(population: Population, x: _Floats, labels: npt.NDArray[np.int64], x_test: _Floats) -> Figures:
    from sklearn.linear_model import LogisticRegression  # half a second to import

    model = LogisticRegression(C=_STRENGTH, max_iter=_ITERATIONS_MAX).fit(x, labels)
    outputs = np.full((len(x_test), population.classes), -np.inf, np.float32)
    outputs[:, model.classes_] = model.predict_log_proba(x_test)
    right = outputs.argmax(1) == population.test_labels.numpy()
    accuracy = float(np.mean([right[picked].mean() for picked in population.own_tests or (slice(None),)]))
    return {"accuracy": accuracy, **measured(population, lambda _, picked: outputs[picked])}
