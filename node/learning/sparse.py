"""Pruning within a task: everybody's model has its zeros in the same places, and nobody has to say where.

Which numbers are zeros follows from two things that members of a round have in common: the model that the round gave
them, and how many rounds are over. So masks are not sent, not stored and not agreed on: whoever has the model has them,
also one that comes late and takes another's, or goes on from a checkpoint.

The invariants: **members for which a round was agreed go on with the same mask**, since they have the same bits, and
what is compared are whole numbers (a float's bits, without its sign), alike on every machine. And **a number that is 0
in all contributions is 0 in their mean**: differences are taken to the pruned model, and every codec keeps 0. So in one
group what went stays away.

A member for which a round was not agreed has only its own model: it keeps the mask that it has, prunes nothing, and
gets everybody's with the next agreed round. Several groups have a mean each, so a mask each. In the next round they
mix: a mean is 0 only where all were, and its least numbers go. What one group alone had pruned was averaged with zeros,
is small, and mostly goes again. Until the last rounds have mixed all groups their masks can differ somewhat, as their
models do; the model that is served is one of them, pruned whole.
"""

import numpy as np
import torch
from torch import Tensor, nn

from ...mesh.errors import UsageError
from ..shapes import Vector
from .settings import Prune
from .shared import Shared


class Sparse:
    """The zeros of one task's model: places in the vector that travels, and in that of the trained parameters."""

    def __init__(self, said: Prune, module: nn.Module, shared: Shared) -> None:
        """Raises UsageError where nothing of the module that is averaged can be pruned."""
        from ..compression.pruning.scores import candidates  # it knows language models, which few tasks need

        found, left = candidates(module)
        wanted = {id(parameter) for parameter in found.values()}
        self._said = said
        self._travelling = _places(shared.shared, wanted)
        self._trained = _places(shared.trained, wanted & {id(parameter) for parameter in shared.shared})
        if not self._travelling:
            raise UsageError(f"[prune]: nothing of this model can be pruned: {left or 'it has no matrices'}")

    def share_after(self, rounds: int) -> float:
        """Return the share of the large matrices' numbers that is 0 when so many rounds are over."""
        from ..compression.pruning.masks import share_at

        said = self._said
        return share_at((rounds - said.from_round) / (said.to_round - said.from_round), said.share)

    def thinned(self, vector: Vector, rounds: int, *, common: bool) -> Vector:
        """Return a round's model, float32 (D,), with as many zeros as are due; itself where none are.

        ``common``: others have the same one, and will do the same to it.
        """
        share = self.share_after(rounds)
        if not common or not share:
            return vector
        new = vector.copy()
        if self._said.kind == "global":
            together = np.concatenate([new[place] for place in self._travelling])
            _drop_least(together, share)
            start = 0
            for place in self._travelling:
                end = start + place.stop - place.start
                new[place], start = together[start:end], end
        else:
            for place in self._travelling:
                _drop_least(new[place], share)
        return new

    def share_in(self, vector: Vector) -> float:
        """Return the share of the large matrices' numbers that is 0 in a model, float32 (D,)."""
        found = np.concatenate([vector[place] for place in self._travelling])
        return float((found == 0).mean())

    def zeros(self, position: Tensor, rounds: int) -> Tensor | None:
        """Return which of the trained parameters, float32 (P,), stay 0 while a node trains on; None before any."""
        if not self.share_after(rounds):
            return None
        held = torch.zeros(len(position), dtype=torch.bool)
        for place in self._trained:
            held[place] = position[place] == 0
        return held


def _drop_least(numbers: Vector, share: float) -> None:
    """Put 0 in the place of the least magnitudes, in place; of equal ones the first go."""
    count = round(share * len(numbers))
    if not count:
        return
    sizes = numbers.view(np.uint32) & np.uint32(0x7FFFFFFF)  # in the order of the magnitudes
    least = np.partition(sizes, count - 1)[count - 1]
    below = sizes < least
    equal = np.flatnonzero(sizes == least)[: count - int(below.sum())]
    numbers[below] = 0.0
    numbers[equal] = 0.0


def _places(parameters: list[nn.Parameter], wanted: set[int]) -> list[slice]:
    """Return where the wanted parameters are, when all are laid flat in a row."""
    places, start = [], 0
    for parameter in parameters:
        end = start + parameter.numel()
        if id(parameter) in wanted:
            places.append(slice(start, end))
        start = end
    return places
