"""What a method is, what its handler is given and what it returns."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from .. import limits
from ..errors import UsageError
from ..grants import Authority
from ..identity import PeerId
from ..messages import Message
from ..tensors import Array
from .bulk import Bulk, Source
from .headers import Kind

M = TypeVar("M")
R = TypeVar("R")


class Empty(Message, frozen=True, kw_only=True):
    """Nothing to say."""


class Answer(NamedTuple, Generic[R]):
    """A message, tensors, and perhaps a transfer: what a call returns, and what one item of a stream is.

    ``bulk`` is what a handler sends to a ``fetch``; a caller has it where it wanted it and finds None here.
    """

    message: R
    arrays: Sequence[Array] = ()
    bulk: Source | None = None


Item = Message | Answer[Any]  # of a client stream: a message, or a message with tensors


class Send(Protocol):
    """Sends one item; waits while the other side has as many as it takes."""

    async def __call__(self, message: Message, arrays: Sequence[Array] = ()) -> None: ...


class _NoItems:
    """The ``items`` of a call that is no client stream."""

    def __aiter__(self) -> "_NoItems":
        return self

    async def __anext__(self) -> Answer[Any]:
        raise StopAsyncIteration


async def _nowhere(message: Message, arrays: Sequence[Array] = ()) -> None:
    """The ``send`` of a call that is no server stream."""
    msg = f"This call takes no items, so not this {type(message).__name__} with {len(arrays)} tensors either."
    raise UsageError(msg)


class Incoming(NamedTuple, Generic[M]):
    """A call as its handler sees it. ``caller`` is the connection's peer, never something from the payload.

    The handler of a server stream awaits ``send`` for each item, that of a client stream iterates over ``items``;
    ``bulk`` is what a ``send`` of the caller's brings, to be put where it belongs. ``timeout_s`` is what was left of
    the caller's time when it asked; a handler that takes longer is cancelled.
    """

    caller: PeerId
    authority: Authority
    scope: str
    message: M
    arrays: list[Array]
    items: AsyncIterator[Answer[Any]] = _NoItems()
    send: Send = _nowhere
    bulk: Bulk | None = None
    timeout_s: float = limits.CALL_TIMEOUT_S_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One callable method: what it takes, which capability it needs ('infer' becomes 'infer:SCOPE'), who answers.

    ``takes`` and ``items`` are types of messages; ``items`` are those of a client stream. ``body_bytes_max`` bounds
    the payload and tensors of the request and of each item, ``bulk_bytes_max`` the transfer that comes with it.
    ``queued``: its calls wait in a queue that the handler bounds and cost this node next to nothing meanwhile, so one
    peer may have more small ones under way (``limits.CALLS_QUEUED_PER_PEER_MAX``).
    """

    name: str
    needs: str
    takes: type[Any]
    handler: Callable[[Incoming[Any]], Awaitable[Answer[Any] | None]]
    body_bytes_max: int = limits.MIB
    kind: Kind = "unary"
    items: type[Any] = Empty
    bulk_bytes_max: int = 0
    queued: bool = False


def capability(method: Method, scope: str) -> str:
    """The capability that a call of this method needs."""
    return f"{method.needs}:{scope}" if scope else method.needs
