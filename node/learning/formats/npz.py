"""numpy archives: `x` and `y`, and perhaps `x_test` and `y_test`. Never pickled objects."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ....mesh.errors import UsageError
from .checks import Dataset, Wanted, dataset_of, require_same_length, samples_of, unlabelled


def from_npz(path: Path, wanted: Wanted) -> Dataset:
    arrays = read_npz(path)
    needed = ("x", "y") if wanted.labels else ("x",)
    if missing := [name for name in needed if name not in arrays]:
        found = ", ".join(sorted(arrays)) or "none"
        raise UsageError(
            f"{path}: has no array `{missing[0]}` (it has {found}); save with np.savez(path, x=..., y=...)"
        )
    if ("x_test" in arrays) != ("y_test" in arrays):
        raise UsageError(f"{path}: has only one of `x_test` and `y_test`; give both or neither")
    x = samples_of(path, "x", arrays["x"])
    x_test = y_test = None
    if "x_test" in arrays:
        x_test, y_test = samples_of(path, "x_test", arrays["x_test"]), wanted.targets(path, "y_test", arrays["y_test"])
        require_same_length(path, "x_test", x_test, "y_test", y_test)
        if x_test.shape[1:] != x.shape[1:]:
            raise UsageError(
                f"{path}: samples of `x` are {x.shape[1:]}, of `x_test` {x_test.shape[1:]}; make them equal"
            )
    if "y" not in arrays:
        return unlabelled(x, wanted.classes, x_test, y_test)
    y = wanted.targets(path, "y", arrays["y"])
    require_same_length(path, "x", x, "y", y)
    return dataset_of(path, x, y, wanted, x_test, y_test)


def read_npz(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    try:
        with path.open("rb") as file:  # given a path, np.load leaves the file open when it is damaged
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UsageError(f"{path}: is a single array, not an .npz; save with np.savez(path, x=..., y=...)")
            return {name: archive[name] for name in archive.files if name in ("x", "y", "x_test", "y_test")}
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise UsageError(f"{path}: is not an .npz of plain arrays, or is damaged ({error}); save it again") from error
