"""What compression changed, measured on this device: how well a loaded model foretells a text, and how quick it is."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch

from ..generation.engine import Piece
from ..language.engine import LanguageEngine

_TOKENS: Final = 48  # behind each other, of one session
_ROUNDS: Final = 3  # the best of so many: other work on the machine only ever slows
# Of medians: as many turns as this takes, between these bounds; odd, so that there is one in the middle.
_TURNS_S: Final = 0.3
_TURNS: Final = (15, 201)
_RESOLUTION_S: Final = 1e-5  # of a clock that is of use here; that of Windows has 16 ms
_COUNTS_THREADS: Final = time.get_clock_info("thread_time").resolution <= _RESOLUTION_S


def perplexity(engine: LanguageEngine, texts: Sequence[Sequence[int]]) -> float:
    """Return e to the mean loss of each token behind the first of its text; the texts go side by side."""
    caches = [engine.new_cache() for _ in texts]
    total = 0.0
    for at in range(max(map(len, texts)) - 1):
        going = [(cache, text) for cache, text in zip(caches, texts, strict=True) if at + 1 < len(text)]
        pieces = [
            Piece(cache=cache, x=np.array(text[at : at + 1], np.int32), wants_logits=True) for cache, text in going
        ]
        for answer, (_, text) in zip(engine.run(pieces), going, strict=True):
            assert answer is not None
            scores = np.asarray(answer, np.float64)
            total += float(scores.max() + np.log(np.exp(scores - scores.max()).sum()) - scores[text[at + 1]])
    for cache in caches:
        cache.close()
    return math.exp(total / sum(len(text) - 1 for text in texts))


def tokens_per_s(engine: LanguageEngine, *, rounds: int = _ROUNDS, tokens: int = _TOKENS) -> float:
    """Return how many tokens one session gets in a second, by so many behind each other."""
    best = math.inf
    for _ in range(rounds):
        cache, x = engine.new_cache(), np.zeros(1, np.int32)
        count = min(tokens, engine.positions_max - 1)
        engine.run([Piece(cache=cache, x=x, wants_logits=True)])
        begin = time.perf_counter()
        for _ in range(count):
            (answer,) = engine.run([Piece(cache=cache, x=x, wants_logits=True)])
            assert answer is not None
            x = np.array([int(np.argmax(answer))], np.int32)
        best = min(best, (time.perf_counter() - begin) / count)
        cache.close()
    return 1 / best


def medians_s(runs: Sequence[Callable[[], object]]) -> list[float]:
    """Return the median time of each, run in turns: what slows the machine for a while slows all of them alike.

    On one thread it is time that the processor gave: on a busy machine the rest is a matter of luck.
    """
    clock = time.thread_time if _COUNTS_THREADS and torch.get_num_threads() == 1 else time.perf_counter
    taken: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()  # warm
    begin = time.perf_counter()
    while len(taken[0]) < _TURNS[0] or (len(taken[0]) < _TURNS[1] and time.perf_counter() - begin < _TURNS_S):
        for run, times in zip(runs, taken, strict=True):
            before = clock()
            run()
            times.append(clock() - before)
    return [statistics.median(times) for times in taken]
