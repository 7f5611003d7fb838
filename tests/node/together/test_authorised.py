"""Every call to a node is authorised once, before its payload is looked at: whoever lacks the right learns which."""

from pathlib import Path

import pytest
import trio
from lepton.mesh.calls import PROTOCOL, Method, receive_frame
from lepton.mesh.frames import encode
from lepton.mesh.grants import DEPLOY, HOST, ROLES, Grant, issue
from lepton.mesh.identity import Identity
from lepton.mesh.messages import pack, unpack
from lepton.mesh.protocol import HELLO, Hello, HelloAnswer
from lepton.mesh.rpc.headers import Control, ErrorHeader, RequestHeader, to_caller
from lepton.mesh.transport import Connection, open_transport
from lepton.node import Node

from .fakes import PATIENCE_S, World, until

EVE = Identity(bytes(range(32)))
KINDS = {capability.partition(":")[0] for capability in ROLES["admin"]} | {DEPLOY, HOST}
GARBAGE = b"\xc1\xc1\xc1"


async def let_in(_connection: Connection) -> None:
    """Whoever answers."""


async def greet(connection: Connection, chain: tuple[Grant, ...]) -> HelloAnswer:
    async with await connection.open_stream(HELLO) as stream:
        for piece in encode(pack(Hello(chain=chain))):
            await stream.send_all(piece)
        return unpack((await receive_frame(stream, body_bytes_max=0)).header, HelloAnswer)


async def ask(connection: Connection, method: Method) -> ErrorHeader:
    """Call a method with bytes that nobody could parse; return the error."""
    scope = "" if method.needs == "mesh" else "digits"
    request = RequestHeader(
        call=1, method=method.name, scope=scope, timeout_s=PATIENCE_S, kind=method.kind, payload_bytes=len(GARBAGE)
    )
    async with await connection.open_stream(PROTOCOL) as stream:
        for piece in (*encode(pack(Control())), *encode(pack(request), [GARBAGE])):
            await stream.send_all(piece)
        while True:  # a greeting may come first
            header = to_caller((await receive_frame(stream, body_bytes_max=2**20)).header)
            if header.call == request.call:
                break
    assert isinstance(header, ErrorHeader)
    return header


def methods(node: Node) -> dict[str, Method]:
    return node.mesh.calls._methods


async def test_every_method_of_a_node_names_a_capability(tmp_path: Path) -> None:
    async with World(tmp_path).node("one") as node:
        assert len(methods(node)) >= 8
        assert {method.needs for method in methods(node).values()} <= KINDS


async def test_who_lacks_the_right_is_told_which_before_anything_is_parsed(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.node("one") as node, open_transport(EVE, (), on_connection=let_in, handlers={}) as transport:
        grant = issue(world.root, EVE.peer_id, ("mesh",), expires=2e9, serial=bytes(16))
        guarded = [method for method in methods(node).values() if method.needs != "mesh"]
        assert guarded
        connection = await transport.dial(node.mesh.me, node.mesh.addresses, timeout_s=PATIENCE_S)
        assert not (await greet(connection, (grant,))).refused
        await until(lambda: EVE.peer_id in node.mesh.present)
        for method in guarded:
            answer = await ask(connection, method)
            assert answer.error == "refused"
            assert f"lacks the capability '{method.needs}:digits'" in answer.reason
        assert not connection.closed.is_set()  # to ask for too much breaks no protocol; to send garbage does
        assert (await ask(connection, methods(node)["mesh.revocations"])).error == "peer"
        with trio.fail_after(PATIENCE_S):
            await connection.closed.wait()


@pytest.mark.parametrize("capabilities", [(), ("infer:*",)])
async def test_without_the_capability_mesh_nobody_gets_in(tmp_path: Path, capabilities: tuple[str, ...]) -> None:
    world = World(tmp_path)
    async with world.node("one") as node, open_transport(EVE, (), on_connection=let_in, handlers={}) as transport:
        grant = issue(world.root, EVE.peer_id, capabilities, expires=2e9, serial=bytes(16))
        connection = await transport.dial(node.mesh.me, node.mesh.addresses, timeout_s=PATIENCE_S)
        assert "lacks the capability 'mesh'" in (await greet(connection, (grant,))).refused
        with trio.fail_after(PATIENCE_S):
            await connection.closed.wait()
