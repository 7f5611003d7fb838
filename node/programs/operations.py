"""The operations that a program may consist of: those of ATen that compute something from their arguments alone.

A list and not a rule, because a program may come from a stranger. What writes into its arguments, draws random numbers,
reads files or looks behind a tensor's bounds (`as_strided`) is not on it.
"""

import operator
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import torch

from ...mesh.errors import UsageError

_NAMES: Final = {
    "arithmetic, element by element": (
        "abs neg exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square reciprocal sin cos tan asin acos atan "
        "atan2 sinh cosh tanh asinh acosh atanh erf erfc sigmoid sign floor ceil round trunc frac clamp "
        "clamp_min clamp_max add sub rsub mul div floor_divide fmod remainder pow maximum minimum fmax fmin "
        "where lerp addcmul addcdiv nan_to_num lgamma"
    ),
    "comparison and logic": (
        "eq ne lt le gt ge isnan isinf isfinite logical_and logical_or logical_not logical_xor bitwise_and "
        "bitwise_or bitwise_not bitwise_xor __and__ __or__ __xor__"
    ),
    "activations": (
        "relu relu6 leaky_relu elu selu celu gelu silu mish softplus softsign hardtanh hardsigmoid hardswish "
        "log_sigmoid prelu glu softmax log_softmax _softmax _log_softmax threshold"
    ),
    "sums and the like": (
        "sum mean prod amax amin max min argmax argmin var std var_mean std_mean all any cumsum cumprod norm "
        "linalg_vector_norm logsumexp topk sort argsort count_nonzero"
    ),
    "products": ("linear addmm mm bmm baddbmm matmul dot mv addmv einsum outer scaled_dot_product_attention bilinear"),
    "convolutions and pooling": (
        "convolution conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d max_pool1d "
        "max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
        "adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
        "upsample_nearest1d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d pixel_shuffle "
        "pixel_unshuffle channel_shuffle constant_pad_nd pad reflection_pad1d reflection_pad2d "
        "replication_pad1d replication_pad2d grid_sampler_2d"
    ),
    "normalisation": (
        "layer_norm native_layer_norm group_norm native_group_norm rms_norm batch_norm instance_norm "
        "_native_batch_norm_legit_no_training local_response_norm cosine_similarity"
    ),
    "recurrent, whole": ("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell"),
    "shapes": (
        "view reshape _unsafe_view flatten unflatten squeeze unsqueeze permute transpose t expand expand_as "
        "repeat repeat_interleave cat concat stack split split_with_sizes chunk unbind slice select narrow "
        "flip roll tile movedim swapaxes contiguous clone alias detach tril triu diagonal view_as reshape_as"
    ),
    "looking up": ("embedding gather index index_select take_along_dim scatter masked_fill one_hot"),
    "making, and changing the kind": (
        "full full_like zeros zeros_like ones ones_like new_zeros new_ones new_full arange linspace "
        "scalar_tensor eye _to_copy to type_as lift_fresh_copy lift_fresh"
    ),
    "sizes": ("sym_size"),
}
_ALLOWED: Final = frozenset(name for names in _NAMES.values() for name in names.split())
# On whole numbers that are sizes, and for a result of several parts.
_PYTHON: Final[dict[str, Callable[..., Any]]] = {
    "operator.getitem": operator.getitem,
    "operator.add": operator.add,
    "operator.sub": operator.sub,
    "operator.mul": operator.mul,
    "operator.floordiv": operator.floordiv,
    "operator.mod": operator.mod,
    "operator.neg": operator.neg,
}
_LOOSER: Final = {"view.default": "reshape.default", "_unsafe_view.default": "reshape.default"}
# They make a tensor from nothing, so where it is made has to be said.
MAKERS: Final = frozenset(["full", "zeros", "ones", "arange", "linspace", "scalar_tensor", "eye"])


@cache
def function_of(op: str) -> Callable[..., Any]:
    """Return what 'conv2d.default' or 'operator.add' computes. Raises UsageError for one that is not allowed."""
    if op in _PYTHON:
        return _PYTHON[op]
    # A kernel may lay its result out in another way than the one that was there when the model was traced.
    name, _, overload = _LOOSER.get(op, op).partition(".")
    found = getattr(getattr(torch.ops.aten, name, None), overload, None) if name in _ALLOWED else None
    if found is None or found._schema.is_mutable:  # noqa: SLF001 - torch tells it nowhere else
        raise UsageError(f"This node does not run the operation {op!r} of a program; make the model without it.")
    return found  # type: ignore[no-any-return]


def name_of(target: object) -> str:
    """Return the name under which a traced operation is written down. Raises UsageError for one not allowed."""
    for name, function in _PYTHON.items():
        if target is function:
            return name
    op = str(target).removeprefix("aten.")
    function_of(op)
    return op
