"""Matrices as a stage holds them: packed at a precision, and a product whose every row is worked out by itself."""

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..deployments import Precision

Float = npt.NDArray[np.float32]
_BYTES: Final = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5}


class Linear:
    """y = x W^T, row by row: no row's bits follow from who else is in the batch."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight.detach().to(torch.float32).contiguous()  # (outputs, inputs)
        self._row = torch.empty(self._weight.shape[1])  # every row starts at the same alignment
        self.size_bytes = self._weight.nbytes

    def product(self, x: Float) -> Float:
        """Float32 (T, inputs) to (T, outputs)."""
        y = torch.empty(len(x), self._weight.shape[0])
        row = torch.empty(self._weight.shape[0])
        for index, given in enumerate(torch.from_numpy(x)):
            self._row.copy_(given)
            torch.mv(self._weight, self._row, out=row)
            y[index] = row
        return y.numpy()


class Embedding:
    """The rows of a matrix by token: float32, or bfloat16 where the precision is lower (nothing is multiplied)."""

    def __init__(self, weight: Tensor, precision: Precision) -> None:
        kept = torch.float32 if precision == "float32" else torch.bfloat16
        self._weight = weight.detach().to(kept, copy=True).contiguous()  # (vocabulary, width)
        self.size_bytes = self._weight.nbytes

    def rows(self, tokens: npt.NDArray[np.int32]) -> Float:
        """int32 (T,) to float32 (T, width)."""
        rows: Float = self._weight[torch.from_numpy(tokens.astype(np.int64))].to(torch.float32).numpy()
        return rows


def pack(weight: Tensor, precision: Precision) -> Linear:
    """Bring a matrix (outputs, inputs) of any float type to the form that its products are made from."""
    assert precision == "float32", "only float32 is packed here as yet"
    return Linear(weight)


def packed_bytes(outputs: int, inputs: int, precision: Precision) -> int:
    """How much a matrix takes in memory, packed."""
    return int(outputs * inputs * _BYTES[precision])


def embedding_bytes(vocabulary: int, width: int, precision: Precision) -> int:
    """How much the embedding takes in memory."""
    return vocabulary * width * (4 if precision == "float32" else 2)
