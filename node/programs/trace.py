"""From a module to a program: traced by torch.export, written down operation by operation, cut where little is alive.

Source: torch.export (Ansel et al. 2024, "PyTorch 2"), its functional ATen form without decompositions, so that a
convolution or an LSTM stays the one operation that the module would have run.
"""

import inspect
import math
import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import torch
from torch import Tensor, fx, nn

from ...mesh.errors import UsageError
from .cutting import cuts_of
from .operations import name_of
from .program import (
    BATCH,
    Argument,
    Dtype,
    Infinite,
    Kind,
    Layout,
    Node,
    Program,
    Ref,
    Several,
    Value,
    Weight,
    check,
    used,
)  # fmt: skip
from .run import BATCH_MAX, Stage

_SKIPPED: Final = ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size")
_DROPPED: Final = frozenset({"device", "layout", "pin_memory"})  # always the CPU, strided
_IDENTITIES: Final = ("dropout", "feature_dropout", "alpha_dropout", "native_dropout")  # of a model that does not learn
_TOLERANCE: Final = 1e-4  # of float32 kernels that add up in another order


@dataclass(frozen=True, slots=True)
class Traced:
    """A program with its weights, by their names in it."""

    program: Program
    weights: Mapping[str, Tensor]


def trace(
    module: nn.Module,
    example: Sequence[Tensor],
    *,
    sizes: Mapping[str, tuple[int, int]] | None = None,
    dims: Sequence[Mapping[int, str]] | None = None,
) -> Traced:
    """Trace a module in its ``eval`` form on example inputs, each of whose first dimension is the batch.

    ``dims`` names further dimensions that change from request to request, for each input ({1: "positions"}), and
    ``sizes`` says between which bounds. Raises UsageError when torch cannot export it, when it uses an operation that
    nodes do not run, or when it is not one model for all batches (control flow that depends on values).
    """
    bounds = {BATCH: (1, BATCH_MAX), **(sizes or {})}
    named = [{0: BATCH, **dict(more)} for more in (dims or [{}] * len(example))]
    samples = _two_samples(example)
    traced = _Writer(_export(module, samples, bounds, named), bounds, named).traced()
    _compare(module, traced, [torch.cat([tensor, tensor[:1]]) for tensor in samples])
    return traced


def _two_samples(example: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Torch takes a dimension of 1 for a constant."""
    if not example or any(tensor.dim() == 0 or not len(tensor) for tensor in example):
        raise UsageError("Tracing takes at least one example tensor, and each begins with the batch.")
    # Copies, because torch takes one tensor in two places for one input.
    return tuple(tensor.clone() if len(tensor) > 1 else torch.cat([tensor, tensor]) for tensor in example)


def _compare(module: nn.Module, traced: Traced, inputs: Sequence[Tensor]) -> None:
    """Raise UsageError unless the program gives what the module gives, on another number of samples."""
    learning = module.training
    module.eval()
    try:
        with torch.no_grad():
            wanted = module(*inputs)
    finally:
        module.train(learning)
    found = Stage(traced.program, 0, traced.program.layers, traced.weights).run(inputs)
    pairs = list(zip(found, wanted if isinstance(wanted, tuple | list) else (wanted,), strict=True))
    if not all(torch.allclose(mine, its, rtol=_TOLERANCE, atol=_TOLERANCE) for mine, its in pairs):
        raise UsageError("Traced, this model gives something else than the module itself, so it cannot be served.")


def _export(
    module: nn.Module, example: tuple[Tensor, ...], bounds: Mapping[str, tuple[int, int]],
    named: Sequence[Mapping[int, str]],
) -> torch.export.ExportedProgram:  # fmt: skip
    symbols = {name: torch.export.Dim(name, min=least, max=largest) for name, (least, largest) in bounds.items()}
    dynamic = tuple({index: symbols[name] for index, name in dims.items()} for dims in named)
    learning = module.training
    module.eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch's own deprecations
            exported = torch.export.export(module, example, dynamic_shapes=_per_argument(module, dynamic))
            functional: torch.export.ExportedProgram = exported.run_decompositions({})
            return functional
    except Exception as error:  # torch raises a dozen kinds here, most of them private
        reason = str(error).strip().partition("\n")[0][:400]
        raise UsageError(f"torch.export cannot trace this model: {reason}") from error
    finally:
        module.train(learning)


def _per_argument(module: nn.Module, dynamic: tuple[Any, ...]) -> tuple[Any, ...]:
    """``forward(*inputs)`` is one argument to torch."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    return (dynamic,) if inspect.Parameter.VAR_POSITIONAL in kinds[:1] else dynamic


class _Writer:
    """Writes an exported graph down."""

    def __init__(
        self, exported: torch.export.ExportedProgram, bounds: Mapping[str, tuple[int, int]],
        named: Sequence[Mapping[int, str]],
    ) -> None:  # fmt: skip
        self._exported = exported
        self._bounds = bounds
        self._named = named
        self._symbols: dict[str, str] = {}  # torch's name of a size to ours
        self._same: dict[str, Argument] = {}  # a node that does nothing to what it is
        self._nodes: list[Node] = []
        self._inputs: dict[str, Value] = {}
        self._tensors: dict[str, Weight] = {}
        self._weights: dict[str, Tensor] = {}
        self._bytes: dict[str, int] = {}  # of one sample, of what is alive

    def traced(self) -> Traced:
        outputs: tuple[str, ...] = ()
        self._placeholders()
        for node in self._exported.graph.nodes:
            if node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                outputs = tuple(self._output(argument) for argument in node.args[0])
        if not self._nodes or not outputs:
            raise UsageError("This module computes nothing from its inputs.")
        program = Program(
            inputs=self._inputs, tensors=self._tensors, symbols=dict(self._bounds), nodes=tuple(self._nodes),
            outputs=outputs, cuts=(),
        )  # fmt: skip
        program = _pruned(program)
        cut = Program(
            inputs=program.inputs, tensors=program.tensors, symbols=program.symbols, nodes=program.nodes,
            outputs=program.outputs, cuts=cuts_of(program, self._bytes),
        )  # fmt: skip
        check(cut)
        return Traced(cut, {weight.stored: self._weights[weight.stored] for weight in cut.tensors.values()})

    def _placeholders(self) -> None:
        signature, taken = self._exported.graph_signature, iter(self._named)
        stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        constants = signature.inputs_to_lifted_tensor_constants
        shared: dict[int, str] = {}
        for node in self._exported.graph.find_nodes(op="placeholder"):
            if node.name in stored or node.name in constants:
                name = stored.get(node.name) or constants[node.name]
                held = self._exported.state_dict.get(name)
                tensor = held if held is not None else self._exported.constants[name]
                name = shared.setdefault(id(tensor), name)  # tied weights are kept once
                self._weights[name] = tensor.detach()
                self._tensors[node.name] = Weight(stored=name, dtype=_dtype(tensor.dtype), shape=tuple(tensor.shape))
            elif isinstance(node.meta.get("val"), Tensor):
                self._input(node, next(taken))
            else:
                raise UsageError(f"The input {node.name!r} of this model is not a tensor.")

    def _input(self, node: fx.Node, named: Mapping[int, str]) -> None:
        shape = list(node.meta["val"].shape)
        for index, name in named.items():
            self._symbols[str(shape[index])] = name
        self._inputs[node.name] = self._value(node.meta["val"])
        self._bytes[node.name] = _sample_bytes(node.meta["val"])

    def _call(self, node: fx.Node) -> None:
        base = str(node.target).removeprefix("aten.").partition(".")[0]
        if base in _SKIPPED:
            return
        if base in _IDENTITIES:
            self._same[node.name] = self._argument(node.args[0])
            return
        found = _meta(node)
        self._bytes[node.name] = _sample_bytes(found)
        self._nodes.append(
            Node(
                name=node.name,
                op=name_of(node.target),
                args=tuple(self._argument(argument) for argument in node.args),
                kwargs={
                    key: self._argument(argument)
                    for key, argument in node.kwargs.items()
                    if key not in _DROPPED and argument is not None
                },
                value=self._value(found) if isinstance(found, Tensor | int | torch.SymInt) else None,
            )
        )

    def _output(self, argument: object) -> str:
        written = self._argument(argument)
        if not isinstance(written, Ref):
            raise UsageError("This model gives something that is not a tensor; let its forward return tensors.")
        return written.name

    def _value(self, found: Tensor | int | torch.SymInt) -> Value:
        if not isinstance(found, Tensor):
            return Value(dtype="int64", shape=None)
        return Value(dtype=_dtype(found.dtype), shape=tuple(self._dim(size) for size in found.shape))

    def _dim(self, size: int | torch.SymInt) -> int | str | None:
        return size if isinstance(size, int) else self._symbols.get(str(size))

    def _argument(self, argument: object) -> Argument:
        match argument:
            case fx.Node():
                return self._same.get(argument.name, Ref(name=argument.name))
            case list() | tuple():
                return Several(items=tuple(self._argument(item) for item in argument))
            case torch.dtype():
                return Kind(dtype=_dtype(argument))
            case torch.memory_format():
                return Layout(format=str(argument).removeprefix("torch."))  # type: ignore[arg-type]
            case float() if math.isinf(argument):
                return Infinite(negative=argument < 0)
            case bool() | int() | float() | str() | None:
                return argument
            case _:
                raise UsageError(
                    f"This model hands {str(argument)[:80]!r} to an operation; that cannot be written down."
                )


def _meta(node: fx.Node) -> Any:  # noqa: ANN401 - a tensor, a whole number, several of them
    """What torch knows of a result. A part of several has no note of its own."""
    if "val" in node.meta:
        return node.meta["val"]
    if node.target is operator.getitem:
        return _meta(node.args[0])[node.args[1]]  # type: ignore[arg-type]
    raise UsageError(f"torch does not say what {node.name!r} of this model is.")


def _dtype(dtype: torch.dtype) -> Dtype:
    found: Dtype = msgspec.convert(str(dtype).removeprefix("torch."), Dtype)
    return found


def _sample_bytes(found: object) -> int:
    """Bytes of one sample, with other sizes that change taken at what the example had."""
    if not isinstance(found, Tensor):
        return 8
    return math.prod(_example_size(size) for size in found.shape) * found.element_size()


def _example_size(size: int | torch.SymInt) -> int:
    return size if isinstance(size, int) else int(size.node.hint or 1)


def _pruned(program: Program) -> Program:
    """Leave out what nothing uses: checks that torch wrote down, weights of heads that are not asked."""
    wanted, kept = set(program.outputs), []
    for node in reversed(program.nodes):
        if node.name in wanted:
            kept.append(node)
            wanted.update(used(node))
    return Program(
        inputs=program.inputs, symbols=program.symbols, outputs=program.outputs, cuts=(), nodes=tuple(reversed(kept)),
        tensors={name: stored for name, stored in program.tensors.items() if name in wanted},
    )  # fmt: skip
