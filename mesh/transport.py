"""The seam between Lepton and the network: a Transport dials and listens, a Connection carries Streams. libp2p lies
below.

It speaks libp2p's protocols (multistream-select, Noise, TLS, yamux) but uses neither its Swarm nor its hosts: those
bind ports with SO_REUSEPORT, count connections of a lifetime, leak tasks, end the process when a handler raises and
know no moment between 'connected' and 'streams are served'. What is left to do without them is this file. From libp2p
come keys, peer ids, Noise payloads and certificates (``stock.py``).

Security: Noise is proposed first on every machine, TLS second, and either is accepted. A choice by machine proved
needless: even where the processor has AES, Noise carries 1.0 to 1.3 times what ``trio.SSLStream`` does per CPU second,
our TLS 1.1 to 1.4 times, and TLS takes longer to set up (``python -m tests.bench.wire``).

Invariants: at most one open connection for each peer; nothing of a connection is served before its owner's
``on_connection`` has returned; a handler's exception costs its stream and nothing else.
"""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Final

import trio

from . import limits, noise, tls
from .arrivals import Arrivals, Place
from .budget import Account, Budget
from .dialler import race
from .errors import Busy, LeptonError, LinkError, PeerError, Refused, UsageError
from .identity import PeerId
from .multistream import Answering, Asking
from .muxer import MuxedStream, Muxer
from .tcp import Address, Listener, Socket, connect, parse_address, parse_listen
from .upgrade import Keys, Secured, anybody, secure
from .yamux import Buffer, YamuxConfig

log = logging.getLogger(__name__)

StreamHandler = Callable[["Stream"], Awaitable[None]]
ConnectionHandler = Callable[["Connection"], Awaitable[None]]

NOISE: Final = noise.PROTOCOL
TLS: Final = tls.PROTOCOL

HANDSHAKE_TIMEOUT_S: Final = 10.0  # a Pi under load takes 1 to 2 s
ADMISSION_TIMEOUT_S: Final = 30.0  # for on_connection: a few round trips, and a Pi that checks a chain of grants
NEGOTIATION_TIMEOUT_S: Final = 10.0  # for a new stream to say its protocol: one round trip
HANDSHAKES_MAX: Final = 64  # inbound, until admitted; strangers cost memory and elliptic curves
PROBE_TIMEOUT_S: Final = 2.0  # for an old connection to prove that it lives, when the peer dials anew
TWIN_TIMEOUT_S: Final = 1.0  # for the other of two simultaneous connections to come up
_PORT_ATTEMPTS: Final = 8  # to find one port that is free for every address; most often the first one is
NEGOTIATION_BYTES: Final = 256  # read at once while a stream's protocol is agreed on; the rest is pushed back


class Stream(trio.abc.HalfCloseableStream):
    """One libp2p stream, after its protocol was agreed on."""

    def __init__(self, muxed: MuxedStream, connection: "Connection", protocol: str) -> None:
        self._muxed = muxed
        self.connection = connection
        self.peer_id = connection.peer_id
        self.protocol = protocol
        # Bound methods, so that a call costs no frame more than the muxer's own.
        self.send_parts = muxed.send_parts
        self.receive_into = muxed.receive_into
        self.reset = muxed.reset
        self.watch = muxed.watch
        self.alarm = connection._muxer.alarm  # noqa: SLF001  the two classes are one module's
        self.send_nowait = muxed.send_nowait
        self.receive_nowait = muxed.receive_nowait

    @property
    def unsent_bytes(self) -> int:
        """What ``send_nowait`` queued and is in no frame yet."""
        return self._muxed.unsent_bytes

    @property
    def ended(self) -> bool:
        """Whether the peer ended it on purpose, so that all that it sent is here."""
        return self._muxed.ended

    @property
    def broken(self) -> str:
        """Why nothing more comes or goes, ``""`` while it does."""
        return self._muxed.broken

    async def send_all(self, data: Buffer) -> None:
        """Send bytes; see MuxedStream.send_all for what a cancellation leaves."""
        await self._muxed.send_parts((data,))

    async def wait_send_all_might_not_block(self) -> None:
        await self._muxed.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes; ``b""`` only at the remote's explicit end. A remote reset raises trio.BrokenResourceError."""
        return await self._muxed.receive_some(max_bytes)

    async def send_eof(self) -> None:
        """Say that nothing more comes from here."""
        await self._muxed.send_eof()

    async def aclose(self) -> None:
        """End both directions; never waits for the remote."""
        await self._muxed.aclose()


class Connection:
    """One sealed connection to one peer."""

    def __init__(
        self,
        muxer: Muxer,
        socket: Socket,
        peer_id: PeerId,
        *,
        account: Account,
        initiator: bool,
        security: str,
    ) -> None:
        self.account = account  # the peer's part of this node's memory
        self._muxer = muxer
        self._socket = socket
        self.peer_id = peer_id
        self.initiator = initiator  # whether we dialled
        self.security = security
        self.remote_address = socket.remote
        self.closed = muxer.closed

    @property
    def bytes_sent(self) -> int:
        """Over TCP, sealing and framing included."""
        return self._socket.bytes_sent

    @property
    def bytes_received(self) -> int:
        """Over TCP, sealing and framing included."""
        return self._socket.bytes_received

    @property
    def segments(self) -> tuple[int, int] | None:
        """TCP segments sent, and how many of these again; None where the system does not tell."""
        return self._socket.segments

    @property
    def reason(self) -> str:
        """Why it is closed."""
        return self._muxer.reason

    async def open_stream(self, protocol: str) -> Stream:
        """Open a stream and agree on its protocol.

        Raises LinkError when the connection is closed or the peer refuses, Busy when as many are open as may be.
        """
        muxed = self._muxer.open_stream()
        try:
            with trio.fail_after(NEGOTIATION_TIMEOUT_S):
                await _ask(muxed, protocol)
        except BaseException as error:
            muxed.reset()
            if isinstance(error, trio.TooSlowError | trio.BrokenResourceError | PeerError | trio.ClosedResourceError):
                msg = f"No stream for {protocol} to {self.peer_id}: {_why(error)}"
                raise LinkError(msg) from error
            raise
        return Stream(muxed, self, protocol)

    async def accept_stream(self, *protocols: str) -> Stream:
        """The next stream that the peer opens, which must be for one of these. Only for use inside ``on_connection``.

        Raises LinkError when the connection closes or the stream is for something else.
        """
        muxed = await self._muxer.accept_stream()
        stream = await self._negotiate(muxed, protocols)
        if stream is None:
            msg = f"{self.peer_id} opened a stream, but not for {' or '.join(protocols)}."
            raise LinkError(msg)
        return stream

    async def ping(self) -> float:
        """The round trip's time in seconds; bound it with a timeout. Raises LinkError."""
        return await self._muxer.ping()

    async def aclose(self) -> None:
        """Close it; what was sent still arrives if the peer reads. Takes 2 s at the very most."""
        await self._muxer.aclose()

    def abort(self, reason: str) -> None:
        """Close it at once, without a word to a peer that does not listen."""
        self._muxer.abort(reason)

    async def _negotiate(self, muxed: MuxedStream, protocols: Collection[str]) -> Stream | None:
        try:
            with trio.fail_after(NEGOTIATION_TIMEOUT_S):
                protocol = await _answer(muxed, protocols)
        except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError, PeerError) as error:
            log.info("A stream of %s came to nothing: %s", self.peer_id, _why(error))
            muxed.reset()
            return None
        except BaseException:
            muxed.reset()
            raise
        return Stream(muxed, self, protocol)


async def _ask(muxed: MuxedStream, protocol: str) -> None:
    asking = Asking((protocol,))
    await muxed.send_all(asking.start())
    while asking.chosen is None:
        data = await muxed.receive_some(NEGOTIATION_BYTES)
        if not data:
            msg = "the peer ended it at once."
            raise PeerError(msg)
        asking.receive(data)
    muxed.push_back(asking.rest)


async def _answer(muxed: MuxedStream, protocols: Collection[str]) -> str:
    answering = Answering(protocols)
    while answering.chosen is None:
        data = await muxed.receive_some(NEGOTIATION_BYTES)
        if not data:
            msg = "the peer ended it before it said what for."
            raise PeerError(msg)
        if answer := answering.receive(data):
            await muxed.send_all(answer)
    muxed.push_back(answering.rest)
    return answering.chosen


def _why(error: BaseException) -> str:
    if isinstance(error, trio.TooSlowError):
        return f"no answer in {NEGOTIATION_TIMEOUT_S:g} s."
    return str(error) or type(error).__name__


class Transport:
    """Every connection of one node."""

    def __init__(
        self,
        keys: Keys,
        peer_id: PeerId,
        nursery: trio.Nursery,
        handlers: Mapping[str, StreamHandler],
        on_connection: ConnectionHandler,
        config: YamuxConfig | None,
        budget: Budget,
        favours: Callable[[PeerId], bool],
    ) -> None:
        self.peer_id = peer_id
        self.budget = budget
        self.addresses: tuple[str, ...] = ()
        self._keys = keys
        self._nursery = nursery
        self._handlers = dict(handlers)
        self._on_connection = on_connection
        self._config = config
        self._table: dict[PeerId, Connection] = {}  # every open connection, one a peer
        self._ready: dict[PeerId, Connection] = {}  # those that on_connection let in
        self._alive: Counter[PeerId] = Counter()  # connections of each peer that are not closed
        self._changed = trio.Event()
        self._dialling: dict[PeerId, trio.Lock] = {}
        self._running: dict[Connection, None] = {}  # the oldest first
        self._arrivals = Arrivals(lambda: HANDSHAKES_MAX, favours)

    @property
    def connections(self) -> Mapping[PeerId, Connection]:
        """The open connections that ``on_connection`` let in."""
        return MappingProxyType(self._ready)

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Serve the streams of this protocol too, from now on."""
        self._handlers[protocol] = handler

    async def dial(self, peer_id: PeerId, addresses: Sequence[str], *, timeout_s: float) -> Connection:
        """Connect to a peer at any of its addresses, or return the connection that there is.

        Raises LinkError naming each address and why it failed, Refused when ``on_connection`` turned the peer away,
        Busy when there are as many connections as may be.
        """
        if peer_id == self.peer_id:
            msg = f"{peer_id} is this node itself; dial another."
            raise UsageError(msg)
        lock = self._dialling.setdefault(peer_id, trio.Lock())
        try:
            async with lock:  # two dials of ours at once would look like a peer that lost its connection
                return self._ready.get(peer_id) or await self._dial(peer_id, addresses, timeout_s)
        finally:
            if not lock.locked() and self._dialling.get(peer_id) is lock:
                del self._dialling[peer_id]

    async def dial_whoever(
        self, addresses: Sequence[str], *, timeout_s: float, meet: Callable[[PeerId], None] = anybody
    ) -> Connection:
        """Connect to whoever lives at one of these addresses, or return the connection that there is to that peer.

        Who it is tells the handshake: the connection's ``peer_id``. ``meet`` is told it before that peer is told who we
        are, and ends the attempt by raising LinkError or PeerError. Raises as ``dial`` does.
        """
        known: list[PeerId] = []

        def check(found: str) -> None:
            meet(PeerId(found))
            if found in self._table:  # a second connection would take the place of the first
                known.append(PeerId(found))
                msg = "it is connected already."
                raise LinkError(msg)

        try:
            new = await race(addresses, lambda text: self._attempt(check, text), self._discard, timeout_s=timeout_s)
        except LinkError:
            if known and (twin := await self._twin_of(known[0])) is not None:
                return twin
            raise
        return await self._bring_up(new)

    async def _dial(self, peer_id: PeerId, addresses: Sequence[str], timeout_s: float) -> Connection:
        def check(found: str) -> None:
            if found != peer_id:
                msg = f"{found} lives there now."
                raise PeerError(msg)

        try:
            new = await race(
                addresses, lambda address: self._attempt(check, address), self._discard, timeout_s=timeout_s
            )
        except LinkError as error:
            if peer_id in self._table and (twin := await self._twin_of(peer_id)) is not None:
                return twin
            msg = f"Could not reach {peer_id}: {error}"
            raise LinkError(msg) from error
        try:
            return await self._bring_up(new)
        except LinkError:
            if (twin := await self._twin_of(peer_id)) is not None:
                return twin
            raise

    # -- connecting ---------------------------------------------------------------------------------------------------

    async def _attempt(self, check: Callable[[str], None], text: str) -> Connection:
        address, named = parse_address(text)

        def check_all(peer_id: str) -> None:
            if peer_id == self.peer_id:
                msg = "it is this node itself."
                raise PeerError(msg)
            if named not in (None, peer_id):
                msg = f"{peer_id} lives there now."
                raise PeerError(msg)
            check(peer_id)

        socket = await connect(address)
        try:
            with trio.fail_after(HANDSHAKE_TIMEOUT_S):
                secured = await secure(socket, self._keys, initiator=True, check=check_all)
        except BaseException as error:
            socket.close()
            if isinstance(error, trio.TooSlowError):
                msg = f"no handshake in {HANDSHAKE_TIMEOUT_S:g} s."
                raise LinkError(msg) from error
            raise
        return self._connection(socket, secured, initiator=True)

    def _connection(self, socket: Socket, secured: Secured, *, initiator: bool) -> Connection:
        peer_id = PeerId(secured.peer_id)
        account = self.budget.account(peer_id)
        muxer = Muxer(
            socket, secured.records, initiator=initiator, early=secured.early, config=self._config, account=account
        )
        return Connection(muxer, socket, peer_id, account=account, initiator=initiator, security=secured.records.name)

    def _discard(self, connection: Connection) -> None:
        connection._socket.close()  # noqa: SLF001  it lost the race and was never run

    async def _listen(self, listener: Listener) -> None:
        while True:
            socket = await listener.accept()
            try:
                place = self._arrivals.enter()
            except Busy as error:
                log.warning("%s is sent away: %s", socket.remote, error)
                socket.close()
                continue
            self._nursery.start_soon(self._welcome, socket, place)

    async def _welcome(self, socket: Socket, place: Place) -> None:
        """See one inbound connection through its handshake and admission, for which it holds one of few places."""
        try:
            with place.scope:
                new = await self._identify(socket)
                place.who = new.peer_id
                await self._bring_up(new)
            if place.scope.cancelled_caught:
                log.warning("%s made room for who came later: more than %d were here.", socket.remote, HANDSHAKES_MAX)
        except (LeptonError, trio.TooSlowError) as error:
            # Who hangs up, or was helped to join, is no news: doctors and port scans knock, and neighbours try codes.
            level = logging.DEBUG if isinstance(error, LinkError) else logging.INFO
            log.log(level, "%s did not get in: %s", socket.remote, _why(error))
        except Exception:
            log.exception("%s did not get in for a reason of ours; it is closed.", socket.remote)
        finally:
            self._arrivals.leave(place)
            if place.scope.cancelled_caught:
                socket.close()  # it may never have begun

    async def _identify(self, socket: Socket) -> Connection:
        try:
            with trio.fail_after(HANDSHAKE_TIMEOUT_S):
                secured = await secure(socket, self._keys, initiator=False)
            if secured.peer_id == self.peer_id:
                msg = "It is this node itself."
                raise PeerError(msg)
        except BaseException:
            socket.close()
            raise
        return self._connection(socket, secured, initiator=False)

    # -- one connection a peer ----------------------------------------------------------------------------------------

    async def _bring_up(self, new: Connection) -> Connection:
        """Run a connection, settle which of two stays, and let its owner admit it. Raises LinkError, Refused, Busy."""
        try:
            self._make_room_for(new)
        except Busy:
            self._discard(new)
            log.warning("One connection of %s too many is closed.", new.peer_id)
            raise
        self._nursery.start_soon(self._run, new)
        try:
            if not await self._wins(new):
                msg = f"{new.peer_id} has another connection, which stays."
                raise LinkError(msg)
            old, self._table[new.peer_id] = self._table.get(new.peer_id), new
            if old is not None:
                self._ready.pop(new.peer_id, None)
                self._nursery.start_soon(old.aclose)
            await self._admit(new)
        except LeptonError:
            self._nursery.start_soon(new.aclose)  # not at once: it may have been told why
            raise
        except BaseException:
            new._muxer.abort("it was not let in")  # noqa: SLF001
            raise
        return new

    def _make_room_for(self, new: Connection) -> None:
        """Count a connection, until it is closed. Raises Busy for one too many."""
        if self._alive[new.peer_id] >= limits.CONNECTIONS_PER_PEER_MAX:
            msg = f"{new.peer_id} has {self._alive[new.peer_id]} connections already, those that are closing included."
            raise Busy(msg)
        if self._alive.total() >= limits.CONNECTIONS_MAX and not self._push_out_a_stranger():
            msg = f"This node has {limits.CONNECTIONS_MAX} connections, all that it takes."
            raise Busy(msg)
        self._alive[new.peer_id] += 1
        self._running[new] = None

    def _push_out_a_stranger(self) -> bool:
        """Close the oldest connection that was not let in, or is not any more; those of members are not for strangers
        to take.
        """
        for connection in self._running:
            if not connection.initiator and self._ready.get(connection.peer_id) is not connection:
                del self._running[connection]
                connection._muxer.abort("others came, and it was not let in")  # noqa: SLF001
                return True
        return False

    async def _wins(self, new: Connection) -> bool:
        """Two simultaneous dials: the connection dialled by the smaller id stays. Else the newer, if the older is
        dead.
        """
        old = self._table.get(new.peer_id)
        if old is None or old.initiator == new.initiator:
            return True  # the peer would not dial twice unless it lost the first
        dialler = self.peer_id if new.initiator else new.peer_id
        if dialler == min(self.peer_id, new.peer_id):
            return True
        with trio.move_on_after(PROBE_TIMEOUT_S):
            try:
                await old.ping()
            except LinkError:
                return True
            return self._table.get(new.peer_id) is not old
        return True

    async def _twin_of(self, peer_id: PeerId) -> Connection | None:
        """The other one of two simultaneous connections, once it is let in."""
        with trio.move_on_after(HANDSHAKE_TIMEOUT_S if peer_id in self._table else TWIN_TIMEOUT_S):
            while peer_id not in self._ready:
                await self._changed.wait()
            return self._ready[peer_id]
        return None

    async def _admit(self, connection: Connection) -> None:
        try:
            with trio.fail_after(ADMISSION_TIMEOUT_S):
                await self._on_connection(connection)
        except LeptonError:
            raise
        except trio.TooSlowError as error:
            msg = f"{connection.peer_id} was not admitted within {ADMISSION_TIMEOUT_S:g} s."
            raise LinkError(msg) from error
        except Exception as error:
            log.exception("on_connection failed for %s; the connection is closed.", connection.peer_id)
            msg = f"{connection.peer_id} could not be admitted: {error!r}."
            raise Refused(msg) from error
        if connection.closed.is_set() or self._table.get(connection.peer_id) is not connection:
            msg = f"The connection to {connection.peer_id} closed while it was let in: {connection.reason}."
            raise LinkError(msg)
        self._ready[connection.peer_id] = connection
        self._changed.set()
        self._changed = trio.Event()
        self._nursery.start_soon(self._serve, connection)

    async def _run(self, connection: Connection) -> None:
        try:
            await connection._muxer.run()  # noqa: SLF001
            if offence := connection._muxer.offence:  # noqa: SLF001
                log.warning("%s broke the protocol and is hung up on: %s", connection.peer_id, offence)
        finally:
            self._running.pop(connection, None)
            self._alive[connection.peer_id] -= 1
            if not self._alive[connection.peer_id]:
                del self._alive[connection.peer_id]
            for table in (self._table, self._ready):
                if table.get(connection.peer_id) is connection:
                    del table[connection.peer_id]

    # -- streams ------------------------------------------------------------------------------------------------------

    async def _serve(self, connection: Connection) -> None:
        """Answer the peer's streams until the connection closes; then its handlers are cancelled."""
        async with trio.open_nursery() as nursery:
            try:
                while True:
                    muxed = await connection._muxer.accept_stream()  # noqa: SLF001
                    nursery.start_soon(self._handle, connection, muxed)
            except LinkError:
                nursery.cancel_scope.cancel()

    async def _handle(self, connection: Connection, muxed: MuxedStream) -> None:
        stream = await connection._negotiate(muxed, self._handlers)  # noqa: SLF001
        if stream is None:
            return
        try:
            await self._handlers[stream.protocol](stream)
        except (trio.BrokenResourceError, LinkError, PeerError, Busy) as error:
            log.info("A stream of %s for %s broke off: %s", stream.peer_id, stream.protocol, error)
            stream.reset()
        except Exception:
            log.exception("The handler of %s failed; the stream of %s is reset.", stream.protocol, stream.peer_id)
            stream.reset()
        except BaseException:
            stream.reset()
            raise
        else:
            await stream.aclose()


def _open_listeners(wanted: Sequence[Address], listeners: list[Listener]) -> None:
    """Listen everywhere that is wanted. Those that take any free port take one and the same if it is to be had, because
    mDNS announces a host with a single port for all of its addresses.
    """
    for attempt in range(_PORT_ATTEMPTS):
        port = 0
        try:
            for address in wanted:
                listeners.append(Listener(replace(address, port=address.port or port)))
                port = port or (0 if address.port else listeners[-1].address.port)
        except UsageError:
            while listeners:
                listeners.pop().close()
            if not port or attempt == _PORT_ATTEMPTS - 1:
                raise
        else:
            return


@asynccontextmanager
async def open_transport(
    identity: noise.KeyHolder,
    listen: Sequence[str] = ("127.0.0.1:0",),
    *,
    on_connection: ConnectionHandler,
    handlers: Mapping[str, StreamHandler],
    security: Sequence[str] | None = None,
    config: YamuxConfig | None = None,
    budget: Budget | None = None,
    favours: Callable[[PeerId], bool] = lambda _peer: False,
) -> AsyncIterator[Transport]:
    """Listen, and carry connections until the block ends; then all of them are closed.

    ``on_connection`` is awaited for every new connection before any of its streams is served. It turns the peer away by
    raising Refused (or any other exception), and may use ``open_stream`` and ``accept_stream`` to ask who it is.
    ``favours`` says whom a flood of strangers cannot push out while they are on their way in.
    ``handlers`` maps protocol ids to what serves them; a handler that returns closes its stream. ``budget`` is the
    memory for what all peers send.

    Raises UsageError when an address cannot be listened on, naming the port.
    """
    listeners: list[Listener] = []
    try:
        _open_listeners([*dict.fromkeys(map(parse_listen, listen))], listeners)
        async with trio.open_nursery() as nursery:
            keys = Keys(identity, tuple(security or (NOISE, TLS)))
            transport = Transport(
                keys, PeerId(identity.peer_id), nursery, handlers, on_connection, config, budget or Budget(), favours
            )
            transport.addresses = tuple(str(listener.address) for listener in listeners)
            for listener in listeners:
                nursery.start_soon(transport._listen, listener)  # noqa: SLF001
            try:
                yield transport
            finally:
                with trio.CancelScope(shield=True):
                    async with trio.open_nursery() as closing:
                        for connection in list(transport._table.values()):  # noqa: SLF001
                            closing.start_soon(connection.aclose)
                nursery.cancel_scope.cancel()
    finally:
        for listener in listeners:
            listener.close()
