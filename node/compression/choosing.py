"""Which form a product takes on this device: measured, and the quickest that says nearly what the float layer said."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels import Rounded
from .forms import Form, Product, error_of, products_of

# Of a layer's outputs, relative: rounding itself costs about 0.006 with 8 bits and 0.1 with 4.
ERROR_MAX: Final = {8: 0.02, 4: 0.2}
_ROUNDS: Final = 7  # the least of so many: other work on the machine only ever slows
# Forms that take little memory come first, and the first that is nearly the quickest is taken.
_PREFERRED: Final[tuple[Form, ...]] = ("kernel", "torch4", "torch8", "dynamic", "unpacked", "resident")
_NEARLY: Final = 1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What a form gave on some inputs."""

    form: Form
    error: float  # of the outputs against the float layer's, relative
    taken_s: float


def try_forms(rounded: Rounded, weight: Tensor, x: Tensor) -> list[Tried]:
    """Measure every form that there is here: float (n, K) as it was, float32 inputs (M, K)."""
    with torch.inference_mode():
        wanted = F.linear(x, weight)
        products = dict(products_of(rounded))
        taken = least_s([_call(product, x) for product in products.values()])
        return [
            Tried(form=form, error=error_of(product(x), wanted), taken_s=seconds)
            for (form, product), seconds in zip(products.items(), taken, strict=True)
        ]


def choose(tried: Iterable[Tried], error_max: float) -> Form | None:
    """Return the quickest form that keeps the bound; None where no form does."""
    good = {each.form: each.taken_s for each in tried if each.error <= error_max}
    if not good:
        return None
    quickest = min(good.values())
    return next(form for form in _PREFERRED if form in good and good[form] <= _NEARLY * quickest)


def least_s(runs: list[Callable[[], object]]) -> list[float]:
    """Return the least time of each, run in turns after one to warm up."""
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(_ROUNDS + 1):
        for run, times in zip(runs, taken, strict=True):
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
    return [min(times[1:]) for times in taken]


def _call(product: Product, x: Tensor) -> Callable[[], object]:
    return lambda: product(x)
