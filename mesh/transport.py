"""libp2p hosts behind three nouns: Transport, Connection, Stream. The only file above which libp2p is unknown.

Only Noise is offered and accepted: py-libp2p's own defaults also take plaintext, over which anybody can pose as any peer.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import Ed25519PrivateKey
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr

from . import limits
from .errors import LinkError
from .identity import Identity, PeerId, short

log = logging.getLogger(__name__)
CHUNK = 65536

StreamHandler = Callable[["Stream"], Awaitable[None]]
ConnectionHandler = Callable[["Connection"], Awaitable[None]]


class Stream(trio.abc.HalfCloseableStream):
    def __init__(self, net: Any, peer_id: PeerId, protocol: str) -> None:
        self._net = net
        self.peer_id = peer_id
        self.protocol = protocol

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        try:
            for i in range(0, len(view), CHUNK):
                await self._net.write(bytes(view[i : i + CHUNK]))
        except trio.Cancelled:
            raise
        except Exception as error:
            raise trio.BrokenResourceError(str(error)) from error

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            return bytes(await self._net.read(max_bytes or CHUNK))
        except StreamEOF:
            return b""
        except trio.Cancelled:
            raise
        except Exception as error:
            raise trio.BrokenResourceError(str(error)) from error

    async def send_eof(self) -> None:
        try:
            await self._net.close_write()
        except trio.Cancelled:
            raise
        except Exception as error:
            raise trio.BrokenResourceError(str(error)) from error

    async def aclose(self) -> None:
        with trio.move_on_after(1, shield=True):
            try:
                await self._net.close()
            except Exception:
                log.debug("close failed", exc_info=True)

    def reset(self) -> None:
        trio.lowlevel.spawn_system_task(self._reset)

    async def _reset(self) -> None:
        with trio.move_on_after(1):
            await self._net.reset()


class Connection:
    def __init__(self, conn: Any, host: Any) -> None:
        self._conn = conn
        self._host = host
        self.peer_id = PeerId(str(conn.muxed_conn.peer_id))
        self.initiator: bool = conn.direction.value == "outbound"
        self.remote_address = "?"
        self.closed: trio.Event = conn.event_closed

    async def open_stream(self, protocol: str) -> Stream:
        try:
            with trio.fail_after(limits.HANDSHAKE_TIMEOUT_S):
                net = await self._conn.new_stream()
                await self._host.multiselect_client.select_one_of(
                    [TProtocol(protocol)], MultiselectCommunicator(net), 10
                )
        except trio.Cancelled:
            raise
        except Exception as error:
            raise LinkError(f"Could not open a stream to {short(self.peer_id)}: {error!r}") from error
        return Stream(net, self.peer_id, protocol)

    async def aclose(self) -> None:
        with trio.move_on_after(2, shield=True):
            await self._conn.close()


class _Notifee:
    def __init__(self, transport: "Transport") -> None:
        self._t = transport

    async def connected(self, network: Any, conn: Any) -> None:
        self._t._add(conn)

    async def disconnected(self, network: Any, conn: Any) -> None:
        self._t._remove(conn)

    async def opened_stream(self, *a: Any) -> None: ...
    async def closed_stream(self, *a: Any) -> None: ...
    async def listen(self, *a: Any) -> None: ...
    async def listen_close(self, *a: Any) -> None: ...


class Transport:
    def __init__(self, host: Any, nursery: trio.Nursery, on_connection: ConnectionHandler) -> None:
        self._host = host
        self._nursery = nursery
        self._on_connection = on_connection
        self._conns: dict[PeerId, Connection] = {}
        self.addresses: tuple[str, ...] = ()

    @property
    def connections(self) -> Mapping[PeerId, Connection]:
        return self._conns

    def _add(self, conn: Any) -> None:
        c = Connection(conn, self._host)
        self._conns[c.peer_id] = c
        self._nursery.start_soon(self._on_connection, c)

    def _remove(self, conn: Any) -> None:
        p = PeerId(str(conn.muxed_conn.peer_id))
        if p in self._conns and self._conns[p]._conn is conn:
            del self._conns[p]

    async def dial(self, peer_id: PeerId, addresses: Sequence[str], *, timeout_s: float) -> Connection:
        last: Exception | None = None
        for a in addresses:
            try:
                with trio.fail_after(timeout_s):
                    conn = await self._host.get_network()._dial_addr_single_attempt(
                        Multiaddr(f"{a}/p2p/{peer_id}"), ID.from_base58(peer_id)
                    )
                if peer_id not in self._conns:
                    self._add(conn)
                self._conns[peer_id].initiator = True
                return self._conns[peer_id]
            except trio.Cancelled:
                raise
            except Exception as error:
                last = error
        raise LinkError(f"No address of {short(peer_id)} answered ({', '.join(addresses)}): {last!r}")


@asynccontextmanager
async def open_transport(
    identity: Identity,
    listen: Sequence[str] = ("127.0.0.1:0",),
    *,
    on_connection: ConnectionHandler,
    handlers: Mapping[str, StreamHandler],
) -> AsyncIterator[Transport]:
    key = Ed25519PrivateKey.from_bytes(identity.seed)
    pair = KeyPair(key, key.get_public_key())
    noise = Noise(pair, noise_privkey=create_noise_key_pair().private_key)
    addrs = [Multiaddr("/ip4/{}/tcp/{}".format(*a.rsplit(":", 1))) for a in listen]
    host: Any = new_host(key_pair=pair, sec_opt={NOISE: noise}, muxer_opt={TProtocol(YAMUX): Yamux}, listen_addrs=addrs)
    async with trio.open_nursery() as nursery:
        transport = Transport(host, nursery, on_connection)
        host.get_network().register_notifee(_Notifee(transport))

        def wrap(protocol: str, handler: StreamHandler) -> Any:
            async def handle(net: Any) -> None:
                s = Stream(net, PeerId(str(net.muxed_conn.peer_id)), protocol)
                try:
                    await handler(s)
                except trio.Cancelled:
                    raise
                except Exception:
                    log.warning("a stream handler failed", exc_info=True)
                    s.reset()

            return handle

        for protocol, handler in handlers.items():
            host.set_stream_handler(TProtocol(protocol), wrap(protocol, handler))
        async with host.run(listen_addrs=addrs):
            await host.get_network().auto_connector.stop()
            host.get_network().set_resource_manager(None)
            transport.addresses = tuple(str(a).split("/p2p/")[0] for a in host.get_addrs())
            yield transport
        nursery.cancel_scope.cancel()
