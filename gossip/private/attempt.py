"""What one member has in one attempt at a private round: keys, masked words, receipts, signatures, reveals.

Takes messages in as the phase allows. Nothing of it outlives the attempt.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum

import numpy as np

from ..errors import BadContribution
from ..hashing import digest
from ..terms import Terms
from . import masking
from .masking import Words
from .messages import Agreed, Hello, Masked, Message, Receipts, Reveal, Sum
from .survivors import Receipt

Verify = Callable[[str, bytes, bytes], bool]
"""(peer, payload, signature) -> whether the peer has signed exactly this."""


class Phase(IntEnum):
    """What a round waits for; each phase follows the one above it."""

    NEW = 0
    KEYS = 1
    MASKED = 2
    RECEIPTS = 3
    SIGNATURES = 4
    REVEALS = 5
    SUMS = 6
    FINISHED = 7


KINDS: Mapping[type[Message], Phase] = {
    Hello: Phase.KEYS,
    Masked: Phase.MASKED,
    Receipts: Phase.RECEIPTS,
    Agreed: Phase.SIGNATURES,
    Reveal: Phase.REVEALS,
    Sum: Phase.SUMS,
}

# A signature, a reveal or a sum means something only to who has settled the survivors.
_READABLE_FROM: Mapping[type[Message], Phase] = {
    Hello: Phase.KEYS,
    Masked: Phase.KEYS,
    Receipts: Phase.KEYS,
    Agreed: Phase.SIGNATURES,
    Reveal: Phase.SIGNATURES,
    Sum: Phase.SIGNATURES,
}


class Attempt:
    """One attempt of one member."""

    def __init__(self, me: str, terms: Terms, number: int, secret: bytes, *, reference: bytes, verify: Verify) -> None:
        self.number = number
        self.context = masking.context_of(terms.context, reference, number)
        self.secret = secret
        self.own_seed = masking.own_seed(secret, self.context)
        self.phase = Phase.NEW
        self.pairs: dict[str, bytes] = {}  # seeds shared with those whose keys have come
        self.masked: dict[str, Words] = {}  # of the part that this member owns
        self.receipts: dict[str, Receipt] = {}
        self.survivors: tuple[str, ...] = ()
        self.agreed: set[str] = set()
        self.reveals: dict[str, Reveal] = {}
        self.sums: dict[str, Words] = {}  # unmasked words, by owner
        self._me, self._terms, self._reference, self._verify = me, terms, reference, verify
        self._answered: set[tuple[str, Phase]] = set()
        self._early: list[tuple[str, Message]] = []

    @property
    def to_sign(self) -> bytes:
        """What a member signs when it agrees to the survivors."""
        return digest("lepton-survivors", self.context, *(name.encode() for name in self.survivors))

    def is_first(self, peer: str, message: Message) -> bool:
        """Note a message; false when another of its kind has come from this peer in this attempt."""
        key = (peer, KINDS[type(message)])
        known = key in self._answered
        self._answered.add(key)
        return not known

    def is_early(self, peer: str, message: Message) -> bool:
        """Whether it has to wait: for a phase, or for the key that belongs to it and that it has overtaken."""
        keyless = isinstance(message, Masked) and peer not in self.pairs and self.phase is Phase.KEYS
        return keyless or self.phase < _READABLE_FROM[type(message)]

    def put_off(self, peer: str, message: Message) -> None:
        """Keep it for later; of each peer and kind only the first gets here."""
        self._early.append((peer, message))

    def ripe(self) -> list[tuple[str, Message]]:
        """Return, and forget, what was put off and need not wait any more."""
        ripe = [(peer, message) for peer, message in self._early if not self.is_early(peer, message)]
        self._early = [(peer, message) for peer, message in self._early if self.is_early(peer, message)]
        return ripe

    def take(self, peer: str, message: Message) -> None:
        """Take in one message of a member.

        Raises:
            BadContribution: it breaks the protocol; nothing of it was used.
        """
        match message:
            case Hello():
                self._take_key(peer, message)
            case Masked(part=part, payload=payload):
                self._require(self.phase <= Phase.MASKED and peer in self.pairs, peer, "masked values came too late")
                self.masked[peer] = self._read(peer, part, self._me, payload)
            case Receipts(heard=heard, received=received):
                self._require(self.phase <= Phase.RECEIPTS, peer, "receipts came after the survivors were settled")
                self.receipts[peer] = Receipt(frozenset(heard) | {peer}, frozenset(received) | {peer})
            case Agreed():
                self._take_signature(peer, message)
            case Reveal(lost=lost):
                leaked = set(lost) & set(self.survivors)
                self._require(not leaked, peer, "reveal has a seed shared with a survivor, which nobody may reveal")
                self.reveals[peer] = message
            case Sum(part=part, payload=payload):
                self.add_sum(peer, self._read(peer, part, peer, payload))

    def _take_key(self, peer: str, hello: Hello) -> None:
        self._require(self.phase is Phase.KEYS, peer, "key came when the values were under way already")
        self._require(hello.reference == self._reference, peer, "vector counts from another model than ours")
        self.pairs[peer] = masking.pair_seed(self.secret, hello.key, self.context)

    def _take_signature(self, peer: str, agreed: Agreed) -> None:
        names = ", ".join(agreed.survivors)
        self._require(agreed.survivors == self.survivors, peer, f"survivors are others than ours: {names}")
        self._require(self._verify(peer, self.to_sign, agreed.signature), peer, "signature is not its own")
        self.agreed.add(peer)

    def add_sum(self, owner: str, words: Words) -> None:
        """Keep the unmasked words of an owner's part.

        Raises:
            BadContribution: the owner is no survivor, or the weights in it do not add up.
        """
        self._require(owner in self.survivors, owner, "part is not in the sum, for it is no survivor itself")
        masking.mean_of(words, len(self.survivors))
        self.sums[owner] = words

    def unmasked(self, part: int) -> Words:
        """Return the sum of the survivors' words of the part that this member owns, from all their reveals."""
        total: Words = np.zeros_like(self.masked[self._me])
        for peer in self.survivors:
            total += self.masked[peer]
        lost = {(peer, out): seed for peer in self.survivors for out, seed in self.reveals[peer].lost.items()}
        return masking.unmask(total, part, {peer: self.reveals[peer].own for peer in self.survivors}, lost)

    def close(self) -> None:
        """End it; nothing secret stays."""
        self.phase, self.secret, self.own_seed = Phase.FINISHED, b"", b""
        self.pairs, self.masked, self.reveals, self.sums = {}, {}, {}, {}

    def waits_for(self, members: Iterable[str]) -> set[str]:
        """Return the members whose messages the present phase still lacks."""
        others, inside = set(members) - {self._me}, set(self.survivors) - {self._me}
        heard = set(self.pairs)
        match self.phase:
            case Phase.KEYS:
                return others - heard
            case Phase.MASKED:
                return heard - set(self.masked)
            case Phase.RECEIPTS:
                return heard - set(self.receipts)
            case Phase.SIGNATURES:
                return inside - self.agreed
            case Phase.REVEALS:
                return inside - set(self.reveals)
            case _:
                return inside - set(self.sums)

    def _read(self, peer: str, part: int, owner: str, payload: bytes) -> Words:
        due = self._terms.part_of(owner)
        size_bytes, given_bytes = 4 * (_length(self._terms.parts[due]) + 1), memoryview(payload).nbytes
        self._require(part == due, peer, f"words are of part {part} where {due} is due")
        self._require(given_bytes == size_bytes, peer, f"words take {given_bytes} bytes where {size_bytes} are due")
        return np.frombuffer(payload, dtype="<u4").astype(np.uint32, copy=False)

    def _require(self, holds: bool, peer: str, problem: str) -> None:  # noqa: FBT001 - reads as a sentence
        if not holds:
            raise BadContribution(f"its {problem}", peer)


def _length(part: slice) -> int:
    length: int = part.stop - part.start
    return length
