"""The shell of the picture: says what this node states to all who are connected, and reconciles with them one by one.

What changes is pushed to everyone at once; exchanges repair what got lost on the way. What is stated, kept and lacking
is for the record store to say.
"""

import logging
import random
import time
from collections.abc import Callable, Collection
from typing import TypeVar

import trio

from . import limits
from .admission import Admission
from .calls import Answer, Calls, Empty, Incoming, Method
from .errors import LeptonError, PeerError
from .identity import PeerId, short
from .messages import Message
from .protocol import Delta, delta_of
from .records import Digest, Record, RecordStore

# Two periods of exchange: a peer that cannot say what it knows within this is missed once.
EXCHANGE_TIMEOUT_S = 2.0

log = logging.getLogger(__name__)
T = TypeVar("T")


class Picture:
    """One node's copy of the picture, and its talk about it."""

    def __init__(
        self,
        store: RecordStore,
        admission: Admission,
        calls: Calls,
        *,
        present: Callable[[], Collection[PeerId]],
        connected: Callable[[], Collection[PeerId]],
        spawn: Callable[..., None],
        offend: Callable[[PeerId, str], None],
        rng: random.Random,
    ) -> None:
        """``present`` are the members that count as being here, ``connected`` those of them that can be told at once.

        ``spawn`` starts a task of the node, as a nursery does; ``offend`` hears who broke the protocol, and how.
        """
        self.store = store
        self._admission = admission
        self._calls = calls
        self._present = present
        self._connected = connected
        self._spawn = spawn
        self._offend = offend
        self._rng = rng
        self._unsaid: dict[PeerId, Digest | None] = {}  # to whom this node is pushing, and from where it has to go on
        self._behind: set[PeerId] = set()  # peers of whom something was missed and is about to be asked for
        self._changed = trio.Event()
        calls.serve(
            Method(name="mesh.exchange", needs="mesh", takes=Digest, handler=self._answer_exchange),
            Method(name="mesh.push", needs="mesh", takes=Delta, handler=self._answer_push),
        )

    def publish(self, kind: str, name: str, value: Message, *, durable: bool = False) -> Record:
        """State something about this node to all. Raises UsageError when it is too large or one too many."""
        since = self.store.digest(self._me)
        record = self.store.publish(kind, name, value, durable=durable)
        self._push(since)
        return record

    def withdraw(self, kind: str, name: str) -> None:
        """Take a statement back."""
        since = self.store.digest(self._me)
        if self.store.withdraw(kind, name) is not None:
            self._push(since)

    def live(self, kind: str, value: type[T]) -> list[tuple[Record, T]]:
        """Return what members that are here say of one kind; a record whose value does not parse is passed over."""
        found = []
        for record in self.store.live(kind, self._present()):
            try:
                found.append((record, record.value(value)))
            except PeerError as error:
                log.warning("%s published a bad %s record: %s", short(record.owner), kind, error)
        return found

    @property
    def changed(self) -> trio.Event:
        """Set at the next change of the picture or of who is present. Take it *before* looking, then wait for it."""
        return self._changed

    def notify(self) -> None:
        """Wake whoever waits for a change."""
        self._changed.set()
        self._changed = trio.Event()

    @property
    def _me(self) -> PeerId:
        return self._admission.me.subject

    # -- pushing ------------------------------------------------------------------------------------------------------

    def _push(self, since: Digest) -> None:
        """Tell all who are connected what this node has said since these heads. What waits for a peer goes together."""
        self.notify()
        for peer in sorted(self._connected()):
            if peer not in self._unsaid:
                self._unsaid[peer] = None
                self._spawn(self._push_to, peer)
            if self._unsaid[peer] is None:
                self._unsaid[peer] = since

    async def _push_to(self, peer: PeerId) -> None:
        """Push one after the other: of two at once the later one might arrive first."""
        try:
            while (since := self._unsaid[peer]) is not None:
                self._unsaid[peer] = None
                delta = self._delta(self.store.newer_than(since, self._me), since)
                await self._calls.call(peer, "mesh.push", delta, Empty, timeout_s=EXCHANGE_TIMEOUT_S)
        except LeptonError as error:  # the next exchange repeats it
            log.debug("push to %s: %s", short(peer), error)
        finally:
            del self._unsaid[peer]

    def _delta(self, records: list[Record], since: Digest, digest: Digest | None = None) -> Delta:
        chains = self._admission.chains({record.owner for record in records})
        return delta_of(records, chains, since=since, digest=digest)

    def _lacking(self, digest: Digest) -> list[Record]:
        return self.store.newer_than(digest, turn=self._rng.randrange(limits.MEMBERS_MAX))

    # -- reconciling --------------------------------------------------------------------------------------------------

    async def _answer_exchange(self, call: Incoming[Digest]) -> Answer[Delta]:
        return Answer(self._delta(self._lacking(call.message), call.message, self.store.digest()))

    async def _answer_push(self, call: Incoming[Delta]) -> Answer[Empty]:
        behind = not self.store.follows_on(call.message.since)
        self._merge(call.message)
        if behind:
            self._catch_up(call.caller)
        return Answer(Empty())

    def _catch_up(self, peer: PeerId) -> None:
        """Ask a peer for all that it said since; at most one such exchange waits to begin."""
        if peer not in self._behind:
            self._behind.add(peer)
            self._spawn(self.exchange, peer)

    def _merge(self, delta: Delta) -> None:
        """Take in a delta. Raises PeerError when a record in it is forged."""
        self._admission.learn(delta.chains, time.time())
        revision = self.store.revision
        try:
            self.store.merge(delta.records, since=delta.since, known=self._admission.knows)
        finally:
            if self.store.revision != revision:
                self.notify()

    async def exchange(self, peer: PeerId) -> bool:
        """Reconcile with a peer, in as many turns as the time for it allows; whether that came to its end."""
        self._behind.discard(peer)
        try:
            with trio.fail_after(EXCHANGE_TIMEOUT_S):
                while await self._exchange_once(peer):
                    pass
        except (LeptonError, trio.TooSlowError) as error:
            log.debug("exchange with %s: %s", short(peer), error)
            if isinstance(error, PeerError):
                self._offend(peer, str(error))
            return False
        return True

    async def _exchange_once(self, peer: PeerId) -> bool:
        """Reconcile one message each way; true when this node read on and the peer has more."""
        asked = self.store.digest()
        got = (await self._calls.call(peer, "mesh.exchange", asked, Delta)).message
        self._merge(got)
        if got.digest is None:
            msg = f"{short(peer)} answered an exchange without a digest."
            raise PeerError(msg)
        delta = self._delta(self._lacking(got.digest), got.digest)
        if delta.records:
            await self._calls.call(peer, "mesh.push", delta, Empty)
        # Whether it was this answer or a push meanwhile that brought it; but never again for what is not taken here.
        return self.store.digest() != asked and not self.store.follows_on(got.digest)
