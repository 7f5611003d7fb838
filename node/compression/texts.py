"""Texts to calibrate a language model on: the user's, or ones that the model writes itself (Liu et al. 2023, LLM-QAT).

What a model writes at temperature 1 is drawn from what it has learned, so nothing else is needed, and nothing on which
its perplexity is measured later can have been seen.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from ...mesh.errors import UsageError
from ..generation.engine import Piece
from ..language.engine import LanguageEngine

TEXTS: Final = 32  # on the TinyStories model 96 are no better
POSITIONS: Final = 256


def cut_up(tokens: Sequence[int], positions_max: int) -> Tensor:
    """Cut a text's tokens into int64 (at most 32, 256), its first ones. Raises UsageError for less than one row."""
    width = min(POSITIONS, positions_max)
    rows = min(len(tokens) // width, TEXTS)
    if not rows:
        raise UsageError(f"The text to calibrate on has {len(tokens)} tokens; give {width} at least, better {TEXTS} x.")
    return torch.tensor(tokens[: rows * width]).reshape(rows, width)


def written_by(engine: LanguageEngine, bos: int | None, *, seed: int = 0, texts: int = TEXTS) -> Tensor:
    """Have a whole model write texts side by side: int64 (texts, 256) or shorter; equal seeds give equal texts.

    Where it has no token that begins a text, the first one is drawn.
    """
    draw = np.random.default_rng(seed)
    length = min(POSITIONS, engine.positions_max)
    caches = [engine.new_cache() for _ in range(texts)]
    found = np.empty((texts, length), np.int32)
    found[:, 0] = draw.integers(0, engine.vocabulary, texts) if bos is None else bos
    for at in range(1, length):
        pieces = [
            Piece(cache=cache, x=row[at - 1 : at], wants_logits=True)
            for cache, row in zip(caches, found, strict=True)
        ]  # fmt: skip
        logits = np.stack([answer for answer in engine.run(pieces) if answer is not None]).astype(np.float64)
        chances = np.exp(logits - logits.max(axis=1, keepdims=True)).cumsum(axis=1)
        chosen = (chances < draw.random((texts, 1)) * chances[:, -1:]).sum(axis=1)
        found[:, at] = np.minimum(chosen, engine.vocabulary - 1)
    for cache in caches:
        cache.close()
    return torch.from_numpy(found.astype(np.int64))
