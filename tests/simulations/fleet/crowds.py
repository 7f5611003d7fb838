"""Small populations to learn from."""

import numpy as np
import torch
from lepton.node.objective import Objective, is_of_classes
from lepton.simulations.fleet.population import Population

CLASSES = 3


def population(
    counts: list[int], *, shape: tuple[int, ...] = (4,), objective: Objective = "cross_entropy", test: int = 12
) -> Population:
    """Hold so many samples at each node, which a linear model can learn in part."""
    rng = np.random.default_rng(5)
    total = sum(counts)
    inputs = rng.standard_normal((total + test, *shape)).astype(np.float32)
    values = inputs.reshape(total + test, -1) @ rng.standard_normal((inputs[0].size, CLASSES)).astype(np.float32)
    labels = torch.from_numpy(values.argmax(axis=1) if is_of_classes(objective) else values)
    if objective == "binary_cross_entropy":
        labels = (labels > 0).float()
    x = torch.from_numpy(inputs)
    return Population(
        inputs=x[:total], labels=labels[:total], order=rng.permutation(total), starts=np.cumsum([0, *counts]),
        test_inputs=x[total:], test_labels=labels[total:], classes=CLASSES,
    )  # fmt: skip
