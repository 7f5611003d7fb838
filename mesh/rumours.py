"""What members say of each other's lives, and how often each word of it is passed on.

A *statement* is a member's own signed word that it lives; its incarnation only grows, and nobody else can raise it. A
*doubt* says that somebody got no answer from a member. Nobody can say that another is dead: who hears a doubt makes up
its own mind, and the doubted has time to state that it lives. Rumours travel with probes and their answers. Each is
passed on a bounded number of times, those told least first (SWIM, Das, Gupta, Motivala 2002, section 4.1).
"""

import heapq
from typing import Annotated, Protocol

import msgspec

from . import limits
from .identity import SIGNATURE_BYTES, Identity, PeerId, verify
from .messages import Message, Natural, Text

_PURPOSE = "statement of life"

Signature = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


class Statement(Message, frozen=True, kw_only=True, array_like=True):
    """'I live', said by a member in this incarnation of it."""

    peer: PeerId
    incarnation: Natural
    signature: Signature


class Doubt(Message, frozen=True, kw_only=True, array_like=True):
    """All of ``by`` got no answer from a member that had last stated this incarnation."""

    peer: PeerId
    incarnation: Natural
    by: Annotated[tuple[PeerId, ...], msgspec.Meta(min_length=1, max_length=limits.DOUBTERS_MAX)]


class Word(Message, frozen=True, kw_only=True):
    """What every message carries: its sender's own statement, and what else is worth knowing."""

    incarnation: Natural
    signature: Signature
    known: Natural = 0  # how many members its sender holds for alive, with itself
    statements: Annotated[tuple[Statement, ...], msgspec.Meta(max_length=limits.RUMOURS_MAX)] = ()
    doubts: Annotated[tuple[Doubt, ...], msgspec.Meta(max_length=limits.RUMOURS_MAX)] = ()


class Probe(Word, frozen=True, kw_only=True):
    """Asks a member whether it lives; and with ``after``, for statements of members whose names come after that."""

    number: Natural
    after: Text | None = None


class ProbeFor(Word, frozen=True, kw_only=True):
    """Asks whether another member can be reached, which cannot be from here."""

    number: Natural
    target: PeerId


class Ack(Word, frozen=True, kw_only=True):
    """The answer to both. ``reached`` is false (Lifeguard's nack) when who was asked for is silent here too."""

    number: Natural
    reached: bool = True


class Tell(Word, frozen=True, kw_only=True):
    """News, and no answer is wanted."""


class Words(Protocol):
    """Makes one's own statements and checks those of others."""

    def state(self, incarnation: int) -> Statement: ...
    def check(self, statement: Statement) -> None: ...


class SignedWords:
    """The statements of one member of one mesh: a statement of another mesh proves nothing here."""

    def __init__(self, identity: Identity, root: PeerId) -> None:
        self._identity, self._root = identity, root

    def state(self, incarnation: int) -> Statement:
        signature = self._identity.sign(_PURPOSE, self._payload(incarnation))
        return Statement(peer=self._identity.peer_id, incarnation=incarnation, signature=signature)

    def check(self, statement: Statement) -> None:
        """Raises PeerError when the statement is not that of the member whom it names."""
        verify(statement.peer, _PURPOSE, self._payload(statement.incarnation), statement.signature)

    def _payload(self, incarnation: int) -> bytes:
        return self._root.encode() + incarnation.to_bytes(8, "big")


class Rumours:
    """What is to be passed on: the newest word about each member, and how often it was told."""

    def __init__(self) -> None:
        self._told: dict[PeerId, tuple[int, Statement | Doubt]] = {}

    def __len__(self) -> int:
        return len(self._told)

    def add(self, rumour: Statement | Doubt) -> None:
        """Pass this on from now on, in place of what was said about the same member before."""
        self._told.pop(rumour.peer, None)
        if len(self._told) >= limits.RUMOURS_KEPT_MAX:
            del self._told[max(self._told, key=lambda peer: self._told[peer][0])]
        self._told[rumour.peer] = (0, rumour)

    def forget(self, peer: PeerId) -> None:
        self._told.pop(peer, None)

    def next(self, count: int, times_max: int) -> list[Statement | Doubt]:
        """Return up to ``count`` to tell now. Whatever was told ``times_max`` times is forgotten."""
        if not self._told or count <= 0:
            return []
        chosen = heapq.nsmallest(count, self._told.items(), key=lambda item: item[1][0])
        for peer, (times, rumour) in chosen:
            if times + 1 >= times_max:
                del self._told[peer]
            else:
                self._told[peer] = (times + 1, rumour)
        return [rumour for _, (_, rumour) in chosen]
