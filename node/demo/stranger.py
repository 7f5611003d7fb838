"""A fifth process without an invite: it finds a member by mDNS, signs itself a grant and tries to get in.

Exit status 0 when it was refused twice: at the greeting, and when it calls without one.
"""

import secrets
import sys
import time

import trio

from ...mesh import limits
from ...mesh.calls import PROTOCOL, RequestHeader, receive_frame
from ...mesh.discovery import Hint, open_discovery
from ...mesh.errors import LeptonError
from ...mesh.frames import encode
from ...mesh.grants import ROLES, issue
from ...mesh.identity import Identity, PeerId
from ...mesh.messages import Message, pack, unpack
from ...mesh.protocol import HELLO, Hello, HelloAnswer
from ...mesh.transport import Connection, Transport, open_transport

_SEARCH_S = 20.0


async def try_to_enter(root: PeerId, interface: str) -> str:
    """Try both doors of the first member that is found; returns why it was refused, or "" if it got in."""
    me = Identity.generate()
    async with open_transport(me, (), on_connection=_let_in, handlers={}) as transport:
        hint = await _find(root, interface)
        reason = await _with_a_forged_grant(transport, hint, me)
        got_in = await _without_a_word(transport, hint)
    return "" if got_in else reason


async def _let_in(_connection: Connection) -> None:
    """Take any connection."""


async def _find(root: PeerId, interface: str) -> Hint:
    with trio.fail_after(_SEARCH_S):
        async with open_discovery(root, interfaces=(interface,)) as hints:
            return await hints.receive()


async def _with_a_forged_grant(transport: Transport, hint: Hint, me: Identity) -> str:
    forged = issue(me, me.peer_id, ROLES["admin"], expires=time.time() + 3600, serial=secrets.token_bytes(16))
    connection = await transport.dial(hint.peer, hint.addresses, timeout_s=limits.DIAL_TIMEOUT_S)
    async with await connection.open_stream(HELLO) as stream:
        await _say(stream, Hello(chain=(forged,)))
        answer = unpack((await receive_frame(stream, body_bytes_max=0)).header, HelloAnswer)
    await connection.aclose()
    return answer.refused


async def _without_a_word(transport: Transport, hint: Hint) -> bool:
    """Call without a greeting; true when anything but an end of the connection comes back."""
    try:
        with trio.fail_after(limits.HANDSHAKE_TIMEOUT_S):
            connection = await transport.dial(hint.peer, hint.addresses, timeout_s=limits.DIAL_TIMEOUT_S)
            async with await connection.open_stream(PROTOCOL) as stream:
                await _say(stream, RequestHeader(call=1, method="mesh.compare", timeout_s=5.0))
                await receive_frame(stream, body_bytes_max=limits.MIB)
    except (LeptonError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
        return False
    return True


async def _say(stream: trio.abc.SendStream, message: Message) -> None:
    for piece in encode(pack(message)):
        await stream.send_all(piece)


def main() -> int:
    """Run with the mesh's id and an interface's address; prints the refusal."""
    reason = trio.run(try_to_enter, PeerId(sys.argv[1]), sys.argv[2])
    print(reason or "got in")
    return 0 if reason else 1


if __name__ == "__main__":
    sys.exit(main())
