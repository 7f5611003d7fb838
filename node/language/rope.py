"""Rotary positions (Su et al. 2021) and the ways in which models were stretched beyond the length they learned.

Angles are float32, as in transformers: position times inverse frequency. What would depend on the length of the
session (``dynamic``, ``longrope``) is refused: a key in the cache would have to change while the session grows.
"""

import math
from typing import Annotated, Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from ...mesh.errors import UsageError

Float = npt.NDArray[np.float32]
_THETA: Final = 10_000.0  # Su et al.; what a config.json without rope_theta means
_GROWTH: Final = 64  # rows of a table are made so many at a time

_Positive = Annotated[float, msgspec.Meta(gt=0)]


class Rope(msgspec.Struct, frozen=True, kw_only=True):
    """How positions turn queries and keys. Names and defaults are transformers' (`rope_parameters`)."""

    rope_type: str = "default"
    rope_theta: _Positive = _THETA
    factor: Annotated[float, msgspec.Meta(ge=1)] | None = None
    original_max_position_embeddings: Annotated[int, msgspec.Meta(ge=1)] | None = None
    low_freq_factor: _Positive = 1.0  # llama3
    high_freq_factor: _Positive = 4.0  # llama3
    attention_factor: _Positive | None = None  # yarn
    beta_fast: _Positive | None = None  # yarn
    beta_slow: _Positive | None = None  # yarn
    mscale: float | None = None  # yarn
    mscale_all_dim: float | None = None  # yarn
    truncate: bool = True  # yarn
    partial_rotary_factor: float | None = None


def read_rope(fields: dict[str, Any], theta: float | None, positions_max: int) -> Rope:
    """Read `rope_parameters` or `rope_scaling` of a config.json, with its `rope_theta`. Raises UsageError."""
    given = {"rope_type": fields.get("type", "default"), "rope_theta": theta or _THETA}
    given["original_max_position_embeddings"] = positions_max
    given |= {name: value for name, value in fields.items() if value is not None}
    try:
        rope = msgspec.convert(given, Rope)
    except msgspec.ValidationError as error:
        raise UsageError(f"The rotary positions of this config.json are not understood: {error}.") from error
    if rope.rope_type not in _FREQUENCIES:
        raise UsageError(
            f"Rotary positions of type {rope.rope_type[:64]!r} are not supported; {', '.join(_FREQUENCIES)} are."
        )
    if rope.partial_rotary_factor not in {None, 1}:
        raise UsageError("Rotating a part of each head (partial_rotary_factor) is not supported.")
    if rope.rope_type != "default" and rope.factor is None:
        raise UsageError(f"Rotary positions of type {rope.rope_type} need a `factor`, which is missing.")
    if rope.rope_type == "llama3" and rope.high_freq_factor <= rope.low_freq_factor:
        raise UsageError("high_freq_factor must be above low_freq_factor.")
    return rope


def require_rotations(rope: Rope, head_width: int) -> None:
    """Raise UsageError where these settings give no numbers: they may be a stranger's."""
    try:
        with np.errstate(all="ignore"):
            tables = Rotations(rope, head_width).up_to(_GROWTH)
        wrong = not all(np.isfinite(table).all() for table in tables)
    except (ArithmeticError, ValueError) as error:
        raise UsageError(f"The rotary positions of this config.json cannot be worked out: {error}.") from error
    if wrong:
        raise UsageError("The rotary positions of this config.json are not finite numbers.")


class Rotations:
    """Cosines and sines of every position: float32 (positions, head_width // 2) each, made as positions are reached."""

    def __init__(self, rope: Rope, head_width: int) -> None:
        self._frequencies, self._scale = _FREQUENCIES[rope.rope_type](rope, head_width)
        self._cos = np.empty((0, head_width // 2), dtype=np.float32)
        self._sin = self._cos

    def up_to(self, positions: int) -> tuple[Float, Float]:
        """Return tables of at least so many positions. A row is the same however long the table is."""
        have = len(self._cos)
        if positions > have:
            end = max(positions + _GROWTH - positions % _GROWTH, 2 * have)
            angles = np.arange(have, end, dtype=np.float32)[:, None] * self._frequencies
            # In float64, and rounded once: then no row depends on how a machine vectorises float32.
            self._cos = np.concatenate([self._cos, (np.cos(angles, dtype=np.float64) * self._scale).astype(np.float32)])
            self._sin = np.concatenate([self._sin, (np.sin(angles, dtype=np.float64) * self._scale).astype(np.float32)])
        return self._cos, self._sin


def _default(rope: Rope, head_width: int) -> tuple[Float, float]:
    exponents = np.arange(0, head_width, 2, dtype=np.float32) / np.float32(head_width)
    # In float64, and rounded once: processors differ in float32 powers.
    return (1 / np.power(np.float64(rope.rope_theta), exponents.astype(np.float64))).astype(np.float32), 1.0


def _linear(rope: Rope, head_width: int) -> tuple[Float, float]:
    """Positions packed closer together (Chen et al. 2023)."""
    return _default(rope, head_width)[0] / np.float32(rope.factor or 1), 1.0


def _llama3(rope: Rope, head_width: int) -> tuple[Float, float]:
    """Long waves packed closer together, short ones not, and a smooth passage between (Llama 3.1)."""
    frequencies, factor = _default(rope, head_width)[0], np.float32(rope.factor or 1)
    length = rope.original_max_position_embeddings or 1
    waves = 2 * math.pi / frequencies
    smooth = (length / waves - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    between = (1 - smooth) * frequencies / factor + smooth * frequencies
    slow = np.where(waves > length / rope.low_freq_factor, frequencies / factor, between)
    return np.where(waves < length / rope.high_freq_factor, frequencies, slow).astype(np.float32), 1.0


def _yarn(rope: Rope, head_width: int) -> tuple[Float, float]:
    """Dimensions that turn often keep their frequency, those that turn less than once are packed (Peng et al. 2023)."""
    factor = rope.factor or 1.0
    length = rope.original_max_position_embeddings or 1

    def dimension(turns: float) -> float:
        return head_width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(rope.rope_theta))

    low, high = dimension(rope.beta_fast or 32), dimension(rope.beta_slow or 1)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_width - 1)
    ramp = (np.arange(head_width // 2, dtype=np.float32) - low) / (high - low or 0.001)
    packed = np.clip(ramp, 0, 1)  # 1: this dimension is packed as if linearly
    frequencies = _default(rope, head_width)[0]
    return (frequencies / np.float32(factor) * packed + frequencies * (1 - packed)).astype(np.float32), _sharpness(rope)


def _sharpness(rope: Rope) -> float:
    """By how much YaRN scales cosines and sines, and so sharpens attention."""
    if rope.attention_factor is not None:
        return rope.attention_factor
    stretch = math.log(max(rope.factor or 1.0, 1.0))
    if rope.mscale and rope.mscale_all_dim:
        return (0.1 * rope.mscale * stretch + 1) / (0.1 * rope.mscale_all_dim * stretch + 1)
    return 0.1 * stretch + 1


_FREQUENCIES: Final = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn}
