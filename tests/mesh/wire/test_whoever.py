"""Dialling an address without knowing who lives there: who is met is told before we are."""

import pytest
import trio
from lepton.mesh.errors import LinkError, PeerError
from lepton.mesh.identity import PeerId
from lepton.mesh.transport import NOISE, TLS, Connection

from .conftest import OpenNode

PATIENCE_S = 60.0


@pytest.mark.parametrize("security", [(NOISE,), (TLS,), (NOISE, TLS)])
async def test_who_is_met_is_whoever_lives_there(node: OpenNode, security: tuple[str, ...]) -> None:
    a, b = await node(security=security), await node(security=security)
    met = list[PeerId]()
    connection = await a.dial_whoever(b.addresses, meet=met.append, timeout_s=PATIENCE_S)
    assert connection.peer_id == b.peer_id
    assert met == [b.peer_id]
    named = [f"{b.addresses[0]}/p2p/{b.peer_id}"]
    assert await a.dial_whoever(named, timeout_s=PATIENCE_S) is connection  # that there is already


@pytest.mark.parametrize("security", [(NOISE,), (TLS,), (NOISE, TLS)])
async def test_who_is_turned_down_never_learns_who_we_are(node: OpenNode, security: tuple[str, ...]) -> None:
    """Who was dialled proves itself first. It sees a handshake that breaks off, and admits the next one."""
    came = list[PeerId]()

    async def note(connection: Connection) -> None:
        came.append(connection.peer_id)

    def decline(_peer: PeerId) -> None:
        raise PeerError("not this one")

    a, b, c = await node(security=security), await node(security=security, on_connection=note), await node()
    with pytest.raises(LinkError, match="not this one"):
        await a.dial_whoever(b.addresses, meet=decline, timeout_s=PATIENCE_S)
    for wrong in (c.peer_id, a.peer_id):
        with pytest.raises(LinkError, match="lives there now"):
            await a.dial_whoever([f"{b.addresses[0]}/p2p/{wrong}"], timeout_s=PATIENCE_S)
    with pytest.raises(LinkError, match="lives there now"):
        await a.dial(c.peer_id, b.addresses, timeout_s=PATIENCE_S)
    await c.dial(b.peer_id, b.addresses, timeout_s=PATIENCE_S)
    with trio.fail_after(PATIENCE_S):
        while c.peer_id not in came:  # whatever came before it is known by then
            await b._changed.wait()
    assert came == [c.peer_id]


async def test_a_node_does_not_meet_itself(node: OpenNode) -> None:
    a = await node()
    with pytest.raises(LinkError, match="it is this node itself"):
        await a.dial_whoever(a.addresses, timeout_s=PATIENCE_S)
