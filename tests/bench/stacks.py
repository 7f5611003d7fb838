"""The channels that the wire's benchmark compares, each as 'listen', 'connect' and 'open a stream'.

Every stack serves the same little protocol on a stream: one letter and an 8-byte size. ``U``: that many bytes come,
answer with one. ``D``: send that many. ``C``: echo blocks of that size until the end.
"""

import os
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import trio

REQUEST = struct.Struct("!cQ")
PIECE = bytes(1024 * 1024)
PROTOCOL = "/bench/1"


class Stream(Protocol):
    async def send_all(self, data: bytes) -> None: ...
    async def receive_some(self, max_bytes: int | None = None) -> Any: ...
    async def aclose(self) -> None: ...


async def exactly(stream: Stream, size: int) -> bytes:
    """Read so many bytes, fewer only at the end."""
    data = bytes(await stream.receive_some(size))
    while 0 < len(data) < size:
        more = await stream.receive_some(size - len(data))
        if not more:
            break
        data += more
    return data


async def swallow(stream: Stream, size: int) -> None:
    while size > 0:
        got = len(await stream.receive_some())
        if not got:
            message = "the bulk ended early"
            raise EOFError(message)
        size -= got


async def pour(stream: Stream, size: int) -> None:
    for _ in range(size // len(PIECE)):
        await stream.send_all(PIECE)


async def serve(stream: Stream) -> None:
    """Answer the requests of one stream until it ends."""
    while request := await exactly(stream, REQUEST.size):
        what, size = REQUEST.unpack(request)
        if what == b"U":
            await swallow(stream, size)
            await stream.send_all(b"!")
        elif what == b"D":
            await pour(stream, size)
        else:
            while block := await exactly(stream, size):
                await stream.send_all(block)
            return


class Raw:
    """trio TCP without any protection."""

    name = "raw TCP"
    multiplexed = False

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, self._serve, [listener])
            yield str(listener.socket.getsockname()[1])
            nursery.cancel_scope.cancel()

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with self.wrap(stream, server=True) as wrapped:
            await serve(wrapped)

    def wrap(self, stream: trio.SocketStream, *, server: bool) -> Any:
        return stream

    @asynccontextmanager
    async def session(self, address: str) -> AsyncIterator["Raw"]:
        self.port = int(address)
        yield self

    async def connect(self) -> Stream:
        """A new connection with a stream on it."""
        wrapped: Stream = self.wrap(await trio.open_tcp_stream("127.0.0.1", self.port), server=False)
        return wrapped

    async def open(self) -> Stream:
        return await self.connect()


class Tls(Raw):
    """trio.SSLStream, TLS 1.3, both sides with a P-256 certificate: as much identity as libp2p proves."""

    name = "trio.SSLStream"

    def __init__(self) -> None:
        from cryptography.hazmat.primitives import serialization
        from libp2p.security.tls.certificate import generate_self_signed_cert

        folder = Path(os.environ["LEPTON_BENCH_FOLDER"])
        path = folder / "tls.pem"
        if not path.exists():
            key, certificate = generate_self_signed_cert()
            pem = serialization.Encoding.PEM
            form = serialization.PrivateFormat.PKCS8
            data = certificate.public_bytes(pem) + key.private_bytes(pem, form, serialization.NoEncryption())
            path.write_bytes(data)
        self._contexts = {}
        for server in (True, False):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.check_hostname = False
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(path)
            context.load_cert_chain(path)
            self._contexts[server] = context

    def wrap(self, stream: trio.SocketStream, *, server: bool) -> Any:
        return trio.SSLStream(stream, self._contexts[server], server_side=server, https_compatible=True)


class _Me:
    def __init__(self, seed: bytes) -> None:
        from lepton.mesh.stock import ID, Ed25519PrivateKey

        self.seed = seed
        self.peer_id = ID.from_pubkey(Ed25519PrivateKey.from_bytes(seed).get_public_key()).to_base58()


async def _admit(_: Any) -> None: ...


class Ours:
    """The mesh's transport with Noise."""

    name = "ours, Noise"
    security = "/noise"
    multiplexed = True

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        async with self._transport(b"s" * 32) as transport:
            yield f"{transport.peer_id} {transport.addresses[0]}"

    def _transport(self, seed: bytes) -> Any:
        from lepton.mesh.transport import open_transport

        return open_transport(_Me(seed), on_connection=_admit, handlers={PROTOCOL: serve}, security=[self.security])

    @asynccontextmanager
    async def session(self, address: str) -> AsyncIterator["Ours"]:
        self.peer_id, self.address = address.split()
        async with self._transport(os.urandom(32)) as self.transport:
            yield self

    async def connect(self) -> Any:
        if (old := self.transport.connections.get(self.peer_id)) is not None:
            await old.aclose()
        connection = await self.transport.dial(self.peer_id, [self.address], timeout_s=10)
        return await connection.open_stream(PROTOCOL)

    async def open(self) -> Any:
        connection = await self.transport.dial(self.peer_id, [self.address], timeout_s=10)
        return await connection.open_stream(PROTOCOL)


class OursTls(Ours):
    """The mesh's transport with TLS."""

    name = "ours, TLS"
    security = "/tls/1.0.0"


class Stock:
    """py-libp2p as it comes: Noise and its yamux."""

    name = "stock libp2p"
    multiplexed = True

    class _Adapter:
        def __init__(self, net: Any) -> None:
            self._net = net

        async def send_all(self, data: bytes) -> None:
            view = memoryview(data)
            for at in range(0, len(view), 65524):
                await self._net.write(bytes(view[at : at + 65524]))

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            from libp2p.network.stream.exceptions import StreamEOF

            try:
                return bytes(await self._net.read(max_bytes or 65536))
            except StreamEOF:
                return b""

        async def aclose(self) -> None:
            await self._net.close()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        async with self._host(True) as host:

            async def handle(net: Any) -> None:
                stream = self._Adapter(net)
                await serve(stream)
                await stream.aclose()

            host.set_stream_handler(PROTOCOL, handle)
            yield f"{host.get_id()} {str(host.get_addrs()[0]).split('/p2p/')[0]}"

    @asynccontextmanager
    async def _host(self, listen: bool) -> AsyncIterator[Any]:
        from libp2p import new_host
        from libp2p.crypto.ed25519 import create_new_key_pair
        from libp2p.crypto.x25519 import create_new_key_pair as noise_keys
        from libp2p.security.noise.transport import PROTOCOL_ID, Transport
        from multiaddr import Multiaddr

        pair = create_new_key_pair(os.urandom(32))
        noise = Transport(pair, noise_privkey=noise_keys().private_key)
        host = new_host(key_pair=pair, sec_opt={PROTOCOL_ID: noise})
        addresses = [Multiaddr("/ip4/127.0.0.1/tcp/0")]
        async with host.run(listen_addrs=addresses if listen else []):
            network: Any = host.get_network()
            await network.auto_connector.stop()
            network.set_resource_manager(None)
            yield host

    @asynccontextmanager
    async def session(self, address: str) -> AsyncIterator["Stock"]:
        self.peer, self.address = address.split()
        async with self._host(False) as self.host:
            yield self

    async def connect(self) -> Any:
        from libp2p.peer.id import ID
        from multiaddr import Multiaddr

        peer = ID.from_base58(self.peer)
        network = self.host.get_network()
        await network.close_peer(peer)
        self.connection = await network.dial_addr(Multiaddr(f"{self.address}/p2p/{self.peer}"), peer)
        self.host.get_peerstore().add_addr(peer, Multiaddr(self.address), 3600)
        return await self.open()

    async def open(self) -> Any:
        from libp2p.peer.id import ID

        return self._Adapter(await self.host.new_stream(ID.from_base58(self.peer), [PROTOCOL]))


STACKS: dict[str, Callable[[], Any]] = {"raw": Raw, "tls": Tls, "stock": Stock, "noise": Ours, "ours_tls": OursTls}
