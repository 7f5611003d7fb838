"""py-libp2p as it comes, in a process of its own (it leaves sockets open): serves /echo, prints its address, and for every
address on its input dials it, echoes 32 MiB and 50 short messages through it, and prints what came of that.
"""

import os
import sys
import traceback
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_keys
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.security.tls.transport import TLSTransport
from multiaddr import Multiaddr

PIECE = 60_000


async def echo(stream: Any) -> None:
    try:
        while data := await stream.read(PIECE):
            await stream.write(data)
    except StreamEOF:
        pass
    await stream.close()


async def echoed(host: Any, peer: ID, data: bytes) -> None:
    stream = await host.new_stream(peer, ["/echo"])

    async def send() -> None:
        for at in range(0, len(data), PIECE):
            await stream.write(data[at : at + PIECE])

    got = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while len(got) < len(data):
            got += await stream.read(PIECE)
    assert got == data
    await stream.close()


async def dial(host: Any, address: str) -> str:
    try:
        where, peer_id = address.split("/p2p/")
        peer = ID.from_base58(peer_id)
        host.get_peerstore().add_addr(peer, Multiaddr(where), 3600)
        await host.get_network().dial_addr(Multiaddr(address), peer)
        await echoed(host, peer, os.urandom(32 * 1024 * 1024))
        for count in range(50):
            await echoed(host, peer, b"short %d" % count)
    except Exception:  # whatever it is, the test is to see it
        return traceback.format_exc().replace("\n", " | ")
    return "ok"


async def main(security: str) -> None:
    pair = create_new_key_pair(os.urandom(32))
    protocol: Any = (
        Noise(pair, noise_privkey=new_noise_keys().private_key) if security == NOISE else TLSTransport(pair)
    )
    host: Any = new_host(key_pair=pair, sec_opt={TProtocol(security): protocol})
    host.set_stream_handler("/echo", echo)
    async with host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        await host.get_network().auto_connector.stop()
        host.get_network().set_resource_manager(None)
        say(str(host.get_addrs()[0]))
        while address := await trio.to_thread.run_sync(sys.stdin.readline):
            say(await dial(host, address.strip()))
        os._exit(0)  # its own way out takes seconds


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
