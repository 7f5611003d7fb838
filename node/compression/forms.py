"""The ways in which a product with rounded weights can be worked out here, each behind a probe.

Torch's own are private (`aten._weight_int8pack_mm`, `aten._weight_int4pack_mm_for_cpu`, `torch._int_mm`): they may be
gone or changed in another version. So each is made and tried on a few numbers first, and one that fails, or says
something else than the weights do, is not offered. Our kernel has its own probe; the two plain forms are always there.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ...mesh.errors import UsageError
from ..kernels import Rounded, available, pack
from ..kernels.grouping import GROUP

Form = Literal["resident", "unpacked", "kernel", "torch8", "torch4", "dynamic"]
Product = Callable[[Tensor], Tensor]  # float32 (M, K) to (M, n)
FORMS: Final[tuple[Form, ...]] = get_args(Form)
PLAIN: Final[tuple[Form, ...]] = ("resident", "unpacked")
# What a form may lose to the rounded weights in the probe: bfloat16 and rounded inputs cost about 0.01.
_PROBE_ERROR_MAX: Final = 0.05
# Every failure of an operation that is not meant for us to call, whatever it raises.
_FAILURES: Final = (RuntimeError, NotImplementedError, AttributeError, TypeError, ValueError, IndexError)


def product_of(form: Form, rounded: Rounded) -> Product:
    """Make a form. Raises UsageError where this machine, or this number of bits, has no such form."""
    made = _MAKERS[form](rounded) if form in PLAIN else _probed(form, rounded)
    if made is None:
        raise UsageError(f"There is no form {form!r} of {rounded.bits} bits here; 'auto' takes one that there is.")
    return made


def products_of(rounded: Rounded) -> Iterator[tuple[Form, Product]]:
    """Give every form that there is here for this matrix."""
    for form in FORMS:
        try:
            yield form, product_of(form, rounded)
        except UsageError:
            continue


def error_of(found: Tensor, wanted: Tensor) -> float:
    """Return the root of the mean squared error, relative to what is wanted."""
    size = wanted.to(torch.float64).square().sum()
    missed = (found.to(torch.float64) - wanted).square().sum()
    return float((missed / size).sqrt()) if size > 0 else float(missed > 0)


def _probed(form: Form, rounded: Rounded) -> Product | None:
    x = torch.randn((3, rounded.shape[1]), generator=torch.Generator().manual_seed(0))
    try:
        product = _MAKERS[form](rounded)
        found = None if product is None else product(x)
    except _FAILURES:
        return None
    if found is None or found.shape != (3, rounded.shape[0]) or found.dtype != torch.float32:
        return None
    return product if error_of(found, F.linear(x, rounded[:])) < _PROBE_ERROR_MAX else None


def _resident(rounded: Rounded) -> Product:
    """Floats, made once: as quick as before, and small only where it is stored and sent."""
    weight = rounded[:]
    return lambda x: F.linear(x, weight)


def _unpacked(rounded: Rounded) -> Product:
    """Floats, made anew for every product: small in memory."""
    return lambda x: F.linear(x, rounded[:])


def _kernel(rounded: Rounded) -> Product | None:
    if not available().native:
        return None
    packed = pack(rounded, "int4" if rounded.bits == 4 else "int8", native=True)
    return lambda x: packed.product(x, threads=torch.get_num_threads())


def _torch8(rounded: Rounded) -> Product | None:
    """A scale for each row, bfloat16 inputs: with float32 ones this operation is 4 to 20 times slower than floats."""
    if rounded.bits != 8 or rounded.shape[1] % GROUP:  # with other columns it reads behind the last row, and crashes
        return None
    op: Any = torch.ops.aten._weight_int8pack_mm  # noqa: SLF001  behind a probe
    integers, scales = _by_row(rounded[:])
    short = scales.to(torch.bfloat16)
    return lambda x: op(x.to(torch.bfloat16), integers, short).to(torch.float32)


def _torch4(rounded: Rounded) -> Product | None:
    """The same integers and scales: theirs is (q - 8) * scale + zero, q from 0 to 15; bfloat16 inputs."""
    n, columns = rounded.shape
    if rounded.bits != 4 or columns % GROUP or n % 16:
        return None
    ops: Any = torch.ops.aten
    groups, scales = rounded.groups(slice(None))
    packed = ops._convert_weight_to_int4pack_for_cpu(groups.flatten(1).to(torch.int32) + 8, 1)  # noqa: SLF001
    both = torch.stack((scales, torch.zeros_like(scales)), dim=2).transpose(0, 1).contiguous()  # (G, n, 2)
    product = ops._weight_int4pack_mm_for_cpu  # noqa: SLF001
    return lambda x: product(x.to(torch.bfloat16), packed, GROUP, both).to(torch.float32)


def _dynamic(rounded: Rounded) -> Product | None:
    """Inputs rounded too, each row by its largest: products of int8 summed in int32. The quickest with many rows."""
    integers, scales = _by_row(rounded[:])
    turned = integers.t()

    def product(x: Tensor) -> Tensor:
        short, steps = _by_row(x)
        return torch._int_mm(short, turned) * (steps.unsqueeze(1) * scales)  # noqa: SLF001  behind a probe

    return product


def _by_row(values: Tensor) -> tuple[Tensor, Tensor]:
    """Round (n, K) to int8 with a float32 scale for each row."""
    steps = (values.abs().amax(dim=1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return (values / steps.unsqueeze(1)).round_().to(torch.int8), steps


_MAKERS: Final[dict[Form, Callable[[Rounded], Product | None]]] = {
    "resident": _resident,
    "unpacked": _unpacked,
    "kernel": _kernel,
    "torch8": _torch8,
    "torch4": _torch4,
    "dynamic": _dynamic,
}
