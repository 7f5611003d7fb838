"""Parquet: columns of numbers, through pyarrow, which the extra `lepton-node[parquet]` installs."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ....mesh.errors import UsageError


def read_parquet(path: Path) -> tuple[list[str], npt.NDArray[np.float64]]:
    """Return the names of the columns and the numbers, (n, columns). Raises UsageError that names the column."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        how = "pip install 'lepton-node[parquet]'"
        raise UsageError(f"{path}: reading Parquet needs pyarrow; install it with: {how}") from error
    try:
        table = parquet.read_table(path)
    except (pa.ArrowException, ValueError) as error:
        raise UsageError(f"{path}: is not a Parquet file, or is damaged: {error}") from error
    if table.num_rows == 0 or table.num_columns < 2:
        raise UsageError(f"{path}: has {table.num_rows} rows of {table.num_columns} columns; give features and a label")
    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise UsageError(f"{path}: column `{name}` holds {kind}, not numbers; convert it or leave it out")
        if column.null_count:
            empty = column.null_count
            raise UsageError(f"{path}: column `{name}` has {empty} empty cells; fill them in or drop the rows")
        columns.append(column.to_numpy().astype(np.float64))
    return list(table.column_names), np.stack(columns, axis=1)
