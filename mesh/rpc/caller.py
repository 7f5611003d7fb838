"""The asking side of one control stream, as a machine: commands in, frames out; bytes in, events out.

Invariants, tested with the other side (``callee``) and a link that cuts and delays:

- Every call gets exactly one last word from the callee, an answer or an error, also after a cancellation. Until it
  comes the call counts as in flight, so what one side thinks is in flight is never less than what the other works on.
- Each call that is not cancelled here ends with exactly one ``Answered`` or ``Failed``, at its deadline at the latest;
  a cancelled one with no event.
- No more than ``limits.STREAM_ITEMS_MAX`` items of a call, and of them no more than ``limits.STREAM_BYTES_MAX`` bytes
  and one item, are here that ``consumed`` has not confirmed.
- What the callee does against the rules is a PeerError out of ``receive``; after one the machine is of no use.
"""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from .. import limits
from ..errors import Busy, LeptonError, LinkError, PeerError
from ..frames import Frame, FrameDecoder
from . import headers
from .headers import (
    AnswerHeader,
    CancelHeader,
    CreditHeader,
    EndHeader,
    ErrorHeader,
    ItemHeader,
    Kind,
    RequestHeader,
    ToCaller,
    WelcomeHeader,
)
from .unread import Unread

# Payload and small tensors.
BODY_BYTES_MAX: Final = limits.HEADER_BYTES_MAX + limits.INLINE_BYTES_MAX


class Answered(NamedTuple):
    """The call succeeded."""

    call: int
    header: AnswerHeader
    body: memoryview


class ItemCame(NamedTuple):
    """The next item of a server stream."""

    call: int
    header: ItemHeader
    body: memoryview


class Widened(NamedTuple):
    """Items may be sent again."""

    call: int


class Failed(NamedTuple):
    """The call failed."""

    call: int
    error: LeptonError


class Welcomed(NamedTuple):
    """The callee said which life of its this is: ``Caller.epoch``."""

    call: int


Event = Answered | ItemCame | Widened | Failed | Welcomed


@dataclass(slots=True, eq=False)
class _Asked:
    method: str
    kind: Kind
    cancelled: bool = False
    ended: bool = False  # no more items from us
    deadline: float = float("inf")
    timeout_s: float = 0.0
    may_send: int = 0
    may_come: int = 0  # items that the callee may still send
    unread: Unread = field(default_factory=Unread)  # items that came, or that we sent
    brief: bytes = b""  # its key, which is settled with its last word


class Caller:
    """The calls to one peer that travel on one control stream. ``first`` keeps ids apart from an earlier stream's."""

    def __init__(
        self,
        peer: str,
        *,
        first: int = 1,
        in_flight_max: int = limits.CALLS_OUT_PER_PEER_MAX,
        body_bytes_max: int = BODY_BYTES_MAX,
    ) -> None:
        """``peer`` is how errors name it."""
        self._peer = peer
        self.epoch = b""  # of the callee, once it has said so
        self.next_call = first
        self._in_flight_max = in_flight_max
        self._calls: dict[int, _Asked] = {}
        self._decoder = FrameDecoder(body_bytes_max=body_bytes_max)
        self._out: list[bytes] = [headers.frame(headers.Control())]
        self._settled: list[bytes] = []

    @property
    def in_flight(self) -> int:
        """Calls without a last word, cancelled ones included."""
        return len(self._calls)

    def is_open(self, call: int) -> bool:
        """Whether the callee has yet to give its last word."""
        return call in self._calls

    def begun(self) -> object:
        """The incoming frame that is not complete, as ``FrameDecoder.begun``."""
        return self._decoder.begun

    def finish(self) -> None:
        """Note the end of the stream. Raises PeerError when it comes inside a frame."""
        self._decoder.end()

    def take(self) -> list[bytes]:
        """The frames to send now, in order."""
        out, self._out = self._out, []
        return out

    # -- commands -----------------------------------------------------------------------------------------------------

    def start(self, header: RequestHeader, payload: bytes, buffers: tuple[memoryview, ...] = (), *, now: float) -> int:
        """Ask; ``header.call`` must be ``next_call``. Its time is over when ``header.timeout_s`` is.

        Raises Busy when as many calls as may be are in flight.
        """
        if len(self._calls) >= self._in_flight_max:
            msg = f"{len(self._calls)} calls to {self._peer} are in flight, all that this node makes at once."
            raise Busy(msg, limits.BUSY_RETRY_S)
        call = self.next_call
        self.next_call += 1
        self._calls[call] = _Asked(
            header.method,
            header.kind,
            deadline=now + header.timeout_s,
            timeout_s=header.timeout_s,
            may_come=header.credit,
            brief=header.once.key if header.once is not None and header.once.brief else b"",
        )
        if self._settled:
            said = self._settled[: limits.KEYS_SETTLED_MAX]
            del self._settled[: len(said)]
            header = msgspec.structs.replace(header, settled=tuple(said))
        self._out.append(headers.frame(header, (payload, *buffers)))
        return call

    @property
    def deadline(self) -> float:
        """When ``tick`` wants to be called at the latest."""
        return min([asked.deadline for asked in self._calls.values() if not asked.cancelled], default=float("inf"))

    def tick(self, now: float) -> list[Event]:
        """Give up the calls whose time is over, and tell the callee."""
        events: list[Event] = []
        for call, asked in self._calls.items():
            if asked.deadline <= now and not asked.cancelled:
                msg = f"{self._peer} did not answer {asked.method!r} within {asked.timeout_s:g} s."
                events.append(Failed(call, LinkError(msg)))
                self.cancel(call)
        return events

    def may_send(self, call: int) -> bool:
        """Whether an item may be sent now."""
        asked = self._calls.get(call)
        return asked is not None and _may_send(asked)

    def item(self, header: ItemHeader, payload: bytes, buffers: list[memoryview]) -> None:
        """Send an item, which ``may_send`` allowed."""
        assert self.may_send(header.call), "an item without credit"
        asked = self._calls[header.call]
        asked.may_send -= 1
        asked.unread.add(len(payload) + sum(view.nbytes for view in buffers))
        self._out.append(headers.frame(header, (payload, *buffers)))

    def end(self, call: int) -> None:
        """Say that the last item was sent. Nothing if the call is over."""
        asked = self._calls.get(call)
        if asked is not None and not asked.ended and not asked.cancelled:
            asked.ended = True
            self._out.append(headers.frame(EndHeader(call=call)))

    def cancel(self, call: int) -> None:
        """Say that the answer is no longer wanted; no event comes for this call from now on."""
        asked = self._calls.get(call)
        if asked is not None and not asked.cancelled:
            asked.cancelled = asked.ended = True
            self._out.append(headers.frame(CancelHeader(call=call)))

    def consumed(self, call: int) -> None:
        """One item was taken by whoever wants them; the callee may send more once half of what may wait was."""
        asked = self._calls.get(call)
        if asked is None or asked.cancelled:
            return
        if items := asked.unread.consume():
            self._out.append(headers.frame(CreditHeader(call=call, items=items)))
            asked.may_come += items

    # -- bytes in -----------------------------------------------------------------------------------------------------

    def receive(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """Take the next bytes, cut anywhere. Raises PeerError, or LinkError when the callee gave the stream up."""
        events: list[Event] = []
        for frame in self._decoder.receive(data):
            self._take(headers.to_caller(frame.header), frame, events)
        return events

    def _take(self, header: ToCaller, frame: Frame, events: list[Event]) -> None:
        call = header.call
        asked = self._calls.get(call)
        if asked is None:
            self._take_stray(header, frame, events)
            return
        headers.check_body(header, frame.body.nbytes)
        match header:
            case AnswerHeader():
                del self._calls[call]
                self._settle(asked)
                if not asked.cancelled:
                    events.append(Answered(call, header, frame.body))
            case ErrorHeader():
                del self._calls[call]
                if header.error != "busy":  # which did not run, and may be sent again with its key
                    self._settle(asked)
                if not asked.cancelled:
                    events.append(Failed(call, headers.exception(header, self._peer, asked.method)))
            case ItemHeader():
                self._take_item(asked, header, frame, events)
            case CreditHeader():
                self._take_credit(asked, header, events)

    def _settle(self, asked: _Asked) -> None:
        if asked.brief:
            self._settled.append(asked.brief)

    def _take_item(self, asked: _Asked, header: ItemHeader, frame: Frame, events: list[Event]) -> None:
        if not asked.may_come or asked.unread.is_full:
            msg = f"{self._peer} sent an item of {asked.method!r} that it had no credit for."
            raise PeerError(msg)
        asked.may_come -= 1
        asked.unread.add(frame.body.nbytes)
        if not asked.cancelled:
            events.append(ItemCame(header.call, header, frame.body))

    def _take_credit(self, asked: _Asked, header: CreditHeader, events: list[Event]) -> None:
        if asked.kind != "client_stream" or asked.may_send + header.items > limits.CREDIT_MAX:
            msg = f"{self._peer} gave {header.items} credit for {asked.method!r}, more than there may be."
            raise PeerError(msg)
        could = _may_send(asked)
        asked.may_send += header.items
        asked.unread.confirmed(header.items)
        if not could and not asked.cancelled:
            events.append(Widened(header.call))

    def _take_stray(self, header: ToCaller, frame: Frame, events: list[Event]) -> None:
        if isinstance(header, WelcomeHeader) and not (header.call or frame.body or self.epoch):
            self.epoch = header.epoch
            events.append(Welcomed(0))
            return
        if isinstance(header, ErrorHeader) and not header.call:
            msg = f"{self._peer} gave up our calls: {header.reason}"
            raise LinkError(msg)
        msg = f"{self._peer} answered call {header.call}, which is over or was never made."
        raise PeerError(msg)


def _may_send(asked: _Asked) -> bool:
    return asked.may_send > 0 and not asked.ended and not asked.unread.is_full
