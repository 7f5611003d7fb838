"""A folder before it is rounded and behind that, side by side: size, perplexity, speed, each as it would be served."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...mesh.errors import UsageError
from ..deployments import Precision
from ..language.engine import LanguageEngine, load_engine
from ..language.folder import read_config, read_layers
from ..language.layout import layers
from ..language.tokenizer import LanguageTokenizer, read_files
from .folder import quantise_folder
from .manifest import Bits
from .measured import perplexity, tokens_per_s
from .texts import written_by

_TOKENS_MAX: Final = 4096  # to measure perplexity on
_WRITTEN: Final = 8  # texts, where none is given
_TOKENS_MIN: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A model as it is served."""

    precision: Precision
    size_bytes: int
    perplexity: float
    tokens_per_s: float


def compared(
    folder: Path, out: Path, *, bits: Bits, text: str | None = None, seed: int = 0, steps: int | None = None
) -> tuple[Side, Side, str]:
    """Do as `quantise_folder`, and return both sides and what perplexity was measured on.

    Of a text the last fifth is kept for that, so that nothing is measured on what was calibrated on. Raises what
    `quantise_folder` does.
    """
    engine = engine_of(folder, "float32")
    text, rows, measured_on = held_out(folder, engine, text, seed=seed)
    manifest = quantise_folder(folder, out, bits=bits, text=text, seed=seed, steps=steps)
    precision: Precision = "int4" if bits == 4 else "int8"
    before = _side(engine, "float32", manifest.size_bytes_before, rows)
    return before, _side(engine_of(out, precision), precision, manifest.size_bytes, rows), measured_on


def held_out(
    folder: Path, engine: LanguageEngine, text: str | None, *, seed: int = 0
) -> tuple[str | None, list[list[int]], str]:
    """Return what of a text may be calibrated on, rows of tokens to measure on, and what they are for people.

    Rows are of the text's last fifth; without a text the model of ``folder`` (``engine``) writes some.
    """
    if text is None:
        rows = written_by(engine, read_config(folder).bos, seed=seed + 1, texts=_WRITTEN).tolist()
        return None, rows, f"{_WRITTEN} other texts that the model wrote, seed {seed + 1}"
    rows = _rows(folder, text[len(text) * 4 // 5 :], engine.positions_max)
    return text[: len(text) * 4 // 5], rows, f"{sum(map(len, rows)):,} tokens of the text's last fifth"


def engine_of(folder: Path, precision: Precision) -> LanguageEngine:
    """Load a whole model as it is served at a precision."""
    config = read_config(folder)
    return load_engine(config, 0, layers(config), read_layers(folder, config), precision)


def _side(engine: LanguageEngine, precision: Precision, size_bytes: int, rows: list[list[int]]) -> Side:
    return Side(
        precision=precision,
        size_bytes=size_bytes,
        perplexity=perplexity(engine, rows),
        tokens_per_s=tokens_per_s(engine),
    )


def _rows(folder: Path, text: str, positions_max: int) -> list[list[int]]:
    tokens = LanguageTokenizer(read_files(folder)).encode(text)[:_TOKENS_MAX]
    if len(tokens) < _TOKENS_MIN:
        raise UsageError(
            f"The last fifth of the text has {len(tokens)} tokens; {_TOKENS_MIN} are needed to measure on."
        )
    width = min(512, positions_max)
    rows = [tokens[at : at + width] for at in range(0, len(tokens), width)]
    return [row for row in rows if len(row) > 1]
