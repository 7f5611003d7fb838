"""How each objective's loss changes with a model's outputs, for many models at once; and how good outputs are.

Same losses as `node/learning/losses.py`. Outputs lie as (n, K, B): models, numbers that one answers, samples. So the
softmax runs along whole rows of memory; with the K innermost it takes 18 times as long.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ...node.objective import Objective, is_of_classes, is_of_values


def slopes_of(objective: Objective, outputs: Tensor, y: Tensor, share: Tensor) -> Tensor:
    """Return d loss / d outputs, (n, K, B), for the loss that is the sum of ``share`` times each sample's own loss.

    ``outputs`` (n, K, B) may be overwritten; ``y`` int64 (n, B) of classes, else float32 (n, B, K); ``share`` (n, B)
    is one over the batch's size, and 0 for what only fills the batch up.
    """
    if is_of_classes(objective):
        slopes = torch.softmax(outputs, dim=1)
        minus = torch.full((1, 1, 1), -1.0, device=y.device).expand(len(y), 1, y.shape[1])
        slopes.scatter_add_(1, y[:, None, :], minus)
        return slopes.mul_(share[:, None, :])
    wanted = y.transpose(1, 2)
    match objective:
        case "binary_cross_entropy":
            slopes = torch.sigmoid(outputs).sub_(wanted)
        case "mse":
            slopes = (outputs - wanted).mul_(2)
        case "mae":
            slopes = (outputs - wanted).sign_()
        case _:  # huber, with delta 1
            slopes = (outputs - wanted).clamp_(-1, 1)
    return slopes.mul_(share[:, None, :] / outputs.shape[1])


def losses_of(objective: Objective, outputs: Tensor, y: Tensor) -> Tensor:
    """Return each model's loss on each sample, (n, T): ``outputs`` (n, K, T), ``y`` (T,) of classes, else (T, K)."""
    if is_of_classes(objective):
        return torch.log_softmax(outputs, dim=1).gather(1, y.expand(len(outputs), 1, -1)).squeeze(1).neg_()
    wanted = y.t().expand_as(outputs)
    match objective:
        case "binary_cross_entropy":
            each = functional.binary_cross_entropy_with_logits(outputs, wanted, reduction="none")
        case "mse":
            each = functional.mse_loss(outputs, wanted, reduction="none")
        case "mae":
            each = functional.l1_loss(outputs, wanted, reduction="none")
        case _:
            each = functional.huber_loss(outputs, wanted, reduction="none")
    return each.mean(dim=1)


def marks_of(objective: Objective, outputs: Tensor, y: Tensor) -> Tensor:
    """Return each sample's part in a model's quality, (n, T): 1 for right and 0 for wrong, or the squared error.

    Of several yes-or-no answers the mark is the share that is right, of several values the sum of their errors.
    """
    if is_of_classes(objective):
        return (outputs.max(dim=1).indices == y).float()  # twelve times as fast as argmax, which is the same
    if is_of_values(objective):
        return (outputs - y.t()).square_().sum(dim=1)
    return ((outputs >= 0) == (y.t() >= 0.5)).float().mean(dim=1)
