"""How good every node's model is on the test set: by one product for many nodes, and once for models that are equal.

After a round in groups, all of a group hold the same model. Equal rows are found by a sum over their bits and then
compared number by number, so the result is that of looking at each.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...node.objective import is_of_values
from .batches import Ints
from .networks import Network, split
from .population import Population
from .scenario import Scenario
from .slopes import losses_of, marks_of

_TESTED: Final = 512  # test samples at once, as the trainer takes them
_COMPARED: Final = 32  # models that are compared at once
_NUMBERS: Final = 1 << 19  # widest activations of a block of models, some 2 MB: they stay in the cache

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How models do: accuracy, or R2 where values are predicted, and the mean loss; (n,) each."""

    quality: Doubles
    loss: Doubles
    extra: dict[str, float]  # `Population.measure`, mean over the models


@dataclass(frozen=True, slots=True, kw_only=True)
class _Looked:
    """What came of a block of models: (n, 2), quality and loss, and each one's own measures."""

    marks: Doubles
    extras: list[Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distinct:
    """Some nodes, of whom those with equal models are looked at once."""

    nodes: Ints  # of which no two hold equal models
    of: Ints  # for each of all of them, where in ``nodes`` its equal is

    @property
    def counts(self) -> Ints:
        """How many hold each model."""
        return np.bincount(self.of, minlength=len(self.nodes))


class Examiner:
    """Looks at models."""

    def __init__(self, network: Network, scenario: Scenario, population: Population, device: torch.device) -> None:
        self._network, self._objective = network, scenario.objective
        self._x, self._y = population.test_inputs.to(device), population.test_labels.to(device)
        self._own, self._measure = population.own_tests, population.measure
        widest = max(math.prod(population.inputs.shape[1:]), *(shape[0] for shape in network.shapes))
        self._block = max(1, _NUMBERS // (widest * min(_TESTED, len(self._x))))

    def examine(self, models: Tensor, nodes: Ints, distinct: Distinct | None = None) -> Quality:
        """Return how these nodes' models do, each on its own part of the test set where it has one."""
        if self._own:
            of = np.arange(len(nodes))
            looked = [self._look(models[node : node + 1], self._own[node]) for node in nodes.tolist()]
        else:
            found = distinct if distinct is not None else distinct_of(models, nodes)
            of, everything = found.of, np.arange(len(self._x))
            looked = [self._look(part, everything) for part in _blocks(models, found.nodes, self._block)]
        marks = np.concatenate([one.marks for one in looked])[of]  # (n, 2)
        extras = [extra for one in looked for extra in one.extras]
        return Quality(
            quality=marks[:, 0], loss=marks[:, 1], extra=_mean([extras[one] for one in of] if extras else [])
        )

    def _look(self, models: Tensor, picked: Ints) -> _Looked:
        """Look at n models on T test samples."""
        index = torch.from_numpy(picked).to(models.device)
        x, y = (self._x, self._y) if len(index) == len(self._x) else (self._x[index], self._y[index])
        mark = loss = torch.zeros(len(models), dtype=torch.float64, device=models.device)
        parts, answers = split(models, self._network.shapes), []
        with torch.no_grad():
            for x_part, y_part in zip(x.split(_TESTED), y.split(_TESTED), strict=True):
                outputs = self._network.outputs(parts, x_part)  # (n, K, t)
                mark = mark + marks_of(self._objective, outputs, y_part).sum(dim=1, dtype=torch.float64)
                loss = loss + losses_of(self._objective, outputs, y_part).sum(dim=1, dtype=torch.float64)
                if self._measure is not None:
                    answers.append(outputs.cpu())
        quality = _r2(mark, y) if is_of_values(self._objective) else mark / len(y)
        marks: Doubles = torch.stack([quality, loss / len(y)], dim=1).cpu().numpy()
        return _Looked(marks=marks, extras=self._measured(answers, picked))

    def _measured(self, answers: list[Tensor], picked: Ints) -> list[Mapping[str, float]]:
        if self._measure is None:
            return []
        return [self._measure(one.t().contiguous().numpy(), picked) for one in torch.cat(answers, dim=2)]


def distinct_of(models: Tensor, nodes: Ints) -> Distinct:
    """Find equal models among those of ``nodes`` (n,)."""
    bits = models.view(torch.int32)
    sums = torch.cat([part.sum(dim=1, dtype=torch.int32) for part in _blocks(bits, nodes, _COMPARED)]).cpu().numpy()
    _, first, of = np.unique(sums, return_index=True, return_inverse=True)
    twins = np.flatnonzero(first[of] != np.arange(len(nodes)))
    pairs = zip(nodes[twins].tolist(), nodes[first[of[twins]]].tolist(), strict=True)
    if not all(_bytes(models[one]) == _bytes(models[other]) for one, other in pairs):
        return Distinct(nodes=nodes, of=np.arange(len(nodes)))  # sums alike by chance: rare enough to look at all then
    return Distinct(nodes=nodes[first], of=of.astype(np.int64))


def consensus_of(models: Tensor, distinct: Distinct) -> float:
    """Return the root mean square distance of these nodes' models from their mean, as a part of the mean's norm."""
    counts = torch.from_numpy(distinct.counts).to(models.device, torch.float32)
    pieces = counts.split(_COMPARED)
    mean = torch.zeros(models.shape[1], device=models.device)
    for part, count in zip(_blocks(models, distinct.nodes, _COMPARED), pieces, strict=True):
        mean += count @ part
    mean /= len(distinct.of)
    apart = 0.0
    for part, count in zip(_blocks(models, distinct.nodes, _COMPARED), pieces, strict=True):
        apart += float(part.sub_(mean).square_().sum(dim=1) @ count)
    return math.sqrt(apart / len(distinct.of)) / max(float(mean.norm()), 1e-30)


def _bytes(model: Tensor) -> bytes:
    return model.cpu().numpy().tobytes()  # to copy and compare these is faster than to compare tensors


def _blocks(models: Tensor, nodes: Ints, block: int) -> Iterator[Tensor]:
    """Copy the models of nodes, so many at a time."""
    return (models.index_select(0, part) for part in torch.from_numpy(nodes).to(models.device).split(block))


def _r2(error: Tensor, y: Tensor) -> Tensor:
    spread = float((y.double() - y.double().mean(dim=0)).square().sum())
    if spread > 0:
        return 1 - error / spread
    return (error == 0).double()  # all the same: nothing to explain


def _mean(extras: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([extra[key] for extra in extras])) for key in (extras[0] if extras else ())}
