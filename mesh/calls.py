"""Calls between nodes: one request and one answer, each a frame, with a deadline, authorised before it is parsed.

A method says which capability it needs. The check happens here and nowhere else: after the small header is read and
before the payload is looked at. What a handler raises becomes the caller's exception of the same kind.
"""

import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Generic, Literal, NamedTuple, TypeVar

import msgspec
import trio

from . import frames, limits, tensors
from .errors import Busy, LeptonError, LinkError, PeerError, Refused, UsageError
from .grants import Authority
from .identity import PeerId, short
from .messages import Message, Name, Natural, Text, pack, unpack
from .tensors import Array, TensorSpec
from .transport import Connection, Stream

PROTOCOL = "/lepton/call/1"
_READ_BYTES = 256 * limits.KIB
# What an error's text may take of a header.
_REASON_CHARACTERS_MAX = 1000
_COURTESY_S = 1.0  # for telling a peer why: who does not read it in time does not get it

log = logging.getLogger(__name__)
M = TypeVar("M")
R = TypeVar("R")

Tensors = Annotated[tuple[TensorSpec, ...], msgspec.Meta(max_length=limits.BUFFERS_MAX)]


class RequestHeader(Message, frozen=True, kw_only=True):
    """What may be known of a request before it is authorised."""

    method: Name
    scope: Annotated[str, msgspec.Meta(pattern=r"^([a-z0-9][a-z0-9._-]{0,63})?\Z")] = ""  # which model, task or service
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=limits.CALL_TIMEOUT_S_MAX)]
    payload_bytes: Natural
    tensors: Tensors = ()


ErrorKind = Literal["", "usage", "peer", "link", "refused", "busy", "internal"]


class AnswerHeader(Message, frozen=True, kw_only=True):
    """How a call ended. ``error`` names the kind of exception, ``reason`` is its message."""

    error: ErrorKind = ""
    reason: Text = ""
    retry_after_s: Annotated[float, msgspec.Meta(ge=0, le=limits.CALL_TIMEOUT_S_MAX)] = 0.0
    payload_bytes: Natural = 0
    tensors: Tensors = ()


class Empty(Message, frozen=True, kw_only=True):
    """Nothing to say."""


class Incoming(NamedTuple, Generic[M]):
    """A call as its handler sees it. ``caller`` is the connection's peer, never something from the payload."""

    caller: PeerId
    authority: Authority
    scope: str
    message: M
    arrays: list[Array]


class Answer(NamedTuple, Generic[R]):
    """What a call returns: a message and tensors."""

    message: R
    arrays: Sequence[Array] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One callable method: what it takes, which capability it needs ('infer' becomes 'infer:SCOPE'), who answers."""

    name: str
    needs: str
    takes: type[Any]
    handler: Callable[[Incoming[Any]], Awaitable[Answer[Any]]]
    body_bytes_max: int = limits.MIB


Admit = Callable[[PeerId], Awaitable[Authority]]
Connect = Callable[[PeerId], Connection]


class Calls:
    """The calls of one node, both ways."""

    def __init__(
        self, me: Authority, *, admit: Admit, connection_to: Connect, offend: Callable[[PeerId, str], None]
    ) -> None:
        """``admit`` gives a caller's authority or raises Refused; ``offend`` hears who broke the protocol, and how."""
        self._me = me
        self._admit = admit
        self._connection_to = connection_to
        self._offend = offend
        self._methods: dict[str, Method] = {}
        self._in_flight: dict[PeerId, int] = {}
        self.bytes_sent = 0
        self.bytes_received = 0

    def serve(self, *methods: Method) -> None:
        """Answer these methods from now on."""
        self._methods.update((method.name, method) for method in methods)

    def withdraw(self, *names: str) -> None:
        """Stop answering these methods."""
        for name in names:
            self._methods.pop(name, None)

    # -- calling ----------------------------------------------------------------------------------------------------

    async def call(
        self,
        peer: PeerId,
        method: str,
        message: Message,
        answers: type[R],
        *,
        scope: str = "",
        arrays: Sequence[Array] = (),
        timeout_s: float = limits.CALL_TIMEOUT_S,
        answer_bytes_max: int = limits.BODY_BYTES_MAX,
    ) -> Answer[R]:
        """Call a method of a peer. Raises LinkError when no answer comes in time, else what the handler raised.

        A peer's unreadable answer raises PeerError and costs it the connection; UsageError means that the call itself
        is not one that any peer would read.
        """
        if peer == self._me.subject:
            return await self._call_oneself(method, message, scope, arrays, timeout_s)
        payload = pack(message)
        header = RequestHeader(
            method=method,
            scope=scope,
            timeout_s=min(timeout_s, limits.CALL_TIMEOUT_S_MAX),
            payload_bytes=len(payload),
            tensors=tuple(tensors.describe(array) for array in arrays),
        )
        pieces = frames.encode(_checked(header), [payload, *(tensors.buffer_of(array) for array in arrays)])
        try:
            with trio.fail_after(timeout_s):
                frame = await self._exchange(peer, pieces, answer_bytes_max)
            return _read_answer(frame, answers, peer)
        except trio.TooSlowError as error:
            msg = f"{short(peer)} did not answer {method!r} within {timeout_s:g} s."
            raise LinkError(msg) from error
        except PeerError as error:
            error.offender = peer
            self._offend(peer, str(error))
            raise

    async def _exchange(self, peer: PeerId, pieces: Sequence[Any], answer_bytes_max: int) -> frames.Frame:
        try:
            stream = await self._connection_to(peer).open_stream(PROTOCOL)
            return await self._exchange_over(stream, pieces, answer_bytes_max)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:  # at once when the connection closes
            msg = f"The connection to {short(peer)} broke during a call."
            raise LinkError(msg) from error

    async def _exchange_over(self, stream: Stream, pieces: Sequence[Any], answer_bytes_max: int) -> frames.Frame:
        try:
            await self._send(stream, pieces)
            await stream.send_eof()
            frame = await self._receive(stream, answer_bytes_max)
        except BaseException:
            stream.reset()
            raise
        await stream.aclose()
        return frame

    async def _call_oneself(
        self, method: str, message: Message, scope: str, arrays: Sequence[Array], timeout_s: float
    ) -> Answer[Any]:
        try:
            with trio.fail_after(timeout_s):
                known = self._method(method)
                self._me.require(_capability(known, scope), time.time())
                return await known.handler(Incoming(self._me.subject, self._me, scope, message, list(arrays)))
        except trio.TooSlowError as error:
            msg = f"This node did not answer its own {method!r} within {timeout_s:g} s."
            raise LinkError(msg) from error

    # -- answering --------------------------------------------------------------------------------------------------

    async def answer(self, stream: Stream) -> None:
        """Serve one inbound stream: the handler of ``PROTOCOL``. Whatever happens, only this stream or peer ends."""
        peer = stream.peer_id
        try:
            authority = await self._admit(peer)
        except Refused as error:
            stream.reset()
            self._offend(peer, str(error))
            return
        if self._in_flight.get(peer, 0) >= limits.CALLS_PER_PEER_MAX:
            busy = Busy(f"This node already answers {limits.CALLS_PER_PEER_MAX} calls of yours.", 0.1)
            await self._send_error(stream, busy)
            return
        self._in_flight[peer] = self._in_flight.get(peer, 0) + 1
        try:
            await self._answer(stream, authority)
        except LeptonError as error:
            await self._fail(stream, error)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("the caller %s went away", short(peer))
            stream.reset()
        except Exception as error:  # our own bug: it must cost no more than this call
            log.exception("a call by %s failed", short(peer))
            msg = f"an unexpected {type(error).__name__}; the log of that node has more."
            await self._send_error(stream, LeptonError(msg))
        finally:
            self._in_flight[peer] -= 1
            if not self._in_flight[peer]:
                del self._in_flight[peer]

    async def _fail(self, stream: Stream, error: LeptonError) -> None:
        """Tell the caller why, and hang up on one that broke the protocol."""
        peer = stream.peer_id
        if not isinstance(error, PeerError):
            await self._send_error(stream, error)
        elif error.offender not in {"", peer}:  # somebody whom the handler called: not the caller's fault
            await self._send_error(stream, LinkError(str(error)))
        else:
            await self._send_error(stream, error)
            self._offend(peer, str(error))

    async def _answer(self, stream: Stream, authority: Authority) -> None:
        with trio.move_on_after(limits.FRAME_TIMEOUT_S) as reading:
            header, method, frame = await self._receive_request(stream, authority)
        if reading.cancelled_caught:
            msg = f"A request was not complete after {limits.FRAME_TIMEOUT_S:g} s."
            raise PeerError(msg)
        payload, buffers = _split(frame.body, header.payload_bytes)
        message, arrays = unpack(payload, method.takes), tensors.read(header.tensors, buffers)
        deadline = trio.current_time() + header.timeout_s  # past it nobody waits for the answer
        answer = None
        with trio.CancelScope(deadline=deadline):
            answer = await method.handler(Incoming(stream.peer_id, authority, header.scope, message, arrays))
        if answer is None:
            msg = f"{method.name!r} was not done within the {header.timeout_s:g} s that its caller gave."
            raise LinkError(msg)
        with trio.CancelScope(deadline=deadline + _COURTESY_S) as sending:
            await self._send_answer(stream, answer)
        if sending.cancelled_caught:
            log.debug("the caller %s did not read its answer", short(stream.peer_id))
            stream.reset()

    async def _receive_request(
        self, stream: Stream, authority: Authority
    ) -> tuple[RequestHeader, Method, frames.Frame]:
        """Read one request. What is not allowed is not kept: no memory is spent on its body."""
        decoder = frames.FrameDecoder()
        head, frame = await _receive_header(stream, decoder)
        header = unpack(head, RequestHeader)
        try:
            method = self._method(header.method)
            authority.require(_capability(method, header.scope), time.time())
        except LeptonError:
            await self._pass_over(stream, decoder.body_bytes)  # so that the caller is there to read the reason
            raise
        most = method.body_bytes_max
        if decoder.body_bytes > most:
            msg = f"A request to {method.name!r} has {decoder.body_bytes} B; it takes at most {most} B."
            raise PeerError(msg)
        return header, method, self._count(frame or await _receive_rest(stream, decoder))

    async def _pass_over(self, stream: Stream, size_bytes: int) -> None:
        while size_bytes:
            data = await stream.receive_some(min(size_bytes, _READ_BYTES))
            if not data:
                msg = "The stream ended inside a frame."
                raise PeerError(msg)
            size_bytes -= len(data)
            self.bytes_received += len(data)

    def _method(self, name: str) -> Method:
        if name not in self._methods:
            msg = f"This node does not answer {name!r}; it may run another release, or not hold what was asked for."
            raise UsageError(msg)
        return self._methods[name]

    async def _send_answer(self, stream: Stream, answer: Answer[Any]) -> None:
        payload = pack(answer.message)
        header = AnswerHeader(
            payload_bytes=len(payload), tensors=tuple(tensors.describe(array) for array in answer.arrays)
        )
        await self._send(stream, frames.encode(pack(header), [payload, *map(tensors.buffer_of, answer.arrays)]))
        await stream.send_eof()
        await stream.aclose()

    async def _send_error(self, stream: Stream, error: LeptonError) -> None:
        header = AnswerHeader(
            error=next((name for name, cls in _KINDS.items() if isinstance(error, cls)), "internal"),
            reason=str(error)[:_REASON_CHARACTERS_MAX],
            retry_after_s=_sane_pause(error.retry_after_s) if isinstance(error, Busy) else 0.0,
        )
        with trio.move_on_after(_COURTESY_S):
            try:
                await self._send(stream, frames.encode(pack(header)))
                await stream.send_eof()
                await stream.aclose()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                log.debug("could not tell %s: %s", short(stream.peer_id), error)
            else:
                return
        stream.reset()

    # -- frames on streams ------------------------------------------------------------------------------------------

    async def _send(self, stream: Stream, pieces: Sequence[bytes | bytearray | memoryview]) -> None:
        for piece in pieces:
            await stream.send_all(piece)
            self.bytes_sent += len(piece)

    async def _receive(self, stream: Stream, body_bytes_max: int) -> frames.Frame:
        return self._count(await receive_frame(stream, body_bytes_max=body_bytes_max))

    def _count(self, frame: frames.Frame) -> frames.Frame:
        self.bytes_received += len(frame.header) + frame.body.nbytes
        return frame


_KINDS: Final[dict[ErrorKind, type[LeptonError]]] = {
    "usage": UsageError,
    "refused": Refused,
    "busy": Busy,
    "peer": PeerError,
    "link": LinkError,
}


async def receive_frame(stream: Stream, *, body_bytes_max: int) -> frames.Frame:
    """Read exactly one frame. Raises PeerError when the stream ends before it does."""
    return await _receive_rest(stream, frames.FrameDecoder(body_bytes_max=body_bytes_max))


async def _receive_header(stream: Stream, decoder: frames.FrameDecoder) -> tuple[bytes, frames.Frame | None]:
    """Read until the header is complete, and none of the body. Returns the whole frame too if it has no body."""
    while (header := decoder.header) is None:
        if got := decoder.receive(await _read(stream, decoder)):
            return got[0].header, got[0]
    return header, None


async def _receive_rest(stream: Stream, decoder: frames.FrameDecoder) -> frames.Frame:
    while not (got := decoder.receive(await _read(stream, decoder))):
        pass
    return got[0]


async def _read(stream: Stream, decoder: frames.FrameDecoder) -> bytes:
    data = await stream.receive_some(min(decoder.bytes_wanted, _READ_BYTES))
    if not data:
        decoder.end()
        msg = "The stream ended where a frame was expected."
        raise PeerError(msg)
    return data


def _capability(method: Method, scope: str) -> str:
    return f"{method.needs}:{scope}" if scope else method.needs


def _checked(header: RequestHeader) -> bytes:
    """Encode a header that any peer will read. Raises UsageError: a wrong one would cost us the connection."""
    data = pack(header)
    try:
        unpack(data, RequestHeader)
    except PeerError as error:
        msg = f"{header.method!r} cannot be called like this: {error}"
        raise UsageError(msg) from error
    return data


def _split(body: memoryview, payload_bytes: int) -> tuple[memoryview, memoryview]:
    """Cut a body into its message and its tensors. Raises PeerError when it is shorter than announced."""
    if payload_bytes > body.nbytes:
        msg = f"A message of {payload_bytes} B was announced in a body of {body.nbytes} B."
        raise PeerError(msg)
    return body[:payload_bytes], body[payload_bytes:]


def _sane_pause(pause_s: float) -> float:
    return min(max(pause_s, 0.0), limits.CALL_TIMEOUT_S_MAX) if math.isfinite(pause_s) else 1.0


def _read_answer(frame: frames.Frame, answers: type[R], peer: PeerId) -> Answer[R]:
    header = unpack(frame.header, AnswerHeader)
    if header.error == "busy":
        raise Busy(header.reason, header.retry_after_s)
    if header.error == "peer":  # what we sent was malformed in its eyes: our bug or a release apart, not its offence
        msg = f"{short(peer)} could not read our request: {header.reason}"
        raise LinkError(msg)
    if header.error == "internal":
        msg = f"{short(peer)} failed: {header.reason}"
        raise LinkError(msg)
    if header.error:
        raise _KINDS[header.error](header.reason)
    payload, buffers = _split(frame.body, header.payload_bytes)
    return Answer(unpack(payload, answers), tensors.read(header.tensors, buffers))
