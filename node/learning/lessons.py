"""What a node's model learns from: its samples' labels, what a teacher gave for them, or both (Hinton et al. 2015)."""

import numpy as np
import torch
from torch import Tensor, nn

from ...mesh.errors import UsageError
from ..shapes import ModelSpec
from .data import Dataset
from .losses import labels_loss, loss_of, samples_for, taught_loss, tensors_for
from .settings import Distil


class Lesson:
    """The samples of one node and what is to be learned of them."""

    def __init__(self, spec: ModelSpec, dataset: Dataset, distil: Distil | None = None) -> None:
        """Raises UsageError when description and data do not fit together."""
        self._spec, self._distil = spec, distil
        self._taught = None if distil is None else _taught(spec, dataset)
        if self._taught is None or distil is None:
            self.x, self.y = tensors_for(spec, dataset.x, dataset.y)
        elif distil.labels:
            self.x, self.y = tensors_for(spec, dataset.x, dataset.y, unlabelled=True)
        else:
            self.x, self.y = samples_for(spec, dataset.x), self._taught

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Return the mean loss of the samples with these indices (B,)."""
        outputs, distil, objective = model(self.x[batch]), self._distil, self._spec.objective
        if self._taught is None or distil is None:
            return loss_of(objective, outputs, self.y[batch])
        taught = taught_loss(objective, outputs, self._taught[batch], distil.temperature)
        if not distil.labels:
            return taught
        return (1 - distil.labels) * taught + distil.labels * labels_loss(objective, outputs, self.y[batch])


def _taught(spec: ModelSpec, dataset: Dataset) -> Tensor:
    wanted = (len(dataset.x), spec.classes)
    if dataset.taught is None or dataset.taught.shape != wanted:
        found = "nothing" if dataset.taught is None else str(dataset.taught.shape)
        raise UsageError(f"a teacher must give {wanted} for these samples; there is {found}")
    return torch.from_numpy(dataset.taught.astype(np.float32))
