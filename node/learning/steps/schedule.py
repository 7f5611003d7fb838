"""How the learning rate changes over a task: a pure function of the step."""

import math

from ..settings import Schedule


def rate_at(step: int, steps: int, *, rate: float, schedule: Schedule, warmup_steps: int = 0) -> float:
    """Return the learning rate of step number ``step`` (from 0) out of ``steps``; 0 steps: the end is not known.

    ``cosine`` (Loshchilov and Hutter 2017) and ``linear`` fall to a hundredth of ``rate`` at the last step: what nodes
    learn apart from each other then is small, and the last averages agree. Warm-up rises linearly to ``rate``.
    """
    if step < warmup_steps:
        return rate * (step + 1) / warmup_steps
    if schedule == "constant" or steps <= warmup_steps:
        return rate
    done = min(1.0, (step - warmup_steps) / (steps - warmup_steps))
    left = (1 + math.cos(math.pi * done)) / 2 if schedule == "cosine" else 1 - done
    return rate * max(left, 0.01)
