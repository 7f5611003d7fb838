"""What an operation of a stranger's program must not do, looked at before it is run, on real tensors and others.

Some operations of torch trust their arguments where they should not (they read behind a tensor's end, or crash), and
some make little numbers into many parts, or whole numbers and lists without end.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from torch import Tensor

from ...mesh.errors import UsageError
from ..shapes import ACTIVATIONS_MAX

PARTS_MAX: Final = 1024  # of one result
SCORES_MAX: Final = 16 * ACTIVATIONS_MAX  # of every position with every other, which attention may make on the way
_WHOLE_MAX: Final = 2**62  # of sizes, as torch counts them
_GATES: Final = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_MATRICES: Final = 2  # of one layer and direction: for the input, and for the state before
_VECTORS: Final = 2  # and their biases

Arguments = Sequence[Any]


def require_bounded(op: str, args: Arguments, kwargs: Mapping[str, Any]) -> None:
    """Raise UsageError for an operation (as `operator.add`) that must not be done with these arguments."""
    name = op.partition(".")[0]
    check = _CHECKS.get(op) or _CHECKS.get(name)
    try:
        wrong = check is not None and not check(op, args, kwargs)
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise UsageError(f"The operation {op!r} of a program has arguments that it cannot have.") from error
    if wrong:
        raise UsageError(f"The operation {op!r} of a program has arguments that it must not have here.")


def _whole(_op: str, args: Arguments, kwargs: Mapping[str, Any]) -> bool:
    """On sizes; a list or a text would be made longer."""
    return not kwargs and all(isinstance(value, int) and abs(value) < _WHOLE_MAX for value in args)


def _item(_op: str, args: Arguments, _kwargs: Mapping[str, Any]) -> bool:
    return isinstance(args[0], tuple | list) and isinstance(args[1], int)


def _unbind(_op: str, args: Arguments, kwargs: Mapping[str, Any]) -> bool:
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    return bool(args[0].shape[dim] <= PARTS_MAX)


def _split(_op: str, args: Arguments, kwargs: Mapping[str, Any]) -> bool:
    size, dim = args[1], args[2] if len(args) > 2 else kwargs.get("dim", 0)
    return isinstance(size, list) or bool(size > 0 and args[0].shape[dim] <= size * PARTS_MAX)


def _chunk(_op: str, args: Arguments, _kwargs: Mapping[str, Any]) -> bool:
    return bool(0 < args[1] <= PARTS_MAX)


def _batch_norm(_op: str, args: Arguments, _kwargs: Mapping[str, Any]) -> bool:
    """Its kernel does not look how long the vectors are that it reads."""
    channels = args[0].shape[1]
    return all(value is None or value.numel() == channels for value in args[1:5])


def _attention(_op: str, args: Arguments, _kwargs: Mapping[str, Any]) -> bool:
    queries, keys, values = args[:3]
    scores = math.prod(queries.shape[:-1]) * keys.shape[-2]
    fit = keys.shape[:-1] == values.shape[:-1] and queries.shape[-1] == keys.shape[-1]
    return bool(fit and scores <= SCORES_MAX)


def _recurrent(op: str, args: Arguments, _kwargs: Mapping[str, Any]) -> bool:
    """A library behind it takes the sizes of all matrices from the first; projections are not known here."""
    x, state, weights, biases, layers = args[:5]
    directions = 2 if args[7] else 1
    states = state if isinstance(state, list) else [state]
    hidden, width = states[0].shape[-1], x.shape[-1]
    rows = _GATES[op.partition(".")[0]] * hidden
    each = _MATRICES + (_VECTORS if biases else 0)
    if not 0 < layers <= PARTS_MAX or len(weights) != each * layers * directions or hidden < 1:
        return False
    if len(states) != (2 if op.startswith("lstm") else 1) or x.dim() != 3 or isinstance(args[0], list):
        return False
    batch = x.shape[0 if args[8] else 1]
    if any(tuple(one.shape) != (layers * directions, batch, hidden) for one in states):
        return False
    for index in range(layers * directions):
        inputs = width if index < directions else hidden * directions
        shapes = [(rows, inputs), (rows, hidden), (rows,), (rows,)][:each]
        if [tuple(weight.shape) for weight in weights[each * index : each * (index + 1)]] != shapes:
            return False
    return all(isinstance(weight, Tensor) for weight in weights)


_CHECKS: Final[Mapping[str, Callable[[str, Arguments, Mapping[str, Any]], bool]]] = {
    "operator.getitem": _item,
    "operator": _whole,
    "unbind": _unbind,
    "split": _split,
    "chunk": _chunk,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(_GATES, _recurrent),
}
