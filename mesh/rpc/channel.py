"""Pumps one control stream: what the muxer has goes into a machine, what the machine says goes out. No task of its own.

The muxer's reader calls in here, so a small answer wakes the one task that waits for it and no other. A peer that does
not read what we say is not read either: that bounds both queues. Neither may last: a frame that has begun is complete
within ``limits.FRAME_TIMEOUT_S``, and of what waits for a peer it reads some every ``limits.TRANSFER_STALL_S``, or the
stream ends here.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import trio

from .. import limits
from ..errors import LeptonError, LinkError, PeerError
from ..identity import short
from ..transport import Stream


@dataclass(slots=True)
class Counts:
    """All calls of a node, both ways: their bytes, and how many there were."""

    sent: int = 0
    received: int = 0
    asked: int = 0  # by this node
    asked_failed: int = 0
    answered: int = 0  # by this node
    answered_failed: int = 0


class Channel:
    """One control stream. ``end`` is called once: with what the peer or the link did.

    ``finish`` hears that the peer ended the stream, and raises PeerError when that was inside a frame. ``begun`` is
    the frame that is incomplete.
    """

    def __init__(
        self,
        stream: Stream,
        counts: Counts,
        *,
        receive: Callable[[memoryview], Iterable[Any]],
        take: Callable[[], list[bytes]],
        handle: Callable[[Any], None],
        begun: Callable[[], object],
        finish: Callable[[], None],
        end: Callable[[LeptonError], None],
    ) -> None:
        self._stream = stream
        self._counts = counts
        self._receive = receive
        self._take = take
        self._handle = handle
        self._begun = begun
        self._finish = finish
        self._end = end
        self._drained = trio.Event()
        self._full = False  # the peer does not read what we sent, so it waits, and so does whoever wants to send
        self._unfinished: object = None  # the frame that had begun when the stream was last read
        self._unfinished_until = float("inf")
        self._unread_bytes = 0  # of what we sent, when the peer was last looked at
        self.over = False

    def start(self) -> None:
        """Begin to pump; from now on ``handle`` and ``end`` are called."""
        self.flush()
        self._stream.watch(self._moved, self._emptied)

    def flush(self) -> None:
        """Send what the machine has to say."""
        for data in self._take():
            self._stream.send_nowait(data)
            self._counts.sent += len(data)

    async def room(self) -> None:
        """Wait until the peer has read enough of what was sent. Returns at once when it has; checks nothing else."""
        while self._stream.unsent_bytes > limits.CONTROL_UNSENT_BYTES_MAX and not self.over:
            self._drained = trio.Event()
            self._hold()
            await self._drained.wait()

    def close(self, error: LeptonError) -> None:
        """End it from here."""
        if not self.over:
            self.over = True
            self._drained.set()
            self._end(error)

    def _emptied(self) -> None:
        if self._full:
            self._full = False
            self._drained.set()
            self._moved()

    def _hold(self) -> None:
        """Read nothing more until the peer has read."""
        if not self._full:
            self._full = True
            self._unread_bytes = self._stream.unsent_bytes
            self._stream.alarm(trio.current_time() + limits.TRANSFER_STALL_S, self._look_whether_it_reads)

    def _look_whether_it_reads(self) -> None:
        if not self._full or self.over:
            return
        if self._stream.unsent_bytes >= self._unread_bytes:
            who, most = short(self._stream.peer_id), limits.TRANSFER_STALL_S
            self.close(PeerError(f"{who} asks and for {most:g} s has read nothing of what is said to it."))
            return
        self._full = False
        self._hold()

    def _look_for_the_rest(self) -> None:
        if self._unfinished is None or self.over or trio.current_time() < self._unfinished_until:
            return
        if self._full:  # it is we who do not read
            self._unfinished = None
            return
        who, most = short(self._stream.peer_id), limits.FRAME_TIMEOUT_S
        self.close(PeerError(f"{who} began a frame and did not complete it within {most:g} s."))

    def _mind_the_rest(self, begun: object) -> None:
        self._unfinished = begun
        if begun is not None:
            self._unfinished_until = trio.current_time() + limits.FRAME_TIMEOUT_S
            self._stream.alarm(self._unfinished_until, self._look_for_the_rest)

    def _moved(self) -> None:
        if self.over or self._full:
            return
        stream = self._stream
        try:
            while pieces := stream.receive_nowait():
                for piece in pieces:
                    self._counts.received += len(piece)
                    for event in self._receive(piece):
                        self._handle(event)
                self.flush()
                if stream.unsent_bytes > limits.CONTROL_UNSENT_BYTES_MAX:
                    self._hold()
                    return
            if (begun := self._begun()) is not self._unfinished:
                self._mind_the_rest(begun)
        except LeptonError as error:
            self.close(error)
            return
        if reason := stream.broken:
            self._broke(reason)

    def _broke(self, reason: str) -> None:
        if self._stream.ended:
            try:
                self._finish()
            except PeerError as error:
                self.close(error)
                return
        self.close(LinkError(f"The connection to {short(self._stream.peer_id)} broke during a call: {reason}."))
