"""The attack that stock py-libp2p falls for: who offers no encryption may say that he is anybody.

Without ``sec_opt`` its hosts also take /plaintext/2.0.0, where a peer id is only claimed. A node of ours must take none
of it: the client below speaks multistream-select over bare TCP and claims the id of a member.
"""

import pytest
import trio
from lepton.mesh import mesh as mesh_module

from .fakes import identity
from .nodes import PATIENCE_S, member, no_discovery

ALICE, VICTIM = identity("alice"), identity("victim")
MULTISTREAM = b"\x13/multistream/1.0.0\n"


def line(text: str) -> bytes:
    return bytes([len(text) + 1]) + text.encode() + b"\n"


async def read_to_the_end(stream: trio.SocketStream, until: bytes = b"") -> bytes:
    heard = b""
    while not (until and until in heard):
        try:
            data = await stream.receive_some()
        except trio.BrokenResourceError:
            return heard
        if not data:
            return heard
        heard += data
    return heard


@pytest.mark.parametrize("protocol", ["/plaintext/2.0.0", "/plaintext/1.0.0", "/secio/1.0.0"])
async def test_nobody_gets_in_without_encryption(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_module, "open_discovery", no_discovery)
    async with member(ALICE) as alice:
        port = int(alice.addresses[0].rpartition("/")[2])
        with trio.fail_after(PATIENCE_S):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(MULTISTREAM + line(protocol))
                heard = await read_to_the_end(stream, b"na\n")
                assert protocol.encode() not in heard  # never agreed to
                assert heard.replace(MULTISTREAM, b"") in {b"", b"\x03na\n"}
                # The claim itself: an Exchange message with the victim's public key, and a hello in the clear.
                key = b"\x08\x01\x12\x20" + VICTIM.public_key
                claim = b"\x0a" + bytes([38]) + b"\x00\x24" + key + b"\x12" + bytes([len(key)]) + key
                try:
                    await stream.send_all(bytes([len(claim)]) + claim + MULTISTREAM + line("/lepton/hello/1"))
                    await stream.send_eof()
                except (trio.BrokenResourceError, OSError):
                    pass
                assert b"lepton" not in await read_to_the_end(stream)
        assert alice.present == frozenset()
        assert VICTIM.peer_id not in alice._transport.connections
