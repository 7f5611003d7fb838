"""Integers in the place of a parameter: torch's functions take them as the tensor that they stand for.

A layer's own code stays as it is (`F.linear(x, self.weight, self.bias)`): the functions of torch ask their arguments
whether they know better (`__torch_function__`), and this one does. A product goes the way that was chosen for it, a
look-up unpacks the rows that are asked for, all else gets the numbers unpacked: convolutions, recurrent layers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels import Rounded
from .forms import Form, Product, product_of


class PackedWeight(nn.Module):
    """Rounded numbers of any shape; its buffers are what is stored."""

    integers: Tensor
    scales: Tensor

    def __init__(self, rounded: Rounded, shape: Sequence[int], form: Form = "unpacked") -> None:
        """Take a matrix (outputs, all other axes) for a parameter of ``shape``."""
        super().__init__()
        self.register_buffer("integers", rounded.integers[:])
        self.register_buffer("scales", rounded.scales[:])
        self.shape = torch.Size(shape)
        self.columns = rounded.shape[1]
        self._product: Product | None = None
        self._resident: Tensor | None = None
        self.take(form)

    @property
    def rounded(self) -> Rounded:
        return Rounded(self.integers, self.scales, self.columns)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def take(self, form: Form) -> None:
        """Choose a form. Raises UsageError for one that is not here; other parameters than matrices have two."""
        self.form: Form = form
        self._resident = self.rounded[:].view(self.shape) if form == "resident" else None
        self._product = None if form in {"resident", "unpacked"} else product_of(form, self.rounded)

    def dense(self) -> Tensor:
        """Return the numbers as float32."""
        return self.rounded[:].view(self.shape) if self._resident is None else self._resident

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x W^T + bias, as the chosen form does it."""
        if self._product is None or x.dtype != torch.float32:
            return F.linear(x, self.dense(), bias)
        y = self._product(x.reshape(-1, self.columns)).view(*x.shape[:-1], -1)
        return y if bias is None else y + bias

    def rows(self, ids: Tensor) -> Tensor:
        """Look up rows: int (...) to float32 (..., columns)."""
        if self._resident is not None:
            return self._resident[ids]
        flat = ids.reshape(-1)
        return Rounded(self.integers[flat], self.scales[flat], self.columns)[:].view(*ids.shape, self.columns)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  whatever the function gives
        given = dict(kwargs or {})
        if function is F.linear and isinstance(args[1], cls):
            return args[1].linear(args[0], *args[2:], **given)
        if function is F.embedding and isinstance(args[1], cls) and given.get("max_norm") is None:
            return args[1].rows(args[0])
        return function(*map(_plain, args), **{name: _plain(each) for name, each in given.items()})


def _plain(given: Any) -> Any:  # noqa: ANN401
    """Unpack an argument, or what is in a list of them: recurrent layers have one."""
    if isinstance(given, PackedWeight):
        return given.dense()
    if isinstance(given, list | tuple):
        return type(given)([_plain(each) for each in given])
    return given
