"""Masks while a module is trained on: the share that is gone rises, then the masks stay; after each step they hold.

The invariant: after every step each parameter is 0 wherever its mask says so. What is 0 has the least score, so what
once went does not come back while the share rises, unless another number of all has become as small.
"""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from .masks import RISING, UPDATES, Masks, zeroed

Choose = Callable[[Mapping[str, Tensor], float], Masks]  # (parameters, how much of the rise is done) -> what stays


class Gradual:
    """Prunes some more behind each step: `After` of ``fitting.fit``."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], choose: Choose, *, steps: int) -> None:
        self.masks: Masks = {}
        self._parameters, self._choose = parameters, choose
        self._rise = max(round(RISING * steps), 1)
        self._every = max(self._rise // UPDATES, 1)

    def __call__(self, _: nn.Module, done: int) -> None:
        """Choose anew where it is time, and hold; ``done`` steps of training are over."""
        if done <= self._rise and (done % self._every == 0 or done == self._rise):
            self.masks = self._choose(self._parameters, done / self._rise)
        zeroed(self._parameters, self.masks)
