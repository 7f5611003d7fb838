"""The answering side of one control stream, as a machine: bytes and time in, events out; commands in, frames out.

Invariants, tested with the other side (``caller``) and a link that cuts and delays:

- Every call gets exactly one last word, an answer or an error, and only when its owner says so: a call that was
  cancelled or is past its deadline counts as in flight until whoever works on it has stopped.
- At most ``in_flight_max`` calls, as many more as may be queued, ``limits.STREAM_ITEMS_MAX`` items of each (of them
  ``limits.STREAM_BYTES_MAX`` bytes and one item), and ``aside_bytes_max`` of large buffers are here at once; a call
  beyond that is answered ``busy``, an item beyond it is a violation.
- Call ids only grow. What comes for a call that is over is dropped: it was under way when the call ended.
- What the caller does against the rules is a PeerError out of ``receive``; after one only ``give_up`` is of use.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from .. import limits
from ..errors import Busy, LeptonError, LinkError, PeerError
from ..frames import Frame, FrameDecoder
from . import headers
from .caller import BODY_BYTES_MAX
from .headers import (
    AnswerHeader,
    CancelHeader,
    CreditHeader,
    EndHeader,
    ItemHeader,
    RequestHeader,
    WelcomeHeader,
)
from .unread import Unread

NEVER: Final = float("inf")


class Asked(NamedTuple):
    """A new call; it ends with ``answer`` or ``fail``."""

    call: int
    header: RequestHeader
    body: memoryview


class ItemCame(NamedTuple):
    """The next item of a client stream."""

    call: int
    header: ItemHeader
    body: memoryview


class Ended(NamedTuple):
    """The client stream's last item has come."""

    call: int


class Widened(NamedTuple):
    """Items may be sent again."""

    call: int


class Stop(NamedTuple):
    """Nobody waits for this call any more: stop working on it, then ``fail`` it."""

    call: int


Event = Asked | ItemCame | Ended | Widened | Stop


@dataclass(slots=True, eq=False)
class _Call:
    header: RequestHeader
    deadline: float
    may_send: int
    aside_bytes: int
    queued: bool = False  # it waits in a queue of its method's own
    may_come: int = 0
    unread: Unread = field(default_factory=Unread)  # items that came, or that we sent
    ended: bool = False
    stopped: LeptonError | None = None  # why nobody waits for it
    delivering: bool = False  # its answer was given; the large part is on its way


class Callee:
    """The calls of one peer that travel on one control stream."""

    def __init__(
        self,
        *,
        in_flight_max: int = limits.CALLS_PER_PEER_MAX,
        aside_bytes_max: int = limits.ASIDE_BYTES_PER_PEER_MAX,
        epoch: bytes = b"",
        body_bytes_max: int = BODY_BYTES_MAX,
        queues: Callable[[str], bool] = lambda _method: False,
    ) -> None:
        """``epoch`` names this life of the node, for calls with a key; without one the caller is not told.

        ``queues`` says which methods have queues of their own: of their small calls there may be more.
        """
        self._queues = queues
        self._queued = 0
        self._in_flight_max = in_flight_max
        self._aside_bytes_max = aside_bytes_max
        self._aside_bytes = 0
        self._calls: dict[int, _Call] = {}
        self._highest = 0
        self._decoder = FrameDecoder(body_bytes_max=body_bytes_max)
        self._out = [headers.frame(WelcomeHeader(call=0, epoch=epoch))] if epoch else list[bytes]()

    @property
    def in_flight(self) -> int:
        """Calls without a last word."""
        return len(self._calls)

    @property
    def deadline(self) -> float:
        """When ``tick`` wants to be called at the latest."""
        return min([call.deadline for call in self._calls.values()], default=NEVER)

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

    def answer(
        self, header: AnswerHeader, payload: bytes, buffers: list[memoryview] | tuple[memoryview, ...] = ()
    ) -> None:
        """The last word. With ``header.aside`` the call stays in flight until ``delivered``.

        Of a call that was stopped meanwhile the last word is why.
        """
        call = self._calls[header.call]
        if call.stopped is not None:
            self.fail(header.call, call.stopped)
            return
        self._out.append(headers.frame(header, (payload, *buffers)))
        if header.aside:
            call.delivering = True
        else:
            self._forget(header.call)

    def is_queued(self, call: int) -> bool:
        """Whether it is one of the calls of which there may be more."""
        return call in self._calls and self._calls[call].queued

    def is_delivering(self, call: int) -> bool:
        """Whether the large part of the answer is still to go."""
        return call in self._calls and self._calls[call].delivering

    def is_over(self, call: int) -> bool:
        """Whether this call came and has had its last word."""
        return call <= self._highest and call not in self._calls

    def delivered(self, call: int) -> None:
        """The large part of the answer was sent, or never will be."""
        self._forget(call)

    def fail(self, call: int, error: LeptonError) -> None:
        """The last word: why there is no answer. If the caller gave up first, it is that."""
        known = self._calls[call]
        if not known.delivering:
            self._out.append(headers.frame(headers.error_header(call, known.stopped or error)))
        self._forget(call)

    def may_send(self, call: int) -> bool:
        """Whether an item may be sent now."""
        known = self._calls[call]
        return _may_send(known) and known.stopped is None

    def item(self, header: ItemHeader, payload: bytes, buffers: list[memoryview]) -> None:
        """Send an item, which ``may_send`` allowed."""
        assert self.may_send(header.call), "an item without credit"
        known = self._calls[header.call]
        known.may_send -= 1
        known.unread.add(len(payload) + sum(view.nbytes for view in buffers))
        self._out.append(headers.frame(header, (payload, *buffers)))

    def invite(self, call: int) -> None:
        """Let the first items of a client stream come."""
        self._grant(call, self._calls[call], limits.STREAM_ITEMS_MAX)

    def consumed(self, call: int) -> None:
        """One item was taken by the handler; more may come once half of what may wait was."""
        known = self._calls[call]
        items = known.unread.consume()
        if items and not known.ended:
            self._grant(call, known, items)

    def give_up(self, error: PeerError) -> None:
        """Say as a courtesy why nothing more is answered here."""
        self._out.append(headers.frame(headers.error_header(0, error)))

    def tick(self, now: float) -> list[Event]:
        """Stop the calls whose deadline has passed."""
        events: list[Event] = []
        for call, known in self._calls.items():
            if known.deadline <= now:
                known.deadline = NEVER
                msg = f"{known.header.method!r} was not done within the {known.header.timeout_s:g} s that there were."
                self._stop(call, known, LinkError(msg), events)
        return events

    # -- bytes in -----------------------------------------------------------------------------------------------------

    def receive(self, data: bytes | bytearray | memoryview, now: float) -> list[Event]:
        """Take the next bytes, cut anywhere. Raises PeerError."""
        events: list[Event] = []
        for frame in self._decoder.receive(data):
            header = headers.to_callee(frame.header)
            headers.check_body(header, frame.body.nbytes)
            if isinstance(header, RequestHeader):
                self._take_request(header, frame, now, events)
            elif (known := self._calls.get(header.call)) is not None:
                self._take(header, known, frame, events)
            elif not 0 < header.call <= self._highest:
                msg = f"A {type(header).__name__} came for call {header.call}, which was never made."
                raise PeerError(msg)
        return events

    def _take_request(self, header: RequestHeader, frame: Frame, now: float, events: list[Event]) -> None:
        if header.call <= self._highest:
            msg = f"Call {header.call} came after call {self._highest}; ids only grow."
            raise PeerError(msg)
        self._highest = header.call
        if (header.kind == "server_stream") != bool(header.credit):
            msg = f"A {header.kind} call came with a credit of {header.credit} items."
            raise PeerError(msg)
        if header.once is not None and (header.kind != "unary" or header.bulk_bytes):
            msg = f"A {header.kind} call or a transfer came with an idempotency key; only a message has one."
            raise PeerError(msg)
        aside = headers.aside_bytes(header) if header.aside else 0
        queued = header.kind == "unary" and not header.aside and not header.bulk_bytes and self._queues(header.method)
        if (busy := self._too_much(aside, transfer=header.bulk_bytes > 0, queued=queued)) is not None:
            self._out.append(headers.frame(headers.error_header(header.call, busy)))
            return
        self._aside_bytes += aside
        self._calls[header.call] = _Call(header, now + header.timeout_s, header.credit, aside, queued)
        self._queued += queued
        events.append(Asked(header.call, header, frame.body))

    def _too_much(self, aside: int, *, transfer: bool, queued: bool) -> Busy | None:
        alike = self._queued if queued else len(self._calls) - self._queued
        if alike >= (limits.CALLS_QUEUED_PER_PEER_MAX if queued else self._in_flight_max):
            msg = f"This node already answers {alike} calls of yours."
            return Busy(msg, limits.BUSY_RETRY_S)
        if aside and self._aside_bytes and self._aside_bytes + aside > self._aside_bytes_max:
            msg = f"This node already holds {self._aside_bytes} B of your tensors."
            return Busy(msg, limits.BUSY_RETRY_S)
        if (
            transfer
            and sum(call.header.bulk_bytes > 0 for call in self._calls.values()) >= limits.TRANSFERS_PER_PEER_MAX
        ):
            msg = f"This node already takes {limits.TRANSFERS_PER_PEER_MAX} transfers of yours in."
            return Busy(msg, limits.BUSY_RETRY_S)
        return None

    def _take(
        self,
        header: ItemHeader | EndHeader | CancelHeader | CreditHeader,
        known: _Call,
        frame: Frame,
        events: list[Event],
    ) -> None:
        match header:
            case ItemHeader():
                self._take_item(header, known, frame, events)
            case EndHeader():
                if known.header.kind != "client_stream" or known.ended:
                    msg = f"The end of call {header.call}'s items came twice, or there never were any."
                    raise PeerError(msg)
                known.ended = True
                events.append(Ended(header.call))
            case CancelHeader():
                self._stop(header.call, known, _Cancelled("its caller gave it up"), events)
            case CreditHeader():
                self._take_credit(header, known, events)

    def _take_item(self, header: ItemHeader, known: _Call, frame: Frame, events: list[Event]) -> None:
        if not known.may_come or known.ended or known.unread.is_full:
            msg = f"An item of call {header.call} came without credit, or behind its end."
            raise PeerError(msg)
        known.may_come -= 1
        known.unread.add(frame.body.nbytes)
        if known.stopped is None:
            events.append(ItemCame(header.call, header, frame.body))

    def _take_credit(self, header: CreditHeader, known: _Call, events: list[Event]) -> None:
        if known.header.kind != "server_stream" or known.may_send + header.items > limits.CREDIT_MAX:
            msg = f"Call {header.call} got credit for {header.items} items, more than there may be."
            raise PeerError(msg)
        could = _may_send(known)
        known.may_send += header.items
        known.unread.confirmed(header.items)
        if not could:
            events.append(Widened(header.call))

    # -- accounts -----------------------------------------------------------------------------------------------------

    def _stop(self, call: int, known: _Call, why: LeptonError, events: list[Event]) -> None:
        if known.stopped is None:
            known.stopped = why
            known.deadline = NEVER
            events.append(Stop(call))

    def _grant(self, call: int, known: _Call, items: int) -> None:
        known.may_come += items
        self._out.append(headers.frame(CreditHeader(call=call, items=items)))

    def _forget(self, call: int) -> None:
        gone = self._calls.pop(call)
        self._aside_bytes -= gone.aside_bytes
        self._queued -= gone.queued


def _may_send(known: _Call) -> bool:
    return known.may_send > 0 and not known.unread.is_full


class _Cancelled(LeptonError):
    """The caller cancelled; becomes ``cancelled`` on the wire, which no caller reads."""
