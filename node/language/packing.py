"""What a matrix takes in memory once it is packed at a precision; known before anything is loaded."""

from typing import Final

from ..deployments import Precision

_NUMBER_BYTES: Final = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5}
# As `kernels` packs: rows are padded to panels of 16, columns to groups of 32, which share a bfloat16 scale.
_ROWS: Final = 16
_COLUMNS: Final = 32
_SCALE_BYTES: Final = 2


def vocabulary_precision(precision: Precision) -> Precision:
    """Return the precision of the embedding and the head: 4 bits there cost more than they save."""
    return "int8" if precision == "int4" else precision


def packed_bytes(outputs: int, inputs: int, precision: Precision) -> int:
    """Return what a matrix takes in memory, packed."""
    rows, columns = -(-outputs // _ROWS) * _ROWS, -(-inputs // _COLUMNS) * _COLUMNS
    scales = _SCALE_BYTES * rows * (columns // _COLUMNS) if precision in {"int8", "int4"} else 0
    return int(rows * columns * _NUMBER_BYTES[precision]) + scales
