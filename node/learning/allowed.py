"""Models from functions of the owner's own, ``package.module:factory``: on this node, those that its owner allowed.

A task's record comes from another node, and to import a module is to run it. So a record's name is never imported: it
is looked up among the names that the owner wrote down, and those were imported when the node started.
"""

import importlib
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ...mesh.errors import UsageError
from ..limits import FACTORY_PATTERN
from ..shapes import ModelSpec

if TYPE_CHECKING:
    from torch import nn


class Factories:
    """The functions that this node's owner allows to make models, by name."""

    def __init__(self, allowed: Iterable[str]) -> None:
        """Raises UsageError for what cannot name a function."""
        self._made: dict[str, Callable[[], object] | None] = dict.fromkeys(allowed)
        for name in self._made:
            if not re.fullmatch(FACTORY_PATTERN, name):
                raise UsageError(f"{name!r} names no function that makes models: write package.module:factory")

    @property
    def names(self) -> tuple[str, ...]:
        """What is allowed here."""
        return tuple(sorted(self._made))

    def load(self) -> None:
        """Import all of them. Raises UsageError that names the one that cannot be."""
        for name in self._made:
            self._made[name] = _imported(name)

    def make(self, spec: ModelSpec) -> "nn.Module":
        """Build a model with its first values. Raises UsageError when it cannot be or may not be here."""
        from ..models import build  # torch, in the thread that needs it
        from .factories import made

        if spec.architecture != "own":
            return build(spec)
        function = self._made.get(spec.factory)
        if function is None:
            raise UsageError(
                f"this node does not have the model {spec.factory}: its owner allows it by `[models] allow` in "
                "node.toml, or `up --allow-model`"
            )
        return made(spec, function)


def _imported(name: str) -> Callable[[], object]:
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the owner's module raises
        raise UsageError(f"{name}: cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise UsageError(f"{name}: is no function, but {type(found).__name__}")
    made: Callable[[], object] = found
    return made
