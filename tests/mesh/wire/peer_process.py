"""A peer in a process of its own: echoes, prints its peer id and its address, and lives until its input ends."""

import os
import sys

import trio
from lepton.mesh.stock import ID, Ed25519PrivateKey
from lepton.mesh.transport import Connection, Stream, open_transport


class Me:
    def __init__(self) -> None:
        self.seed = os.urandom(32)
        self.peer_id = ID.from_pubkey(Ed25519PrivateKey.from_bytes(self.seed).get_public_key()).to_base58()


async def admit(_: Connection) -> None: ...


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def main() -> None:
    async with open_transport(Me(), on_connection=admit, handlers={"/echo": echo}) as transport:
        sys.stdout.write(f"{transport.peer_id} {transport.addresses[0]}\n")
        sys.stdout.flush()
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


if __name__ == "__main__":
    trio.run(main)
