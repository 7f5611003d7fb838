"""One attempt of a call at one replica: over the network, or at this node's own instance."""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Final, Protocol, TypeVar

import msgspec
import trio

from ....mesh import limits
from ....mesh.calls import Calls, IdempotencyKey
from ....mesh.errors import Busy, LeptonError, LinkError, PeerError, Uncertain, UsageError
from ....mesh.grants import Authority
from ....mesh.identity import PeerId, short
from ....mesh.rpc.methods import Answer, Empty
from ....mesh.tensors import Array
from ..errors import NotHere, TooLate
from ..messages import CALL, DESCRIBE, FEED, STREAM, Asked, Described, Given
from ..spec import ServiceSpec
from .answering import NEEDS, Answering, Once
from .balancer import Replica

GONE_S: Final = 5.0  # a host whose connection broke and that is not back after this is gone: it is dialled in 2 s
KEYED_BYTES_MAX: Final = limits.MIB  # of arrays: the host hashes what a call with a key brings, 1 ms for as much
SPEC_BYTES_MAX: Final = 4 * limits.MIB  # 32 methods with two schemas of 64 KiB

T = TypeVar("T")


class Reach(Protocol):
    """What is asked of a mesh."""

    @property
    def me(self) -> PeerId: ...
    @property
    def calls(self) -> Calls: ...
    @property
    def changed(self) -> trio.Event: ...
    @property
    def present(self) -> frozenset[PeerId]: ...
    def authority(self, peer: PeerId) -> Authority: ...


class Sending:
    """Asks replicas. ``answering`` gives this node's own instances."""

    def __init__(self, mesh: Reach, answering: Callable[[], Answering | None]) -> None:
        self._mesh = mesh
        self._answering = answering

    async def ask(
        self,
        service: str,
        asked: Asked,
        arrays: Sequence[Array],
        replica: Replica,
        deadline: float,
        *,
        suspect: Callable[[], None],
        once: bool = False,
    ) -> Answer[Given]:
        """Have one call answered. What is wrong with it may be in the answer (``Given.trouble``).

        With ``once`` the call has a key: when the connection breaks under it, it is sent again to the same host as long
        as that is here, and runs there at most once; ``suspect`` is called meanwhile.
        """
        asked, what = _of_release(asked, replica), f"{service}.{asked.method}"
        if replica.peer == self._mesh.me:
            own, _ = self._own(service), _left_s(deadline)
            own_call = own.call(self._mesh.me, service, asked, arrays, deadline=deadline)
            return await _in_time(own_call, what, deadline)
        key = IdempotencyKey(brief=True) if once and sum(each.nbytes for each in arrays) <= KEYED_BYTES_MAX else None
        lost_at: float | None = None  # since when it is not known whether it runs there
        while True:
            call = self._mesh.calls.call(
                replica.peer,
                CALL,
                asked,
                Given,
                scope=service,
                arrays=arrays,
                timeout_s=_left_s(deadline) if lost_at is None else max(deadline - trio.current_time(), 0.001),
                idempotency_key=key,
            )
            try:
                return await _from_peer(call, what, replica, deadline)
            except (LinkError, Busy) as error:
                now, not_run = trio.current_time(), error.unsent or isinstance(error, Busy | NotHere)
                if isinstance(error, TooLate) or (lost_at is None and (not_run or error.told or key is None)):
                    raise
                lost_at = now if lost_at is None else lost_at
                gone = replica.peer not in self._mesh.present and now >= lost_at + GONE_S
                if (error.told and not not_run) or gone or now + limits.REPEAT_S >= deadline:
                    raise Uncertain(f"It is not known whether {what} ran on {short(replica.peer)}: {error}") from error
            suspect()
            await trio.sleep(limits.REPEAT_S)

    async def feed(
        self, service: str, asked: Asked, arrays: Sequence[Array], items: Once, replica: Replica, deadline: float
    ) -> Answer[Given]:
        left_s, asked = _left_s(deadline), _of_release(asked, replica)
        what = f"{service}.{asked.method}"
        if replica.peer == self._mesh.me:
            own = self._own(service)
            own_call = own.feed(self._mesh.me, service, asked, arrays, items, deadline=deadline)
            return await _in_time(own_call, what, deadline)
        call = self._mesh.calls.feed(
            replica.peer, FEED, asked, items, Given, scope=service, arrays=arrays, timeout_s=left_s
        )
        return await _from_peer(call, what, replica, deadline)

    async def items(
        self, service: str, asked: Asked, arrays: Sequence[Array], replica: Replica, deadline: float
    ) -> AsyncGenerator[Answer[Given], None]:
        left_s, asked = _left_s(deadline), _of_release(asked, replica)
        what = f"{service}.{asked.method}"
        if replica.peer == self._mesh.me:
            own = self._own(service).stream(self._mesh.me, service, asked, arrays, deadline=deadline)
            async with aclosing(own):
                while True:
                    try:
                        item = await _in_time(anext(own), what, deadline)
                    except StopAsyncIteration:
                        return
                    yield item
        try:
            async with self._mesh.calls.stream(
                replica.peer, STREAM, asked, items=Given, scope=service, arrays=arrays, timeout_s=left_s
            ) as found:
                async for item in found:
                    yield item
        except LeptonError as error:
            raise _understood(error, what, replica, deadline) from error

    async def describe(self, service: str, described: Described, replica: Replica, deadline: float) -> ServiceSpec:
        """Fetch all about a service."""
        if replica.peer == self._mesh.me:
            return self._own(service).spec(service, described.version)
        call = self._mesh.calls.call(
            replica.peer,
            DESCRIBE,
            described,
            Empty,
            scope=service,
            timeout_s=_left_s(deadline),
            answer_bytes_max=SPEC_BYTES_MAX,
        )
        answer = await _from_peer(call, f"The description of {service!r}", replica, deadline)
        try:
            return msgspec.json.decode(b"".join(map(bytes, answer.arrays)), type=ServiceSpec)
        except (msgspec.DecodeError, RecursionError) as error:
            raise PeerError(f"{short(replica.peer)} describes {service!r} as nobody would: {error}.") from error

    def _own(self, service: str) -> Answering:
        self._mesh.authority(self._mesh.me).require(f"{NEEDS}:{service}", time.time())
        answering = self._answering()
        if answering is None:
            raise NotHere("This node runs no services.")
        return answering


async def _in_time(call: Awaitable[T], what: str, deadline: float) -> T:
    with trio.CancelScope(deadline=deadline):
        return await call
    raise TooLate(f"{what} was not done here in the time that there was; it may have run.")


async def _from_peer(call: Awaitable[T], what: str, replica: Replica, deadline: float) -> T:
    try:
        return await call
    except LeptonError as error:
        raise _understood(error, what, replica, deadline) from error


def _understood(error: LeptonError, what: str, replica: Replica, deadline: float) -> LeptonError:
    """Return what an error of the mesh's calls means for a service."""
    if isinstance(error, UsageError) and error.told:  # what it says of a call itself comes as an answer
        return NotHere(f"{short(replica.peer)} does not answer for services: {error}")
    if isinstance(error, LinkError) and not error.unsent and trio.current_time() >= deadline:
        return TooLate(f"{what} was not done by {short(replica.peer)} in the time that there was; it may have run.")
    return error


def _of_release(asked: Asked, replica: Replica) -> Asked:
    """Say for which release the call is: its host may have several, and each has its share of calls."""
    return msgspec.structs.replace(asked, version=replica.version)


def _left_s(deadline: float) -> float:
    """Return what is left of a call's time. Raises TooLate; nothing was sent then."""
    left_s = deadline - trio.current_time()
    if left_s <= 0:
        late = TooLate("The time of the call was over before it could be sent.")
        late.unsent = True
        raise late
    return min(left_s, limits.CALL_TIMEOUT_S_MAX)
