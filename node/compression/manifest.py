"""What was done to a model, in data: written beside its weights as `compression.json`, for people and for programs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from ...mesh.errors import UsageError
from ..kernels import Rounded

NAME: Final = "compression.json"
FORMAT: Final = 1
_BYTES_MAX: Final = 4 * 1024 * 1024  # 20,000 tensors with their names

Bits = Literal[4, 8]


class Tensors(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Matrices that were rounded, each stored as integers under its name and scales under its name and `_scale`."""

    bits: Bits
    columns: Annotated[int, msgspec.Meta(ge=1)]  # numbers of a row: 4 bits are stored in whole bytes


class Quantised(msgspec.Struct, frozen=True, kw_only=True, tag_field="step", tag="quantise"):
    """Weights became integers with a scale for each 32 columns."""

    bits: Bits
    rounding: Literal["compensated", "searched"]  # `gptq.py`; without data only the scales are searched
    calibration: str = ""  # what the data were
    rows: int = 0  # samples of them, or texts
    folded: int = 0  # batch norms, before it
    tuned_steps: int = 0  # of scales and norms, behind the rounding
    tensors: dict[str, Tensors]
    left: dict[str, str] = {}  # what stayed as it was, and why


class Pruned(msgspec.Struct, frozen=True, kw_only=True, tag_field="step", tag="prune"):
    """The least numbers became zeros, or whole channels went."""

    kind: Literal["global", "layer", "n:m", "channels"]
    share: float  # of the numbers that were to go
    pattern: tuple[int, int] | None = None  # n of each m stay
    fitted_steps: int = 0  # of training, while and after they went
    shares: dict[str, float] = {}  # of zeros in each parameter; channels: of what is gone
    shapes: dict[str, tuple[int, ...]] = {}  # of parameters that became smaller
    left: dict[str, str] = {}  # what stayed as it was, and why


class Distilled(msgspec.Struct, frozen=True, kw_only=True, tag_field="step", tag="distil"):
    """A student learned what a teacher says."""

    student: str  # what it is: a name or a factory
    teacher: str  # likewise; a model of the mesh as `mesh:NAME`
    temperature: float
    fitted_steps: int
    labels: float = 0.0  # weight of the true labels' loss; the rest is the teacher's
    features: float = 0.0  # weight of hidden layers' distance


class Trained(msgspec.Struct, frozen=True, kw_only=True, tag_field="step", tag="train"):
    """A model was trained while its weights were rounded at each step, so that it does not mind."""

    bits: Bits
    fitted_steps: int


Step = Quantised | Pruned | Distilled | Trained


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """All steps in their order, and what the files took before and after them."""

    format: Literal[1] = FORMAT
    steps: tuple[Step, ...]
    size_bytes_before: int
    size_bytes: int
    figures: dict[str, float] = {}  # measured before and after, such as perplexity

    @property
    def quantised(self) -> tuple[Quantised, ...]:
        """The steps that rounded."""
        return tuple(step for step in self.steps if isinstance(step, Quantised))


def said_of(rounded: Mapping[str, Rounded]) -> dict[str, Tensors]:
    return {name: Tensors(bits=4 if each.bits == 4 else 8, columns=each.shape[1]) for name, each in rounded.items()}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / NAME).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder. Raises UsageError where there is none, or it is not one."""
    path = folder / NAME
    try:
        if path.stat().st_size > _BYTES_MAX:
            raise UsageError(f"{path} is larger than the {_BYTES_MAX:,} bytes that a manifest may have.")
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except OSError as error:
        raise UsageError(f"{folder} holds no {NAME} that can be read: {error.strerror or error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} does not say what was done to a model: {error}.") from error
