"""Calls between nodes: one answer, a stream of answers, a stream of requests, or one large transfer.

Small messages of all calls to a peer share one control stream, which stays open; large tensors and transfers have
streams of their own, so that they never hold up a small call. A method says which capability it needs. The check
happens in one place (``rpc/serving.py``), with the header known and before the payload is looked at. Deadlines travel
as time that is left; what a handler raises becomes the caller's exception of the same kind; a cancelled call is
cancelled on the other side.

Machines (``rpc/caller.py``, ``rpc/callee.py``) decide; the shells beside them move bytes and wake tasks.
"""

import logging
import math
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, Generic, TypeVar

import trio

from . import frames, limits
from .errors import Busy, LinkError, PeerError, Refused, Uncertain, UsageError
from .grants import Authority
from .identity import PeerId, short
from .messages import Message, pack
from .rpc import headers
from .rpc.asking import Asking, Body, Pending, body_of, read_body
from .rpc.attached import PROTOCOL, Attached, Inlet, Key, Outlet
from .rpc.bulk import Bulk, Destination, FilePart, Sink, Source
from .rpc.channel import Counts
from .rpc.headers import EPOCH_BYTES, Attach, Kind, Once, RequestHeader
from .rpc.methods import Answer, Empty, Incoming, Item, Method, capability
from .rpc.once import IdempotencyKey, OnlyOnce, Spawn, hash_of
from .rpc.remembered import Remembered
from .rpc.serving import Admit, Serving
from .tensors import Array
from .transport import Connection, Stream

__all__ = [
    "PROTOCOL",
    "Answer",
    "Bulk",
    "Calls",
    "Empty",
    "FilePart",
    "IdempotencyKey",
    "Incoming",
    "ItemStream",
    "Method",
    "RequestHeader",
    "Sink",
    "receive_frame",
]
_READ_BYTES = 256 * limits.KIB

log = logging.getLogger(__name__)
R = TypeVar("R")

_UPKEEP: Final = "mesh."  # methods that keep the mesh together: they alone are no reason to keep a connection

Connect = Callable[[PeerId], Connection]
Reach = Callable[[PeerId], Awaitable[Connection]]


class _Link:
    """What the calls over one connection share."""

    def __init__(self) -> None:
        self.attached = Attached()
        self.asking: Asking | None = None
        self.opening = trio.Lock()
        self.serving: Serving | None = None
        self.used_at = -math.inf  # when something but upkeep was last asked

    def is_over(self, first: Attach) -> bool:
        """Whether the call to which a stream belongs has ended. One that comes before its call is to wait for it."""
        if first.to_caller:
            return self.asking is None or self.asking.is_over(first.call)
        return self.serving is not None and self.serving.machine.is_over(first.call)


class Calls:
    """The calls of one node, both ways."""

    def __init__(
        self,
        me: Authority,
        *,
        admit: Admit,
        connection_to: Connect,
        offend: Callable[[PeerId, str], None],
        spawn: Spawn | None = None,
        reach: Reach | None = None,
    ) -> None:
        """``admit`` gives a caller's authority or raises Refused; ``offend`` hears who broke the protocol, and how.

        ``connection_to`` returns the connection that there is or raises LinkError; ``reach`` may then make one, within
        the deadline of the call. ``spawn`` starts a task of the node: a call with a key runs there, so that it
        outlives its caller's connection.
        """
        self._me = me
        self._admit = admit
        self._connection_to = connection_to
        self._offend = offend
        self._reach = reach
        self._methods: dict[str, Method] = {}
        self._links: dict[Connection, _Link] = {}
        self._counts = Counts()
        self._only_once = OnlyOnce(Remembered(secrets.token_bytes(EPOCH_BYTES)), spawn)

    @property
    def bytes_sent(self) -> int:
        """By calls of both directions, without the wire's own overhead."""
        return self._counts.sent

    @property
    def bytes_received(self) -> int:
        """By calls of both directions, without the wire's own overhead."""
        return self._counts.received

    @property
    def counts(self) -> Counts:
        """What was asked and answered so far."""
        return self._counts

    def serve(self, *methods: Method) -> None:
        """Answer these methods from now on."""
        self._methods.update((method.name, method) for method in methods)

    def withdraw(self, *names: str) -> None:
        """Stop answering these methods."""
        for name in names:
            self._methods.pop(name, None)

    # -- calling ------------------------------------------------------------------------------------------------------

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
        idempotency_key: IdempotencyKey | None = None,
    ) -> Answer[R]:
        """Call a method of a peer. Raises LinkError when no answer comes in time, else what the handler raised.

        Raises Busy when the peer, or this node's list of calls to it, has as many as it takes. Nothing is ever sent
        twice from here: after a LinkError it may have run or not. With an ``idempotency_key`` whoever calls may send
        it again, with the same key, for ``limits.REMEMBERED_S`` after it ended: it runs at most once, a repetition
        joins it or gets its answer, and raises UsageError when it asks for something else. A callee that was restarted
        has forgotten its keys; it is then not asked to run it, and Uncertain is raised.
        """
        if peer == self._me.subject and idempotency_key is not None:
            return await self._call_oneself_once(idempotency_key, method, Answer(message, arrays), scope, timeout_s)
        if peer == self._me.subject:
            return await self._call_oneself(method, Answer(message, arrays), scope, timeout_s)
        return await self._exchange(
            peer,
            method,
            body_of(message, arrays),
            answers,
            scope,
            timeout_s,
            bytes_max=answer_bytes_max,
            key=idempotency_key,
        )

    async def call_once(
        self,
        peer: PeerId,
        method: str,
        message: Message,
        answers: type[R],
        *,
        scope: str = "",
        arrays: Sequence[Array] = (),
        timeout_s: float = limits.CALL_TIMEOUT_S,
    ) -> Answer[R]:
        """Call a method that changes something: sent again over a new connection or later, and run at most once.

        Raises Uncertain when the time is over, or the peer was restarted, and it may have run; otherwise like ``call``.
        """
        key, deadline = IdempotencyKey(), _deadline(method, timeout_s)
        while True:
            left = deadline - trio.current_time()
            try:
                return await self.call(
                    peer, method, message, answers, scope=scope, arrays=arrays, timeout_s=left, idempotency_key=key
                )
            except (Busy, LinkError) as error:
                pause = error.retry_after_s if isinstance(error, Busy) else limits.REPEAT_S
                if (error.told or peer == self._me.subject) and not isinstance(error, Busy):
                    raise
                if trio.current_time() + pause >= deadline:
                    if isinstance(error, Busy) or not key.epoch:
                        raise
                    msg = f"It is not known whether {method!r} ran on {short(peer)}: {error}"
                    raise Uncertain(msg) from error
            await trio.sleep(pause)

    async def send(
        self,
        peer: PeerId,
        method: str,
        message: Message,
        source: Source,
        answers: type[R],
        *,
        scope: str = "",
        timeout_s: float = limits.CALL_TIMEOUT_S_MAX,
    ) -> Answer[R]:
        """Call a method with a transfer of any size: bytes, an array, or part of a file. Otherwise like ``call``."""
        body = body_of(message, (), source)
        return await self._exchange(peer, method, body, answers, scope, timeout_s, bytes_max=limits.BODY_BYTES_MAX)

    async def fetch(
        self,
        peer: PeerId,
        method: str,
        message: Message,
        answers: type[R],
        into: Destination,
        *,
        scope: str = "",
        size_bytes_max: int = limits.BULK_BYTES_MAX,
        timeout_s: float = limits.CALL_TIMEOUT_S_MAX,
    ) -> Answer[R]:
        """Call a method whose answer is a transfer, and put it straight into a buffer of its size or a file-like sink.

        Raises PeerError when more is announced than ``size_bytes_max``; otherwise like ``call``. After an error a part
        of it may have been written.
        """
        return await self._exchange(
            peer,
            method,
            body_of(message),
            answers,
            scope,
            timeout_s,
            bytes_max=limits.BODY_BYTES_MAX,
            bulk_to=into,
            bulk_bytes_max=size_bytes_max,
        )

    async def feed(
        self,
        peer: PeerId,
        method: str,
        message: Message,
        items: AsyncIterable[Item],
        answers: type[R],
        *,
        scope: str = "",
        arrays: Sequence[Array] = (),
        timeout_s: float = limits.CALL_TIMEOUT_S,
        answer_bytes_max: int = limits.BODY_BYTES_MAX,
    ) -> Answer[R]:
        """Call a client stream's method with messages, or ``Answer(message, tensors)``, as they come.

        Takes the next of ``items`` only when the other side has room. Otherwise like ``call``.
        """
        if peer == self._me.subject:
            return await self._call_oneself(method, Answer(message, arrays), scope, timeout_s, items=_Answers(items))
        return await self._exchange(
            peer, method, body_of(message, arrays), answers, scope, timeout_s, bytes_max=answer_bytes_max, items=items
        )

    @asynccontextmanager
    async def stream(
        self,
        peer: PeerId,
        method: str,
        message: Message,
        *,
        items: type[R],
        scope: str = "",
        arrays: Sequence[Array] = (),
        timeout_s: float = limits.CALL_TIMEOUT_S,
        item_bytes_max: int = limits.BODY_BYTES_MAX,
    ) -> AsyncIterator["ItemStream[R]"]:
        """Call a server stream's method; iterate over what comes. Leaving the block ends the call.

        The deadline is that of the whole stream. Iterating raises what ``call`` raises, behind the last item.
        """
        if peer == self._me.subject:
            msg = f"{method!r} is this node's own; iterate over what its handler iterates over."
            raise UsageError(msg)
        deadline = _deadline(method, timeout_s)
        body = body_of(message, arrays)
        with _unsent():
            asking = self._asking_nowait(peer, method) or await self._asking(peer, method, timeout_s)
            pending = asking.begin(method, body, scope=scope, deadline=deadline, kind="server_stream")
        inlet = asking.inlet(pending)
        try:
            async with asking.outlet(pending) as outlet:
                if body.aside:
                    await asking.push(pending, body, outlet)
                yield ItemStream(asking, pending, inlet, items, deadline, timeout_s, item_bytes_max, self._blame)
        finally:
            asking.leave(pending)
            inlet.close()

    async def _exchange(
        self,
        peer: PeerId,
        method: str,
        body: Body,
        answers: type[R],
        scope: str,
        timeout_s: float,
        *,
        bytes_max: int,
        items: AsyncIterable[Item] | None = None,
        bulk_to: Destination | None = None,
        bulk_bytes_max: int = 0,
        key: IdempotencyKey | None = None,
    ) -> Answer[R]:
        """Everything but a server stream: ask, send what there is to send, wait for the one answer, read it."""
        deadline = _deadline(method, timeout_s)
        kind: Kind = "unary" if items is None else "client_stream"
        with _unsent():
            asking = self._asking_nowait(peer, method) or await self._asking(peer, method, timeout_s)
            once = None if key is None else await _shown(key, asking, deadline, _too_late(peer, method, timeout_s))
            pending = asking.begin(method, body, scope=scope, deadline=deadline, kind=kind, once=once)
        try:
            if items is not None or body.aside:
                async with asking.outlet(pending) as outlet:
                    await self._pour(asking, pending, body, items, outlet)
                    last = await asking.answer(pending)
            else:
                last = await asking.answer(pending)
            if not last.header.aside:
                return Answer(*await read_body(last.header, last.body, answers, None, bytes_max))
            with _limit(deadline, _too_late(peer, method, timeout_s)), asking.inlet(pending) as inlet:
                return await asking.read(
                    pending,
                    last.header,
                    last.body,
                    answers,
                    inlet,
                    bytes_max=bytes_max,
                    bulk_to=bulk_to,
                    bulk_bytes_max=bulk_bytes_max,
                )
        except PeerError as error:
            self._blame(asking, error)
            raise
        finally:
            asking.leave(pending)

    async def _pour(
        self, asking: Asking, pending: Pending, body: Body, items: AsyncIterable[Item] | None, outlet: Outlet
    ) -> None:
        if body.aside:
            await asking.push(pending, body, outlet)
        if items is not None:
            await asking.feed(pending, items, outlet)

    def in_use(self, connection: Connection, *, since: float) -> bool:
        """Whether a call is under way over a connection, or this node asked anything but upkeep after that time."""
        link = self._links.get(connection)
        if link is None:
            return False
        asking = 0 if link.asking is None or link.asking.channel.over else link.asking.in_flight
        serving = 0 if link.serving is None else link.serving.machine.in_flight
        return asking + serving > 0 or link.used_at > since

    def _asking_nowait(self, peer: PeerId, method: str) -> Asking | None:
        """The open control stream to a peer, if there is one that has room. Raises LinkError."""
        try:
            link = self._links.get(self._connection_to(peer))
        except LinkError:
            if self._reach is None:
                raise
            return None
        if link is None or link.asking is None:
            return None
        if not method.startswith(_UPKEEP):
            link.used_at = trio.current_time()
        return link.asking if not link.asking.channel.over and link.asking.ready else None

    async def _asking(self, peer: PeerId, method: str, timeout_s: float) -> Asking:
        """Wait for room on the control stream to a peer, or open a new one, or a connection first. Raises LinkError."""
        with _limit(trio.current_time() + timeout_s, _too_late(peer, method, timeout_s)):
            connection = self._connection_to(peer) if self._reach is None else await self._reach(peer)
            link = self._link(connection)
            async with link.opening:
                if link.asking is None or link.asking.channel.over:
                    stream = await connection.open_stream(PROTOCOL)
                    first = link.asking.next_call if link.asking else 1  # a new stream's calls are told from the old's
                    link.asking = Asking(connection, stream, link.attached, self._counts, first, self._blame)
                await link.asking.channel.room()
                if not method.startswith(_UPKEEP):
                    link.used_at = trio.current_time()
                return link.asking
        raise AssertionError("unreachable")

    def _link(self, connection: Connection) -> _Link:
        if connection not in self._links:
            for old in [old for old in self._links if old.closed.is_set()]:
                del self._links[old]
            self._links[connection] = _Link()
        return self._links[connection]

    def _blame(self, asking: Asking, error: PeerError) -> None:
        """An answer broke the protocol."""
        error.offender = asking.connection.peer_id
        self._offend(asking.connection.peer_id, str(error))

    async def _call_oneself_once(
        self, key: IdempotencyKey, method: str, asked: Answer[Any], scope: str, timeout_s: float
    ) -> Answer[Any]:
        async def work() -> tuple[object, int]:
            return await self._call_oneself(method, asked, scope, timeout_s), 0

        once, me = key.shown_to(self._only_once.epoch), self._me.subject
        request = hash_of(method, scope, pack(asked.message), asked.arrays)
        answer = await self._only_once.run(me, once, request, work, timeout_s)
        assert isinstance(answer, Answer)
        return answer

    async def _call_oneself(
        self,
        method: str,
        asked: Answer[Any],
        scope: str,
        timeout_s: float,
        items: AsyncIterator[Answer[Any]] | None = None,
    ) -> Answer[Any]:
        with trio.CancelScope(deadline=trio.current_time() + timeout_s):
            known = self._methods.get(method)
            if known is None or known.kind != ("unary" if items is None else "client_stream"):
                msg = f"This node does not answer {method!r} when called like this."
                raise UsageError(msg)
            me = await self._admit(self._me.subject)  # its grant may have been renewed since
            me.require(capability(known, scope), time.time())
            incoming = Incoming(me.subject, me, scope, asked.message, list(asked.arrays), timeout_s=timeout_s)
            return await known.handler(incoming if items is None else incoming._replace(items=items)) or Answer(Empty())
        msg = f"This node did not answer its own {method!r} within {timeout_s:g} s."
        raise LinkError(msg)

    # -- answering ----------------------------------------------------------------------------------------------------

    async def answer(self, stream: Stream) -> None:
        """Serve one inbound stream, of calls or of one call's large buffers: the handler of ``PROTOCOL``."""
        peer = stream.peer_id
        try:
            await self._admit(peer)
            with trio.fail_after(limits.FRAME_TIMEOUT_S):
                frame = await receive_frame(stream, body_bytes_max=0)
            self._counts.received += frames.PREFIX.size + len(frame.header)
            first = headers.first(frame.header)
            link = self._link(stream.connection)
            if isinstance(first, Attach):
                if not link.is_over(first):  # else its sender has not heard yet
                    await link.attached.serve(Key(first.call, first.to_caller), stream)
            else:
                await self._serve(link, stream)
        except (Refused, PeerError) as error:
            self._offend(peer, str(error))
        except trio.TooSlowError:
            self._offend(peer, f"It opened a stream for calls and said nothing for {limits.FRAME_TIMEOUT_S:g} s.")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("the caller %s went away", short(peer))

    async def _serve(self, link: _Link, stream: Stream) -> None:
        while link.serving is not None:
            if stream.broken:
                return
            if not link.serving.channel.over:
                msg = "A second control stream was opened beside the first."
                raise PeerError(msg)
            await link.serving.finished.wait()  # else handlers that are slow to stop would pile up
        serving = link.serving = Serving(
            stream,
            link.attached,
            self._counts,
            methods=self._methods,
            admit=self._admit,
            offend=self._offend,
            only_once=self._only_once,
        )
        try:
            await serving.run()
        finally:
            link.serving = None
            serving.finished.set()


class ItemStream(Generic[R]):
    """What a server stream brings, in order: iterate over it."""

    def __init__(
        self,
        asking: Asking,
        pending: Pending,
        inlet: Inlet,
        kind: type[R],
        deadline: float,
        timeout_s: float,
        item_bytes_max: int,
        blame: Callable[[Asking, PeerError], None],
    ) -> None:
        self._asking = asking
        self._pending = pending
        self._inlet = inlet
        self._kind = kind
        self._deadline = deadline
        self._timeout_s = timeout_s
        self._item_bytes_max = item_bytes_max
        self._blame = blame

    def __aiter__(self) -> "ItemStream[R]":
        return self

    async def __anext__(self) -> Answer[R]:
        asking, pending = self._asking, self._pending
        self._inlet.let_go()
        with _limit(self._deadline, _too_late(asking.connection.peer_id, pending.method, self._timeout_s)):
            came = await asking.next_item(pending)
            if came is None:
                raise StopAsyncIteration
            try:
                item = await asking.read(
                    pending, came.header, came.body, self._kind, self._inlet, bytes_max=self._item_bytes_max
                )
            except PeerError as error:
                self._blame(asking, error)
                raise
            asking.consumed(pending)
            return item


@contextmanager
def _unsent() -> Iterator[None]:
    """What fails in here fails before anything of the call is on its way."""
    try:
        yield
    except (Busy, LinkError) as error:
        error.unsent = True
        raise


async def _shown(key: IdempotencyKey, asking: Asking, deadline: float, too_late: str) -> Once:
    with _limit(deadline, too_late):
        return key.shown_to(await asking.epoch())
    raise AssertionError("unreachable")


@contextmanager
def _limit(deadline: float, message: str) -> Iterator[None]:
    with trio.CancelScope(deadline=deadline) as scope:
        yield
    if scope.cancelled_caught:
        raise LinkError(message)


def _deadline(method: str, timeout_s: float) -> float:
    if not timeout_s > 0:
        msg = f"{method!r} cannot be called like this: a deadline of {timeout_s:g} s leaves no time to answer."
        raise UsageError(msg)
    return trio.current_time() + timeout_s


def _too_late(peer: PeerId, method: str, timeout_s: float) -> str:
    return f"{short(peer)} did not answer {method!r} within {timeout_s:g} s."


class _Answers:
    """The items of a client stream, as the handler of this same node sees them."""

    def __init__(self, items: AsyncIterable[Item]) -> None:
        self._next = aiter(items).__anext__

    def __aiter__(self) -> "_Answers":
        return self

    async def __anext__(self) -> Answer[Any]:
        item = await self._next()
        return item if isinstance(item, Answer) else Answer(item)


async def receive_frame(stream: Stream, *, body_bytes_max: int) -> frames.Frame:
    """Read exactly one frame. Raises PeerError when the stream ends before it does."""
    decoder = frames.FrameDecoder(body_bytes_max=body_bytes_max)
    while True:
        data = await stream.receive_some(min(decoder.bytes_wanted, _READ_BYTES))
        if not data:
            decoder.end()
            msg = "The stream ended where a frame was expected."
            raise PeerError(msg)
        if got := decoder.receive(data):
            return got[0]
