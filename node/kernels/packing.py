"""Which implementation packs: the compiled kernel where it is there, torch elsewhere."""

from .native import NativePacked, available
from .packed import Matrix, Packed, Precision
from .plain import PlainPacked


def pack(weight: Matrix, precision: Precision, *, native: bool | None = None) -> Packed:
    """Pack float (outputs, inputs) for products at this precision, compiled where that is there or ``native`` says so.

    Raises UsageError for weights that cannot be packed, and where the kernel is asked for and is not there.
    """
    if native is None:
        native = available().native
    return NativePacked(weight, precision) if native else PlainPacked(weight, precision)
