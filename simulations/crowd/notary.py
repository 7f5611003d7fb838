"""Signatures that are checked once for all members: checking each a thousand times over shows nothing more.

Everybody is of the mesh here, and knows it of everybody: who is admitted is for other scenarios to play.
"""

from collections.abc import Iterable, Mapping

from ...mesh.grants import Grant
from ...mesh.identity import Identity, PeerId
from ...mesh.records import Record, SignedRecord, open_record
from ...mesh.rumours import SignedWords, Statement


class Notary:
    """What all members know of each other's hands."""

    def __init__(self, root: PeerId) -> None:
        self._root = root
        self._records: dict[SignedRecord, Record] = {}
        self._stated: dict[tuple[PeerId, int, bytes], None] = {}

    def open(self, signed: SignedRecord) -> Record:
        """Open a record. Raises PeerError when it is not its owner's."""
        if (record := self._records.get(signed)) is None:
            record = self._records[signed] = open_record(signed)
        return record

    def words(self, identity: Identity) -> "Words":
        return Words(SignedWords(identity, self._root), self._stated)

    # -- proofs, as `mesh/reconciling.py` asks for them ---------------------------------------------------------------

    def knows(self, _peer: PeerId) -> bool:
        return True

    def learn(self, chains: Mapping[PeerId, tuple[Grant, ...]]) -> None:
        """Nobody here needs a chain."""

    def chains(self, peers: Iterable[PeerId]) -> dict[PeerId, tuple[Grant, ...]]:
        return dict.fromkeys(peers, ())


class Words:
    """One member's statements of life, and its look at those of others."""

    def __init__(self, words: SignedWords, stated: dict[tuple[PeerId, int, bytes], None]) -> None:
        self._words, self._stated = words, stated

    def state(self, incarnation: int) -> Statement:
        return self._words.state(incarnation)

    def check(self, statement: Statement) -> None:
        """Raises PeerError when the statement is not that of the member whom it names."""
        key = (statement.peer, statement.incarnation, statement.signature)
        if key not in self._stated:
            self._words.check(statement)
            self._stated[key] = None
