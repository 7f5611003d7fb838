"""How the next token is drawn: settings that travel with a session, and equal draws wherever it is drawn.

A draw follows from the logits, the tokens so far, the settings and the place of the token: there is no generator with
a state that would have to travel. So whoever takes over a session draws what would have been drawn.
"""

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
import numpy as np
import numpy.typing as npt

from ...mesh.errors import UsageError
from ...mesh.messages import Message
from ..limits import SEED_MAX

STOPS_MAX: Final = 8  # OpenAI's API has 4
STOP_CHARACTERS_MAX: Final = 256

_Stop = Annotated[str, msgspec.Meta(min_length=1, max_length=STOP_CHARACTERS_MAX)]


class Sampling(Message, frozen=True, kw_only=True):
    """How the tokens of one session are drawn. ``temperature`` 0 is greedy; then the seed does not matter."""

    temperature: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.0
    top_k: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0  # 0: all
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=10)] = 1.0  # 1: none (Keskar et al. 2019)
    seed: Annotated[int, msgspec.Meta(ge=0, le=SEED_MAX)] = 0
    stop: Annotated[tuple[_Stop, ...], msgspec.Meta(max_length=STOPS_MAX)] = ()
    tokens_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 256


def sample(logits: npt.NDArray[np.float32], context: Sequence[int], sampling: Sampling, position: int) -> int:
    """Draw the token at ``position`` from float32 (vocabulary,) logits behind ``context``, all tokens before it.

    Penalty, temperature, top-k and top-p come in the order and with the meaning that transformers gives them; the
    penalty counts the prompt's tokens too. Of equal logits the lowest id is the greedy one. Raises UsageError for
    logits that are not finite: then the weights are damaged, or a precision was too low for them.
    """
    if bad := int(logits.size - np.isfinite(logits).sum()):
        raise UsageError(
            f"{bad} of {logits.size} logits at position {position} are not finite numbers, so no token can be drawn: "
            "the model's weights are damaged, or its precision is too low for it."
        )
    scores = _penalised(logits.astype(np.float64), context, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return int(np.argmax(scores))
    return _drawn(probabilities(scores, sampling), sampling.seed, position)


def probabilities(scores: npt.NDArray[np.float64], sampling: Sampling) -> npt.NDArray[np.float64]:
    """Return the chance of each token, given finite scores (vocabulary,) and a temperature above 0."""
    with np.errstate(over="ignore"):  # close to temperature 0 all but the best are infinitely far below
        scores = (scores - scores.max()) / sampling.temperature
    if 0 < sampling.top_k < scores.size:
        kth = np.partition(scores, -sampling.top_k)[-sampling.top_k]
        scores = np.where(scores < kth, -np.inf, scores)  # those equal to the k-th stay
    chances = np.exp(scores)
    chances /= chances.sum()
    if sampling.top_p < 1:
        upwards = np.argsort(-chances, kind="stable")[::-1]  # of equal chances the higher id goes first
        gone = np.cumsum(chances[upwards]) <= 1 - sampling.top_p
        gone[-1] = False
        chances[upwards[gone]] = 0
        chances /= chances.sum()
    return chances


def _penalised(scores: npt.NDArray[np.float64], context: Sequence[int], penalty: float) -> npt.NDArray[np.float64]:
    """Make tokens that were already there less likely (Keskar et al. 2019); in place."""
    if penalty != 1 and len(context):
        seen = np.unique(np.asarray(context, dtype=np.int64))
        scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
    return scores


def _drawn(chances: npt.NDArray[np.float64], seed: int, position: int) -> int:
    """Draw by the one number that belongs to this seed and position (Philox, Salmon et al. 2011)."""
    raw = np.random.Philox(key=np.array([seed, position], dtype=np.uint64)).random_raw()
    candidates = np.flatnonzero(chances)
    reached = np.cumsum(chances[candidates])
    share = (int(raw) >> 11) / 2**53 * reached[-1]  # 53 bits, as many as a float64 holds
    return int(candidates[min(int(np.searchsorted(reached, share, side="right")), len(candidates) - 1)])
