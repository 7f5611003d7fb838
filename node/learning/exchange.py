"""The shell of rounds: hands what peers say to the averaging machine, and carries what it says to them.

Whoever averages a vector uses this, whatever the vector is. What arrives is handled in the task that received it, so a
machine that is busy is not sent more. What goes to a peer goes over one call with a stream of its own, in order, which
stays open while there is something to say. Nothing here decides anything, and nothing is sent twice: the machine asks
again for what did not arrive.
"""

import logging
from collections import deque
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Final

import numpy as np
import trio

from ...gossip import messages
from ...gossip.errors import BadContribution
from ...gossip.events import Behind, Expired, Finished, PeerDown, Ready, Received, Send
from ...mesh import limits, tensors
from ...mesh.calls import Answer, Calls, Empty
from ...mesh.errors import LeptonError, PeerError
from ...mesh.identity import PeerId, short
from .messages import RoundMessage
from .policies import Machine

METHOD: Final = "train.round"
MESSAGE_BYTES_MAX: Final = 8 * limits.MIB  # half a megabyte of int4 is 4 MB as the float32 that is relayed
_OUTBOX_MAX: Final = 4096  # a peer that takes nothing; beyond, what is for it is dropped
_IDLE_S: Final = 5.0  # a stream without anything to say is closed: to open it again costs a round trip
_STREAM_S: Final = limits.CALL_TIMEOUT_S_MAX / 2  # then a new one is opened, long before its deadline

log = logging.getLogger(__name__)


class Exchange:
    """Drives one machine over a mesh; ``wire`` packs and unpacks its messages. Its tasks live in ``nursery``."""

    def __init__(
        self, calls: Calls, nursery: trio.Nursery, machine: Machine, *, scope: str, wire: ModuleType = messages
    ) -> None:
        self.machine = machine
        self.bytes_sent = 0
        self._calls, self._nursery, self._scope, self._wire = calls, nursery, scope, wire
        self._outboxes: dict[PeerId, _Outbox] = {}
        self._finished: Finished | None = None
        self._behind: Behind | None = None
        self._moved = trio.Event()

    # -- what happens -------------------------------------------------------------------------------------------------

    def take(self, peer: PeerId, item: Answer[RoundMessage]) -> None:
        """Take in a peer's message. Raises PeerError when it is malformed."""
        try:
            message = self._wire.unpack(item.message.header, _payload(item))
        except BadContribution as error:
            raise PeerError(str(error)) from error
        self._handle(Received(peer, message))

    def peer_left(self, peer: PeerId) -> None:
        """Take in that a peer is gone."""
        self._handle(PeerDown(peer))

    def notice_passed(self, peer: PeerId, *, by: int) -> None:
        """Take in that others say of themselves to be so many rounds ahead."""
        self._behind = Behind(by, peer)
        self._moved.set()

    def _handle(self, event: Ready | Received | PeerDown | Expired) -> None:
        for effect in self.machine.handle(event, trio.current_time()):
            match effect:
                case Send(peer, message):
                    self._send(PeerId(peer), message)
                case Finished():
                    self._finished = effect
                case Behind():
                    self._behind = effect
        self._moved.set()

    # -- a round ------------------------------------------------------------------------------------------------------

    def begin(self, ready: Ready) -> None:
        """Begin a round. Raises BadSetup, BadContribution as the machine does."""
        self._finished = None
        self._handle(ready)

    async def outcome(self) -> Finished | Behind:
        """Wait until the round that runs is over, or somebody claims to be so far ahead that it is not worth it."""
        await trio.lowlevel.checkpoint()
        while True:
            if self._finished is not None:
                return self._finished
            if self._behind is not None:
                behind, self._behind = self._behind, None
                return behind
            self._moved = trio.Event()
            with trio.move_on_at(self.machine.deadline):
                await self._moved.wait()
            if not self._moved.is_set():
                self._handle(Expired())

    # -- to peers -----------------------------------------------------------------------------------------------------

    def _send(self, peer: PeerId, message: object) -> None:
        outbox = self._outboxes.get(peer)
        if outbox is None:
            outbox = self._outboxes[peer] = _Outbox()
            self._nursery.start_soon(self._carry, peer, outbox)
        if len(outbox.waiting) < _OUTBOX_MAX:
            outbox.waiting.append(message)
            outbox.filled.set()

    async def _carry(self, peer: PeerId, outbox: "_Outbox") -> None:
        while True:
            await outbox.filled.wait()
            try:
                await self._calls.feed(
                    peer, METHOD, Empty(), self._items(outbox), Empty, scope=self._scope,
                    timeout_s=limits.CALL_TIMEOUT_S_MAX,
                )  # fmt: skip
            except LeptonError as error:
                log.debug("%s: what was for %s is lost: %s", self._scope, short(peer), error)
                outbox.waiting.clear()
                outbox.filled = trio.Event()

    async def _items(self, outbox: "_Outbox") -> AsyncIterator[Answer[RoundMessage]]:
        ends_s = trio.current_time() + _STREAM_S
        while trio.current_time() < ends_s:
            if not outbox.waiting:
                outbox.filled = trio.Event()
                with trio.move_on_after(_IDLE_S):
                    await outbox.filled.wait()
                if not outbox.waiting:
                    return
            header, payload = self._wire.pack(outbox.waiting.popleft())
            self.bytes_sent += len(header) + len(payload)
            arrays = [np.frombuffer(payload, dtype=np.uint8)] if len(payload) else []
            yield Answer(RoundMessage(header=header), arrays)


class _Outbox:
    """What waits to be sent to one peer."""

    def __init__(self) -> None:
        self.waiting: deque[object] = deque()
        self.filled = trio.Event()


def _payload(item: Answer[RoundMessage]) -> memoryview:
    if not item.arrays:
        return memoryview(b"")
    (array,) = item.arrays if len(item.arrays) == 1 else (None,)
    if array is None or array.dtype != np.uint8 or array.ndim != 1:
        msg = "a round's message carries at most one row of bytes beside its header"
        raise BadContribution(msg)
    return tensors.buffer_of(array)
