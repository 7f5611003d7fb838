"""Vectors of texts from the sentence encoders of a mesh: tokens are made here, layers run where they are."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import trio

from ..mesh.errors import UsageError
from .config import did_you_mean
from .inference.traced import Programs
from .inference.view import View
from .language.tokenizer import LanguageTokenizer
from .tokenizing import Tokenizers
from .web.models import Vectors

_BATCH: Final = 32  # texts in one array, all as long as the longest of them

Predict = Callable[..., Awaitable[npt.NDArray[Any]]]


class Encoders:
    """What one node makes of the mesh's encoders. ``predict`` runs samples through a model, as `Node.predict` does."""

    def __init__(self, view: View, programs: Programs, tokenizers: Tokenizers, predict: Predict) -> None:
        self._view = view
        self._programs = programs
        self._tokenizers = tokenizers
        self._predict = predict

    async def embed(self, name: str, texts: Sequence[str]) -> Vectors:
        """Return the vector of each text, float32 (texts, width).

        Raises UsageError for a model that is no encoder, or a text that is longer than it takes; else like
        `Node.predict`.
        """
        deployments = {n: d for n, d in self._view.deployments().items() if d.kind == "program"}
        if name not in deployments:
            raise UsageError(f"No encoder {name!r} is served in this mesh.{did_you_mean(name, sorted(deployments))}")
        description = await self._programs.description(name, deployments[name])
        if description.program != "encoder":
            raise UsageError(f"{name!r} is no encoder of texts; ask it by `Node.predict`.")
        tokenizer = await self._tokenizers.of(name, deployments[name])
        ids = await trio.to_thread.run_sync(_encoded, tokenizer, texts, description.positions)
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))  # alike in length, little is padding
        found: dict[int, npt.NDArray[Any]] = {}
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            vectors = await self._predict(name, *_padded([ids[index] for index in batch]))
            found |= dict(zip(batch, vectors, strict=True))
        values = np.stack([found[index] for index in range(len(ids))])
        return Vectors(values=values, tokens=sum(map(len, ids)))


def _encoded(tokenizer: LanguageTokenizer, texts: Sequence[str], positions: int) -> list[list[int]]:
    found = []
    for index, text in enumerate(texts):
        ids = tokenizer.encode(text)
        if not 1 <= len(ids) <= positions:
            raise UsageError(f"Text {index} has {len(ids)} tokens; this encoder takes 1 to {positions}.")
        found.append(ids)
    return found


def _padded(texts: Sequence[Sequence[int]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return token ids and their mask, int64 (texts, longest) each."""
    longest = max(map(len, texts))
    ids = np.zeros((len(texts), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return ids, mask
