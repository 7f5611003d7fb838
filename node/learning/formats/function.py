"""Data from a function of the owner's own, named in the node's configuration: ``package.module:function``.

It runs as the owner's code on the owner's device; no name ever comes from another node.
"""

import importlib
from typing import Any

import numpy as np

from ....mesh.errors import UsageError
from .checks import Dataset, Wanted, dataset_of, require_same_length, samples_of, unlabelled


def from_function(name: str, wanted: Wanted) -> Dataset:
    """Call it without arguments; it returns a Dataset, (x, y) or (x, y, x_test, y_test), or (x,) without labels.

    Raises UsageError.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise UsageError(f"{name}: the module {module!r} cannot be imported: {error}") from error
    except AttributeError as error:
        raise UsageError(f"{name}: the module {module!r} has no {function!r}") from error
    given = found()
    if isinstance(given, Dataset):
        return given
    if isinstance(given, tuple) and len(given) == 1 and not wanted.labels:
        return unlabelled(samples_of(name, "x", np.asarray(given[0])), wanted.classes)
    if not isinstance(given, tuple) or len(given) not in {2, 4}:
        raise UsageError(f"{name}: returned {type(given).__name__}; return (x, y) or (x, y, x_test, y_test)")
    x, y = _part(name, "x", given[0], given[1], wanted)
    if len(given) == 2:
        return dataset_of(name, x, y, wanted)
    x_test, y_test = _part(name, "x_test", given[2], given[3], wanted)
    if x_test.shape[1:] != x.shape[1:]:
        raise UsageError(f"{name}: samples of `x` are {x.shape[1:]}, of `x_test` {x_test.shape[1:]}; make them equal")
    return dataset_of(name, x, y, wanted, x_test, y_test)


def _part(name: str, what: str, x: Any, y: Any, wanted: Wanted) -> tuple[Any, Any]:  # noqa: ANN401 - anything
    samples, labels = samples_of(name, what, np.asarray(x)), wanted.targets(name, "labels", np.asarray(y))
    require_same_length(name, what, samples, "labels", labels)
    return samples, labels
