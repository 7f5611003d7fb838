"""A run of a program's layers, with its weights, ready to work: a stage of a model that was traced.

What comes in is checked against what the program says of it. What a program may take is tried first on tensors
without numbers (torch's meta device): a few operations of a stranger's can unfold into terabytes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from ...mesh.errors import LeptonError, PeerError, UsageError
from ..shapes import ACTIVATIONS_MAX
from .bounds import require_bounded
from .operations import MAKERS, function_of
from .program import (
    BATCH,
    Argument,
    Infinite,
    Kind,
    Layout,
    Node,
    Program,
    Ref,
    Section,
    Several,
    Value,
    section,
    used,
    values,
)  # fmt: skip
from .weights import read_weight

# What one operation may make, in numbers: 16 of a trained model's largest layer outputs, 256 MiB of float32.
RESULT_MAX: Final = 16 * ACTIVATIONS_MAX
ALIVE_MAX: Final = 4 * RESULT_MAX  # numbers of all results that are still needed: a gigabyte of float32
BATCH_MAX: Final = 256  # samples of one request that travel together


class Stage:
    """The layers ``first`` up to, not including, ``end`` of a program, loaded."""

    def __init__(self, program: Program, first: int, end: int, tensors: Mapping[str, Tensor]) -> None:
        """``tensors`` are its weights by their names in the weights' file: at least those of its layers.

        Raises UsageError for a weight that is not there, and for an operation that this node does not run.
        """
        self.program = program
        self.first = first
        self.end = end
        self._section: Section = section(program, first, end)
        self._steps = [_Step(node) for node in self._section.nodes]
        self._values = values(program)
        self._drop = _last_uses(self._section)
        self._weights = {name: read_weight(program.tensors[name], tensors) for name in self._section.tensors}

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of what comes in, in order."""
        return self._section.needs

    @property
    def gives(self) -> tuple[str, ...]:
        """Names of what goes out, in order."""
        return self._section.gives

    @property
    def weights_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._weights.values())

    def run(self, arrays: Sequence[Tensor]) -> list[Tensor]:
        """Compute what goes out of what comes in, without gradients.

        Whole numbers that travel are int64 tensors without dimensions. Raises PeerError when ``arrays`` are not what
        the program says: their number, dtypes, dimensions, or sizes that disagree.
        """
        self.check(arrays)
        with torch.inference_mode():
            given = dict(zip(self.needs, arrays, strict=True))
            found = {name: self._enter(name, value) for name, value in given.items()} | self._weights
            for _ in _results(self._steps, self._drop, found):
                pass
            return [torch.as_tensor(found[name]).contiguous() for name in self.gives]

    def require_bounded(self, arrays: Sequence[Tensor]) -> None:
        """Raise UsageError when these layers would make too much of arrays of these sizes; nothing is computed.

        What comes from another stage may have sizes that its program does not tell beforehand.
        """
        given = dict(zip(self.needs, arrays, strict=True))
        found: dict[str, Any] = {name: _sized(self._enter(name, value)) for name, value in given.items()}
        found |= {name: _sized(weight) for name, weight in self._weights.items()}
        if (largest := _largest(self._section, found, until=RESULT_MAX)) > RESULT_MAX:
            raise UsageError(f"These inputs unfold into {largest:,} numbers in one step; {RESULT_MAX:,} are allowed.")

    def _enter(self, name: str, value: Tensor) -> Tensor | int:
        known = self._values[name]
        return int(value) if known is not None and known.shape is None else value

    def check(self, arrays: Sequence[Tensor]) -> dict[str, int]:
        """Return what each symbol is in what comes in. Raises PeerError as `run` does."""
        if len(arrays) != len(self.needs):
            raise PeerError(f"Layer {self.first} takes {len(self.needs)} tensors; {len(arrays)} came.")
        known = [(name, self._values[name]) for name in self.needs]
        for (name, _), array in zip(known, arrays, strict=True):
            # Inside, a mask may be made of infinities.
            wrong = array.isnan() if self.first else ~array.isfinite()
            if array.is_floating_point() and wrong.any():
                raise PeerError(f"{name!r} holds {'NaN' if self.first else 'NaN or infinity'}.")
        return sizes_of(arrays, [(name, value) for name, value in known if value is not None], self.program.symbols)


class Shaped(Protocol):
    """A tensor of torch or of numpy."""

    @property
    def dtype(self) -> Any: ...  # noqa: ANN401 - theirs
    @property
    def shape(self) -> tuple[int, ...]: ...


def sizes_of(
    arrays: Sequence[Shaped], known: Sequence[tuple[str, Value]], bounds: Mapping[str, tuple[int, int]]
) -> dict[str, int]:
    """Return what each symbol is in these arrays. Raises PeerError when one is not what is known of it."""
    sizes: dict[str, int] = {}
    for array, (name, value) in zip(arrays, known, strict=True):
        dtype = str(array.dtype).removeprefix("torch.")
        if dtype != value.dtype or not _fits(tuple(array.shape), value.shape or (), sizes, bounds):
            expected = " x ".join("any" if dim is None else str(dim) for dim in value.shape or ())
            said = "".join(f"; {dim} is {bounds[dim][0]} to {bounds[dim][1]}" for dim in bounds if dim in expected)
            raise PeerError(f"{name!r} is {dtype} {tuple(array.shape)}; expected {value.dtype} ({expected}{said}).")
    return sizes


def _fits(
    shape: Sequence[int], known: Sequence[int | str | None], sizes: dict[str, int],
    bounds: Mapping[str, tuple[int, int]],
) -> bool:  # fmt: skip
    if len(shape) != len(known):
        return False
    for size, dim in zip(shape, known, strict=True):
        if isinstance(dim, int) and size != dim:
            return False
        if isinstance(dim, str) and dim in bounds:
            least, largest = bounds[dim]
            if not least <= size <= largest or sizes.setdefault(dim, size) != size:
                return False
    return True


def batch_max(program: Program, symbols: Mapping[str, int] | None = None) -> int:
    """Return how many samples may come at once, at these values of the other symbols (their largest, if None).

    Raises UsageError when not even one sample keeps the bound, for an operation that this node does not run, and when
    the program's sizes do not fit each other.
    """
    sizes = {name: largest for name, (_, largest) in program.symbols.items()} | dict(symbols or {})
    one, two = largest_result(program, sizes | {BATCH: 1}), largest_result(program, sizes | {BATCH: 2})
    if one > RESULT_MAX:
        raise UsageError(
            f"One sample of this model unfolds into {one:,} numbers in one step; {RESULT_MAX:,} are allowed."
        )
    return max(1, min(BATCH_MAX, program.symbols[BATCH][1], 1 + (RESULT_MAX - one) // max(two - one, 1)))


def largest_result(program: Program, symbols: Mapping[str, int]) -> int:
    """Return the size, in numbers, of the largest result on the way at these sizes, without computing it.

    Raises UsageError when an operation does not take what it would be given.
    """
    whole = section(program, 0, program.layers)
    found: dict[str, Any] = {
        name: _without_numbers(
            value.dtype, [symbols[dim] if isinstance(dim, str) else dim for dim in value.shape or ()]
        )
        for name, value in program.inputs.items()
    } | {name: _without_numbers(weight.dtype, weight.shape) for name, weight in program.tensors.items()}
    return _largest(whole, found, until=RESULT_MAX if symbols[BATCH] == 1 else math.inf)


def _largest(part: Section, found: dict[str, Any], *, until: float) -> int:
    """Run a section on tensors without numbers; returns the size of the largest result, at least a quarter of all."""
    largest, sizes = 0, dict[str, int]()
    steps = [_Step(node) for node in part.nodes]
    weights = set(found)
    try:
        with torch.inference_mode():
            for step, result in zip(steps, _results(steps, _last_uses(part), found, device="meta"), strict=True):
                sizes[step.name] = sum(numbers) if (numbers := _numbers(result)) else 0
                largest = max(largest, *numbers, 0)
                sizes = {name: size for name, size in sizes.items() if name in found and name not in weights}
                largest = max(largest, sum(sizes.values()) * RESULT_MAX // ALIVE_MAX)
                if largest > until:
                    break  # what follows may be larger than torch can count
    except LeptonError:
        raise
    except Exception as error:  # a stranger's program may make torch raise anything
        raise UsageError(f"This model does not take inputs of these sizes: {_first_line(error)}.") from error
    return largest


def _numbers(result: object) -> list[int]:
    parts = result if isinstance(result, tuple | list) else (result,)
    return [part.numel() for part in parts if isinstance(part, Tensor)]


def _without_numbers(dtype: str, shape: Sequence[int | None]) -> Tensor:
    return torch.empty([size or 0 for size in shape], dtype=getattr(torch, dtype), device="meta")


def _sized(value: Tensor | int) -> Tensor | int:
    return value.to("meta") if isinstance(value, Tensor) else value


class _Step:
    """One operation, ready to run."""

    def __init__(self, node: Node) -> None:
        self.name = node.name
        self.makes = node.op.partition(".")[0] in MAKERS
        self._op = node.op
        self._function = function_of(node.op)
        self._args, self._kwargs = node.args, node.kwargs

    def __call__(self, found: Mapping[str, Any], device: str) -> Any:  # noqa: ANN401 - whatever it gives
        args = [_resolve(argument, found) for argument in self._args]
        kwargs = {key: _resolve(argument, found) for key, argument in self._kwargs.items()}
        require_bounded(self._op, args, kwargs)
        return self._function(*args, **kwargs, **({"device": device} if self.makes else {}))


def _results(
    steps: Sequence[_Step], drop: Sequence[Sequence[str]], found: dict[str, Any], device: str = "cpu"
) -> Iterator[Any]:
    """Run the steps in order, put each one's result into ``found``, and show it; what is over goes out of it."""
    for step, over in zip(steps, drop, strict=True):
        found[step.name] = result = step(found, device)
        yield result
        for name in over:
            found.pop(name, None)


def _last_uses(part: Section) -> list[tuple[str, ...]]:
    """For each node the values that nothing behind it uses any more, so that their memory goes back."""
    keep, over = set(part.gives) | set(part.tensors), []
    for node in reversed(part.nodes):
        mine = {node.name, *used(node)} - keep
        over.append(tuple(sorted(mine)))
        keep |= mine
    return over[::-1]


def _resolve(argument: Argument, found: Mapping[str, Any]) -> Any:  # noqa: ANN401 - whatever an operation takes
    match argument:
        case Ref(name=name):
            return found[name]
        case Several(items=items):
            return [_resolve(item, found) for item in items]
        case Kind(dtype=dtype):
            return getattr(torch, dtype)
        case Layout(format=layout):
            return getattr(torch, layout)
        case Infinite(negative=negative):
            return float("-inf") if negative else float("inf")
        case _:
            return argument


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
