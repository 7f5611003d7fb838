"""Memory that is used again: to ask for megabytes anew costs more than what is done with them."""

import torch
from torch import Tensor


class Scratch:
    """Tensors by name, that live as long as this."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Return float32 of this shape: zeros at first, then what was left there."""
        held = self._held.get((name, shape[1:]))
        if held is None or len(held) < shape[0]:
            held = self._held[name, shape[1:]] = torch.zeros(shape)
        return held[: shape[0]]
