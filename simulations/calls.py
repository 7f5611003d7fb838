"""Calls between simulated devices: one request, one answer or none, a deadline; answered by callbacks, not by waiting.

What `mesh/calls.py` does over libp2p's streams is done here over lossy messages, in the same order: who calls is the
connection's peer, authority is checked before a payload is parsed, and what does not parse costs the connection.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ..mesh import limits
from ..mesh.errors import Busy, LeptonError, LinkError, PeerError, Refused, UsageError
from ..mesh.grants import Authority
from ..mesh.identity import PeerId
from ..mesh.messages import Message, pack, unpack
from .network import Connection, Network
from .world import Action

_ERRORS: Final[dict[str, type[LeptonError]]] = {
    "usage": UsageError, "peer": PeerError, "link": LinkError, "refused": Refused, "busy": Busy,
}  # fmt: skip
_HEADER_BYTES = 64  # of a request or an answer, about what the real ones take


class Request(NamedTuple):
    """A request on the wire."""

    number: int
    method: str
    scope: str
    payload: bytes
    body: bytes


class Reply(NamedTuple):
    """An answer on the wire; `error` names the kind of error, or nothing."""

    number: int
    error: str
    reason: str
    payload: bytes
    body: bytes


class Incoming(NamedTuple):
    """A call as its handler sees it. A handler that cannot answer yet returns None, and calls `reply` later."""

    caller: PeerId
    scope: str
    message: Any
    body: bytes
    reply: Callable[["Answer"], None] = lambda _answer: None  # to oneself: whoever calls oneself needs no answer later


class Answer(NamedTuple):
    """What a call returns."""

    message: Any
    body: bytes = b""


class Empty(Message, frozen=True, kw_only=True):
    """Nothing to say."""


Handler = Callable[[Incoming], Answer | None]
Done = Callable[[Answer | LeptonError], None]


@dataclass(frozen=True, slots=True)
class Method:
    """One callable method; `needs` as in the real one: 'infer' becomes 'infer:SCOPE'."""

    needs: str
    takes: type[Any]
    handler: Handler


@dataclass(slots=True)
class _Pending:
    connection: Connection
    answers: type[Any]
    done: Done


class Calls:
    """The calls of one device, both ways."""

    def __init__(
        self,
        network: Network,
        me: PeerId,
        *,
        unix_s: Callable[[], float],
        after: Callable[[float, Action], None],
        admit: Callable[[PeerId], Authority],
        offend: Callable[[PeerId, str], None],
    ) -> None:
        """``unix_s`` and ``after`` are the device's clocks; ``admit`` gives a caller's authority or raises Refused;
        ``offend`` hears who broke the protocol.
        """
        self._after, self._unix_s = after, unix_s
        self._network, self._me = network, me
        self._admit, self._offend = admit, offend
        self._methods: dict[str, Method] = {}
        self._pending: dict[int, _Pending] = {}
        self._number = 0

    def serve(self, name: str, method: Method) -> None:
        self._methods[name] = method

    # -- calling ------------------------------------------------------------------------------------------------------

    def call(
        self,
        connection: Connection | None,
        method: str,
        message: Message,
        answers: type[Any],
        done: Done,
        *,
        scope: str = "",
        body: bytes = b"",
        timeout_s: float = limits.CALL_TIMEOUT_S,
    ) -> None:
        """Call a method; ``done`` gets its answer, or why there is none, exactly once and never before this returns."""
        if connection is None:
            self._after(0.0, lambda: done(LinkError("the peer is not connected")))
            return
        self._number += 1
        number = self._number
        self._pending[number] = _Pending(connection, answers, done)
        request = Request(number, method, scope, pack(message), body)
        size_bytes = _HEADER_BYTES + len(request.payload) + len(body)
        self._network.send(connection, self._me, request, size_bytes)
        self._after(timeout_s, lambda: self._end(number, LinkError(f"no answer within {timeout_s:g} s")))

    def _end(self, number: int, result: Answer | LeptonError) -> None:
        pending = self._pending.pop(number, None)
        if pending is not None:
            pending.done(result)

    def closed(self, connection: Connection) -> None:
        """End what waits for an answer over a connection that is gone."""
        for number in [n for n, pending in self._pending.items() if pending.connection is connection]:
            self._end(number, LinkError("the connection is gone"))

    def stop(self) -> None:
        """Forget all: the process is dead."""
        self._pending.clear()

    def on_reply(self, connection: Connection, reply: Reply) -> None:
        pending = self._pending.get(reply.number)
        if pending is None or pending.connection is not connection:
            return  # late, or a second copy
        if reply.error:
            self._end(reply.number, _ERRORS[reply.error](reply.reason))
            return
        try:
            answer = Answer(unpack(reply.payload, pending.answers), reply.body)
        except PeerError as error:
            self._end(reply.number, error)
            self._offend(connection.other(self._me), str(error))
            return
        self._end(reply.number, answer)

    # -- answering ----------------------------------------------------------------------------------------------------

    def on_request(self, connection: Connection, request: Request) -> None:
        """Answer a call. Whoever calls without a right to, or sends what cannot be, is told so."""
        caller = connection.other(self._me)

        def answered(answer: Answer) -> None:
            self._reply(connection, Reply(request.number, "", "", pack(answer.message), answer.body))

        try:
            if (answer := self._answer(caller, request, answered)) is not None:
                answered(answer)
            return
        except LeptonError as error:
            kind = next(name for name, kind in _ERRORS.items() if isinstance(error, kind))
            reply = Reply(request.number, kind, str(error), b"", b"")
        self._reply(connection, reply)
        if reply.error == "peer":
            self._offend(caller, reply.reason)

    def _reply(self, connection: Connection, reply: Reply) -> None:
        size_bytes = _HEADER_BYTES + len(reply.reason) + len(reply.payload) + len(reply.body)
        self._network.send(connection, self._me, reply, size_bytes)

    def _answer(self, caller: PeerId, request: Request, reply: Callable[[Answer], None]) -> Answer | None:
        authority = self._admit(caller)
        method = self._methods.get(request.method)
        if method is None:
            raise UsageError(f"There is no method {request.method!r} here.")
        needed = method.needs if method.needs == "mesh" else f"{method.needs}:{request.scope}"
        authority.require(needed, self._unix_s())
        message = unpack(request.payload, method.takes)
        return method.handler(Incoming(caller, request.scope, message, request.body, reply))
