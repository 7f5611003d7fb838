"""Devices that break the rules, to see that nothing comes of it: a member that forges, and an outsider without a grant.

A liar has a client's grant, so it may speak; it forges others' records, replays and damages them, names owners of
other meshes, calls what it has no right to, and sends bytes that mean nothing. An outsider has a grant of another
mesh, shows it, shows a member's, shows nothing, and pushes records before anyone has let it in.
"""

from collections.abc import Callable

import msgspec

from ..mesh.grants import Grant
from ..mesh.identity import Identity, PeerId
from ..mesh.messages import Message, pack
from ..mesh.protocol import Hello, HelloAnswer
from ..mesh.records import Content, Record, SignedRecord
from ..mesh.swaps import Swap, Swapped
from ..node.inference.messages import StageResult
from ..node.learning.messages import RoundMessage, StateWanted
from .calls import Answer, Empty
from .device import Device
from .network import Connection
from .picture import MODEL_NAME, PROFILE, TASK_NAME, Profile

_LIE_INTERVAL_S = 0.7
_FAR = 10**6  # an incarnation that would win against everything its victim ever says


class Garbage(Message, frozen=True, kw_only=True):
    """No message of the protocol."""

    nonsense: bytes


def forged(owner: PeerId, signer: Identity) -> SignedRecord:
    """Return a record that names one owner and is signed by another."""
    value = pack(Profile(memory_bytes=10**9))
    content = pack(Content(owner=owner, kind=PROFILE, name="self", incarnation=_FAR, sequence=1, value=value))
    return SignedRecord(content=content, signature=signer.sign("record", content))


def damaged(record: Record) -> SignedRecord:
    """Return another's record with a new version under the old signature."""
    content = pack(msgspec.structs.replace(record.content, sequence=record.content.sequence + _FAR))
    return SignedRecord(content=content, signature=record.signed.signature)


class Liar(Device):
    """A client of the mesh that lies."""

    lies = 0

    def equip(self, identity: Identity, outsider: Identity, foreign: tuple[Grant, ...]) -> None:
        """Give it the keys to lie with."""
        self._own, self._outsider, self._foreign = identity, outsider, foreign

    def start(self) -> None:
        super().start()
        self.after(_LIE_INTERVAL_S, self._lie)

    def _lie(self) -> None:
        present = sorted(self.present)
        if present:
            victim, target = self.dice.choice(present), self.dice.choice(present)
            self.dice.choice(self._lies())(victim, target)
            self.lies += 1
        self.after(_LIE_INTERVAL_S * self.dice.uniform(0.5, 1.5), self._lie)

    def _lies(self) -> list[Callable[[PeerId, PeerId], None]]:
        return [
            self._forge,
            self._damage,
            self._introduce,
            self._misuse_chain,
            self._babble,
            self._trespass,
            self._answer_for,
        ]

    def _forge(self, victim: PeerId, target: PeerId) -> None:
        self._send(target, Swap(records=(forged(victim, self._own),)))

    def _damage(self, victim: PeerId, target: PeerId) -> None:
        records = [record for record in self.records.store.live(PROFILE, self.present) if record.owner == victim]
        self._send(target, Swap(records=tuple(damaged(record) for record in records)))

    def _introduce(self, _victim: PeerId, target: PeerId) -> None:
        """Vouch for somebody of another mesh, with that mesh's grant."""
        stranger = self._outsider.peer_id
        self._send(target, Swap(records=(forged(stranger, self._outsider),), chains={stranger: self._foreign}))

    def _misuse_chain(self, _victim: PeerId, target: PeerId) -> None:
        """Vouch for an outsider with a grant that is somebody else's."""
        stranger = self._outsider.peer_id
        self._send(target, Swap(records=(forged(stranger, self._outsider),), chains={stranger: self.hello().chain}))

    def _babble(self, _victim: PeerId, target: PeerId) -> None:
        self._send(target, Garbage(nonsense=self.dice.randbytes(40)))

    def _trespass(self, _victim: PeerId, target: PeerId) -> None:
        """Call what a client may not."""
        garbage = RoundMessage(header=self.dice.randbytes(40))
        self.call(target, "train.round", garbage, Empty, scope=TASK_NAME, body=b"\xff" * 64)
        self.call(target, "train.state", StateWanted(version=1), Empty, scope=TASK_NAME)

    def _answer_for(self, _victim: PeerId, target: PeerId) -> None:
        """Send a result for a request that one can only guess."""
        result = StageResult(session=self.dice.randbytes(16).hex(), attempt=1)
        self.call(target, "infer.result", result, Empty, scope=MODEL_NAME, body=bytes(8))

    def _send(self, target: PeerId, message: Message) -> None:
        self.call(target, "mesh.swap", message, Swapped)


class Outsider(Device):
    """A device of another mesh that wants in."""

    def equip(self, identity: Identity, stolen: tuple[Grant, ...]) -> None:
        """Give it its key, and a member's grant, which everyone sees whom that member greets."""
        self._own, self._stolen = identity, stolen

    def _dial(self, peer: PeerId) -> None:
        def dialled(connection: Connection | None, _why: str) -> None:
            if connection is None:
                self.undialled(peer)
                return
            self.connections.setdefault(peer, []).append(connection)
            self._break_in(connection)

        self.network.dial(self, peer, dialled)

    def _break_in(self, connection: Connection) -> None:
        peer = connection.other(self.me)
        first = Swap(records=(forged(self.me, self._own), forged(peer, self._own)), chains={self.me: self._stolen})
        self.calls.call(connection, "mesh.swap", first, Swapped, _ignore)
        hello = self.dice.choice([self.hello(), Hello(chain=self._stolen), Hello(chain=())])

        def greeted(result: Answer | Exception) -> None:
            if self.alive:
                self._greeted(connection, result)  # type: ignore[arg-type]

        self.calls.call(connection, "hello", hello, HelloAnswer, greeted)


def _ignore(_result: object) -> None:
    """Whatever the answer was."""
