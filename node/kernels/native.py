"""The compiled kernel, called through ctypes: a plain shared library, built at installation where a compiler is.

Without it, or on a processor without fused multiply-add, ``available()`` says why and everything is done by torch.
"""

import ctypes
import platform
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import ClassVar, Final

import torch
from torch.nn import functional as F

from ...mesh.errors import UsageError
from .grouping import GROUP, halves_joined
from .packed import LANES, Matrix, Packed, Precision, slices
from .rounded import groups_of

WIDTHS: Final = (16, 8, 4)  # floats per register: AVX-512, AVX2, NEON
NUMBERS: Final[dict[Precision, int]] = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3}  # native.c's enum
# Of the compiled kernel, whichever processor and compiler: raised with every change in the order of its operations.
_COMPILED: Final = "compiled-1"
# Of a panel's group of 32 columns: weights, and 16 scales of 2 bytes where there are some.
_GROUP_BYTES: Final[dict[Precision, int]] = {
    "float32": 4 * LANES * GROUP,
    "bfloat16": 2 * LANES * GROUP,
    "int8": LANES * (GROUP + 2),
    "int4": LANES * (GROUP // 2 + 2),
}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Whether the compiled kernel runs here, on registers of how many floats, or else why not."""

    native: bool
    width: int = 0
    reason: str = ""


class _Product(ctypes.Structure):
    """A product, as native.c's struct."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("x_stride", ctypes.c_long),
        ("rows", ctypes.c_long),
        ("groups", ctypes.c_long),
        ("outputs", ctypes.c_long),
        ("precision", ctypes.c_int),
        ("width", ctypes.c_int),
    )


def library_path() -> Path | None:
    """Return where the installation put the library, if it made one."""
    paths = (Path(__file__).with_name("_native" + suffix) for suffix in EXTENSION_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


@cache
def library() -> ctypes.CDLL:
    """Load the library once. Raises OSError where there is none, or it is not one."""
    path = library_path()
    if path is None:
        raise OSError("it was not built: there was no C compiler at installation")
    loaded = ctypes.CDLL(str(path))
    loaded.lepton_runs.argtypes = (ctypes.c_int,)
    loaded.lepton_product.argtypes = (ctypes.c_void_p, ctypes.c_int)
    loaded.lepton_product.restype = None
    loaded.lepton_rows.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long)
    loaded.lepton_rows.restype = None
    loaded.lepton_block.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
    return loaded


@cache
def available() -> Capabilities:
    """Say whether the compiled kernel runs on this machine."""
    try:
        runs = library().lepton_runs
    except (OSError, AttributeError) as error:
        return Capabilities(native=False, reason=f"no compiled kernel: {error}")
    for width in WIDTHS:
        if runs(width):
            return Capabilities(native=True, width=width)
    return Capabilities(native=False, reason="this processor has neither AVX2 with FMA nor NEON")


def arithmetic() -> str:
    """Name what decides how results are rounded here: nodes where this is equal give equal bits.

    Of torch that is a hope: versions and threads are in the name, but not how its libraries tell processors apart.
    """
    if available().native:
        return _COMPILED
    kind = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"torch-{torch.__version__} {kind} {torch.get_num_threads()}"


class NativePacked(Packed):
    """Weights in the panels that products.h describes."""

    kind: ClassVar[str] = "native"

    def __init__(self, weight: Matrix, precision: Precision, *, width: int = 0) -> None:
        """Pack; ``width`` chooses another instruction set than the best one, for tests."""
        super().__init__(weight, precision)
        if not (here := available()).native:
            raise UsageError(f"{here.reason}; pack with native=False")
        self.width = width or here.width
        self._groups = -(-self.inputs // GROUP)
        shape = (-(-self.outputs // LANES), self._groups, _GROUP_BYTES[precision])
        self._weights = torch.empty(shape, dtype=torch.uint8)
        for rows in slices(weight):  # filled slice by slice: joined at the end, it would be in memory twice
            panels = self._panels(weight, rows)
            self._weights[rows.start // LANES : rows.start // LANES + len(panels)] = panels

    def _panels(self, weight: Matrix, rows: slice) -> torch.Tensor:
        """Return bytes (panels, groups, bytes of a group) of some rows."""
        missing = -(rows.stop - rows.start) % LANES
        if self.precision in {"float32", "bfloat16"}:
            dtype = torch.float32 if self.precision == "float32" else torch.bfloat16
            padded = F.pad(weight[rows].detach(), (0, self._groups * GROUP - self.inputs, 0, missing))
            return _bytes(_interleaved(padded.to(dtype).unflatten(1, (-1, GROUP))))
        integers, scales = groups_of(weight, rows, 8 if self.precision == "int8" else 4)
        integers, scales = F.pad(integers, (0, 0, 0, 0, 0, missing)), F.pad(scales, (0, 0, 0, missing))
        columns_first = _interleaved(integers)  # (panels, groups, 32, 16)
        if self.precision == "int4":
            columns_first = halves_joined(columns_first.unflatten(2, (-1, 2)).transpose(3, 4))
        by_group = scales.unflatten(0, (-1, LANES)).transpose(1, 2)  # (panels, groups, 16)
        return torch.cat((_bytes(by_group), _bytes(columns_first)), dim=2)

    @property
    def size_bytes(self) -> int:
        return self._weights.nbytes

    @property
    def address(self) -> int:
        """Where the panels lie, as long as this object lives."""
        return self._weights.data_ptr()

    def _job(self, x: int, y: torch.Tensor) -> _Product:
        precision, width = NUMBERS[self.precision], self.width
        columns = self._groups * GROUP
        weights = self._weights.data_ptr()
        return _Product(x, weights, y.data_ptr(), columns, len(y), self._groups, self.outputs, precision, width)

    def _product(self, x: torch.Tensor, threads: int) -> torch.Tensor:
        y = torch.empty((len(x), self.outputs))
        library().lepton_product(ctypes.byref(self._job(x.data_ptr(), y)), threads)
        return y

    def _rows(self, ids: torch.Tensor) -> torch.Tensor:
        y = torch.empty((len(ids), self.inputs))
        library().lepton_rows(ctypes.byref(self._job(0, y)), ids.data_ptr(), self.inputs)
        return y


def _interleaved(grouped_rows: torch.Tensor) -> torch.Tensor:
    """(n, groups, 32) -> (n / 16, groups, 32, 16): column after column, in each the 16 rows of a panel."""
    panels: torch.Tensor = grouped_rows.unflatten(0, (-1, LANES))
    return panels.permute(0, 2, 3, 1)


def _bytes(values: torch.Tensor) -> torch.Tensor:
    """(panels, groups, ...) -> bytes (panels, groups, n)."""
    in_order: torch.Tensor = values.contiguous().flatten(2)
    return in_order.view(torch.uint8)
