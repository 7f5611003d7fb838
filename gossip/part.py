"""The part that a member owns: contributions to it come chunk by chunk, and its mean is complete chunk by chunk.

Whose values are in a chunk is decided when its turn comes, for good: who is out of one chunk is out of all that follow.
So a contributor that dies in the middle is in the first chunks of a part and not in the others, and a few runs of
chunks with their contributors tell the whole truth. Nothing is held but the chunks whose turn has not come.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from .codecs import Codec, Floats
from .config import Config
from .errors import BadContribution
from .gate import Gate
from .messages import Contribution, Contributors
from .mixing import clip_weights, weighted_mean


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """A model that others have too, bit for bit, by the same `name`: float32 (D,), never written to."""

    name: bytes
    vector: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Averaged:
    """The mean of one chunk, encoded; `refused` are those whose values were not let in, and why."""

    chunk: int
    contributors: Contributors
    reference: bytes
    payload: bytes
    refused: tuple[BadContribution, ...]


class OwnPart:
    """Averages one part into `result`, as all others will decode it."""

    def __init__(
        self,
        me: str,
        chunks: tuple[slice, ...],
        codec: Codec,
        own: Floats,
        result: Floats,
        reference: Reference | None,
        *,
        gate: Gate,
        scale: Callable[[int], float],
        rng: np.random.Generator,
        config: Config,
    ) -> None:
        """`scale` gives the norm that the values of a chunk are compared with."""
        self.turn = 0
        """The chunk that is averaged next."""
        self.received: dict[str, int] = {}
        self._me, self._chunks, self._codec, self._own, self._result = me, chunks, codec, own, result
        self._reference = None if codec.exact else reference  # what is exact gains nothing from a difference
        self._gate, self._scale, self._rng, self._config = gate, scale, rng, config
        self._waiting: dict[str, dict[int, Contribution]] = {}

    @property
    def done(self) -> bool:
        return self.turn == len(self._chunks)

    def lacks(self, peer: str) -> bool:
        """Whether the chunk whose turn it is waits for this peer."""
        return self.turn not in self._waiting.get(peer, ())

    def take(self, peer: str, message: Contribution) -> bool:
        """Keep one chunk of a peer's values until its turn; False when it is too late, too early or a second one."""
        waiting, bit = self._waiting.setdefault(peer, {}), 1 << message.chunk
        too_many = len(waiting) >= 2 * self._config.window_chunks or message.chunk >= len(self._chunks)
        if message.chunk < self.turn or too_many or self.received.get(peer, 0) & bit:
            return False
        waiting[message.chunk] = message
        self.received[peer] = self.received.get(peer, 0) | bit
        return True

    def drop(self, peer: str) -> None:
        """Forget what came from a peer."""
        self._waiting.pop(peer, None)

    def average(self, weights: Mapping[str, float], *, shared: bool) -> Averaged:
        """Average the next chunk from mine and whatever came of `weights`, which has mine too.

        `shared`: all who get the mean know my reference, so that a difference to it says it all.
        """
        part, refused = self._chunks[self.turn], list[BadContribution]()
        base = None if self._reference is None else self._reference.vector[part]
        values = {self._me: self._own[part] if base is None else self._own[part] - base}
        for peer in sorted(weights):
            message = self._waiting.get(peer, {}).pop(self.turn, None)
            if message is None:
                continue
            try:
                values[peer] = self._read(peer, message, weights[peer], base)
            except BadContribution as error:
                refused.append(error)
        clipped = clip_weights({peer: weights[peer] for peer in values}, self._config.weight_ratio_max)
        mean = weighted_mean(values, clipped)
        name = self._reference.name if self._reference is not None and shared else b""
        payload = self._adopt(part, mean if base is None or name else mean + base, base if name else None)
        self.turn += 1
        return Averaged(self.turn - 1, tuple(sorted(clipped.items())), name, payload, tuple(refused))

    def _adopt(self, part: slice, mean: Floats, base: Floats | None) -> bytes:
        payload, place = self._codec.encode(mean, self._rng), self._result[part]
        decoded = mean if self._codec.exact else self._codec.decode(payload, mean.size, place)
        if base is not None:
            np.add(base, decoded, out=place)
        elif decoded is not place:
            np.copyto(place, decoded)
        return cast("bytes", payload)

    def _read(self, peer: str, message: Contribution, weight: float, base: Floats | None) -> Floats:
        part = self._chunks[message.chunk]
        try:
            values = self._codec.decode(message.payload, part.stop - part.start)
        except BadContribution as error:
            raise error.of(peer) from None
        self._gate.admit(peer, values, values.size, weight, self._scale(message.chunk))
        known = b"" if self._reference is None else self._reference.name
        if message.reference not in {b"", known}:
            raise BadContribution("its values are differences to a model that is not known here", peer)
        return values if base is None or message.reference else values - base
