"""A traced model in data: what it takes, one operation after another, and where it may be cut. Pure: no torch.

A program may come from a stranger. Its schema admits operations by name only, and `check` follows every value from
where it is made to where it is used; which names are allowed, and what sizes come of them, `run.py` says.

A cut leaves some values alive: they are what travels between two stages. Layers, as placement knows them, are the runs
of operations between two cuts.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

from ...mesh.errors import UsageError
from ...mesh.limits import BUFFERS_MAX
from ..language.layout import SCALE

PROGRAM_FILE: Final = "program.json"
PROGRAM_BYTES_MAX: Final = 16 * 1024 * 1024  # a ResNet-152 takes 100 KiB; an LSTM stays one operation
NODES_MAX: Final = 20_000
LAYERS_MAX: Final = 64  # more would not be placed better: a stage holds several anyway
BATCH: Final = "batch"  # the symbol of every input's first dimension

_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,255}\Z")]
_TensorName = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
_Op = Annotated[str, msgspec.Meta(pattern=r"^[a-z_][a-z0-9_]*\.[A-Za-z0-9_]+\Z", max_length=128)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
Dtype = Literal["float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"]
Dim = _Size | str | None  # a number, a symbol, or something that follows from symbols


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all parts."""


class Ref(_Part, frozen=True, tag_field="is", tag="value"):
    """Another value of the program."""

    name: _Name


class Kind(_Part, frozen=True, tag_field="is", tag="dtype"):
    """A dtype as an argument."""

    dtype: Dtype


class Layout(_Part, frozen=True, tag_field="is", tag="memory"):
    """A memory format as an argument."""

    format: Literal["contiguous_format", "preserve_format", "channels_last"]


class Infinite(_Part, frozen=True, tag_field="is", tag="infinite"):
    """A number that JSON has no word for."""

    negative: bool = False


class Several(_Part, frozen=True, tag_field="is", tag="list"):
    """A list of arguments."""

    items: Annotated[tuple["Argument", ...], msgspec.Meta(max_length=1024)]


Argument = Ref | Kind | Layout | Infinite | Several | bool | int | float | str | None


class Value(_Part, frozen=True):
    """What is known of a tensor before it is there. A ``shape`` of None: a whole number, not a tensor."""

    dtype: Dtype
    shape: Annotated[tuple[Dim, ...], msgspec.Meta(max_length=8)] | None


class Weight(_Part, frozen=True, omit_defaults=True):
    """A tensor that comes with the program, and its name in the weights' file.

    One with ``bits`` lies there as integers and scales (``kernels/rounded.py``), as a matrix of its first axis by all
    others; whatever lies there may be coded (``compression/coded.py``). It is unpacked when it is loaded: ``dtype`` and
    ``shape`` are what operations see.
    """

    stored: _TensorName
    dtype: Dtype
    shape: Annotated[tuple[_Size, ...], msgspec.Meta(max_length=8)]
    bits: Literal[0, 4, 8] = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Everything in the weights' file that belongs to it, where nothing is coded."""
        return (self.stored, self.stored + SCALE) if self.bits else (self.stored,)


class Node(_Part, frozen=True):
    """One operation of ATen, or ``operator.getitem`` and the like on whole numbers and results of several parts."""

    name: _Name
    op: _Op
    args: Annotated[tuple[Argument, ...], msgspec.Meta(max_length=32)] = ()
    kwargs: Annotated[dict[_Name, Argument], msgspec.Meta(max_length=16)] = {}
    value: Value | None = None  # None: several parts, so it cannot travel


class Program(_Part, frozen=True):
    """A whole model. ``inputs`` and ``tensors`` (its weights) are values too; ``cuts`` are indices into ``nodes``."""

    inputs: Annotated[dict[_Name, Value], msgspec.Meta(min_length=1, max_length=16)]
    tensors: Annotated[dict[_Name, Weight], msgspec.Meta(max_length=NODES_MAX)]
    symbols: Annotated[dict[_Name, tuple[_Size, _Size]], msgspec.Meta(max_length=8)]  # least and largest
    nodes: Annotated[tuple[Node, ...], msgspec.Meta(min_length=1, max_length=NODES_MAX)]
    outputs: Annotated[tuple[_Name, ...], msgspec.Meta(min_length=1, max_length=16)]
    cuts: Annotated[tuple[_Size, ...], msgspec.Meta(max_length=LAYERS_MAX - 1)]

    @property
    def layers(self) -> int:
        """How many runs of operations there are."""
        return len(self.cuts) + 1

    def bounds(self, first: int, end: int) -> tuple[int, int]:
        """Return the nodes [start, stop) of the layers [first, end)."""
        edges = (0, *self.cuts, len(self.nodes))
        return edges[first], edges[end]


@dataclass(frozen=True, slots=True)
class Section:
    """A run of layers: what must come in, what goes out (both in the order of their making), and the weights."""

    nodes: tuple[Node, ...]
    needs: tuple[str, ...]
    gives: tuple[str, ...]
    tensors: tuple[str, ...]  # values


def read_program(data: bytes) -> Program:
    """Read a stranger's program. Raises UsageError that names what is wrong with it."""
    if len(data) > PROGRAM_BYTES_MAX:
        msg = f"A program of {len(data):,} bytes is over the limit of {PROGRAM_BYTES_MAX:,}."
        raise UsageError(msg)
    try:
        program = msgspec.json.decode(data, type=Program)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        msg = f"This is not a valid program: {str(error)[:300]}."
        raise UsageError(msg) from error
    check(program)
    return program


def write_program(program: Program) -> bytes:
    return msgspec.json.encode(program)


def check(program: Program) -> None:
    """Raise UsageError unless each value is made once and before its use, and every cut can be travelled."""
    made = {*program.inputs, *program.tensors}
    _check_weights(program)
    _check_inputs(program)
    for node in program.nodes:
        for name in used(node):
            if name not in made:
                raise UsageError(f"In a program {node.name!r} uses {name!r}, which is not made before it.")
        if node.name in made:
            raise UsageError(f"A program makes {node.name!r} twice.")
        made.add(node.name)
    if missing := [name for name in program.outputs if name not in made]:
        raise UsageError(f"A program gives {missing[0]!r}, which nothing in it makes.")
    if list(program.cuts) != sorted(set(program.cuts)) or not all(0 < cut < len(program.nodes) for cut in program.cuts):
        raise UsageError("A program's cuts are not in order, or not inside it.")
    types = values(program)
    for index in range(program.layers):
        gives = section(program, index, index + 1).gives
        if len(gives) > BUFFERS_MAX or any(types.get(name) is None for name in gives):  # a weight is none either
            raise UsageError(f"A program cannot be cut behind its layer {index}: what is alive there cannot travel.")


def _check_weights(program: Program) -> None:
    if not program.tensors.keys().isdisjoint(program.inputs):
        raise UsageError("A program has an input and a weight of the same name.")
    if any(each.bits and (each.dtype != "float32" or len(each.shape) < 2) for each in program.tensors.values()):
        raise UsageError("A program has a rounded weight that is no float32 matrix.")


def _check_inputs(program: Program) -> None:
    if BATCH not in program.symbols:
        raise UsageError("A program does not say how many samples it takes at once.")
    for name, value in program.inputs.items():
        if value.shape is None or value.shape[:1] != (BATCH,):
            raise UsageError(f"The input {name!r} of a program does not begin with the batch.")
        known = {size for size in value.shape if isinstance(size, int)} | set(program.symbols)
        if unknown := [size for size in value.shape if size not in known]:
            raise UsageError(f"The input {name!r} of a program has a size {unknown[0]!r} that is nowhere explained.")


def values(program: Program) -> dict[str, Value | None]:
    """Return what is known of each input and each result."""
    return {**program.inputs, **{node.name: node.value for node in program.nodes}}


def used(node: Node) -> Iterator[str]:
    """Iterate over the values that a node takes."""
    yield from _refs((*node.args, *node.kwargs.values()))


def _refs(arguments: Iterable[Argument]) -> Iterator[str]:
    for argument in arguments:
        if isinstance(argument, Ref):
            yield argument.name
        elif isinstance(argument, Several):
            yield from _refs(argument.items)


def section(program: Program, first: int, end: int) -> Section:
    """Return the layers ``first`` up to, not including, ``end``. Raises UsageError when there are no such layers."""
    if not 0 <= first < end <= program.layers:
        raise UsageError(f"There is no run of layers {first}:{end} in a program of {program.layers} layers.")
    start, stop = program.bounds(first, end)
    inside = program.nodes[start:stop]
    wanted = {name for node in inside for name in used(node)}
    needs = live_at(program, start)
    # What is alive behind this run goes on, also where it only passes through.
    return Section(
        nodes=inside,
        needs=needs,
        gives=live_at(program, stop),
        tensors=tuple(name for name in program.tensors if name in wanted),
    )


def live_at(program: Program, position: int) -> tuple[str, ...]:
    """Return the values made before node ``position`` that something behind it uses; at the end, the outputs."""
    if position == len(program.nodes):
        return program.outputs
    later = {name for node in program.nodes[position:] for name in used(node)} | set(program.outputs)
    before = [*program.inputs, *(node.name for node in program.nodes[:position])]
    if position == 0:
        return tuple(program.inputs)
    return tuple(name for name in before if name in later)
