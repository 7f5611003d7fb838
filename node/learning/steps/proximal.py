"""FedProx (Li et al. 2020): a pull back towards the model that the round began with, so that nobody strays far."""

from torch import Tensor


def add_proximal(gradient: Tensor, position: Tensor, start: Tensor, strength: float) -> None:
    """Add the gradient of ``strength / 2 * |position - start|^2`` in place; all are float32 (P,)."""
    if strength:
        gradient.add_(position, alpha=strength).sub_(start, alpha=strength)
