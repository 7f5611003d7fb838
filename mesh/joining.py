"""Joining: find who holds an invite, check that it may, show the secret, come back with a grant. The stranger's side."""

import time
from typing import TypeVar

import trio

from . import limits
from .admission import Credentials
from .calls import receive_frame
from .discovery import Hint, open_discovery
from .errors import LeptonError, LinkError, Refused
from .frames import encode
from .grants import authority_of
from .identity import Identity, PeerId, short
from .invites import Invite
from .messages import Message, pack, unpack
from .protocol import JOIN, JoinAsk, JoinGranted, JoinHeld, JoinSecret
from .transport import Connection, Stream, Transport, open_transport

_M = TypeVar("_M")


async def join_mesh(
    identity: Identity,
    invite: Invite,
    *,
    interfaces: tuple[str, ...] = (),
    hints: tuple[Hint, ...] = (),
    timeout_s: float = limits.JOIN_TIMEOUT_S,
) -> Credentials:
    """Turn an invite into credentials, asking every node of its mesh that mDNS (or ``hints``) shows.

    Raises Refused when its holder says no, LinkError when nobody of that mesh, or nobody who holds it, is found.
    """
    async with open_transport(identity, (), on_connection=_let_in, handlers={}) as transport:
        search = _Search(identity.peer_id, invite, transport)
        with trio.move_on_after(timeout_s):
            for hint in hints:
                if (found := await search.ask(hint)) is not None:
                    return found
            async with open_discovery(invite.root, interfaces=interfaces) as heard:
                async for hint in heard:
                    if (found := await search.ask(hint)) is not None:
                        return found
    raise LinkError(search.diagnosis(timeout_s))


async def _let_in(_connection: Connection) -> None:
    """Take any connection: the search itself checks whom it talks to, before it shows anything."""


class _Search:
    """Who was asked so far, and what came of it."""

    def __init__(self, me: PeerId, invite: Invite, transport: Transport) -> None:
        self._me = me
        self._invite = invite
        self._transport = transport
        self._asked: dict[PeerId, str] = {}

    async def ask(self, hint: Hint) -> Credentials | None:
        if hint.peer in self._asked or hint.peer == self._me:
            return None
        self._asked[hint.peer] = "did not answer"
        try:
            connection = await self._transport.dial(hint.peer, hint.addresses, timeout_s=limits.DIAL_TIMEOUT_S)
        except LinkError as error:
            self._asked[hint.peer] = str(error)
            return None
        try:
            with trio.fail_after(limits.HANDSHAKE_TIMEOUT_S):
                async with await connection.open_stream(JOIN) as stream:
                    return await self._ask_over(stream)
        except Refused:
            raise
        except (LeptonError, trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._asked[hint.peer] = str(error) or "the connection broke"
            return None
        finally:
            await connection.aclose()

    async def _ask_over(self, stream: Stream) -> Credentials | None:
        peer, root = stream.peer_id, self._invite.root
        held = await _say_and_hear(stream, JoinAsk(hint=self._invite.hint), JoinHeld)
        if not held.held:
            self._asked[peer] = "does not hold this invite"
            return None
        authority_of(held.chain, root=root, subject=peer, now=time.time()).require("invite", time.time())
        granted = await _say_and_hear(stream, JoinSecret(secret=self._invite.secret), JoinGranted)
        if granted.refused:
            raise Refused(granted.refused)
        authority_of(granted.chain, root=root, subject=self._me, now=time.time())
        return Credentials(mesh_name=self._invite.mesh_name, root=root, chain=granted.chain)

    def diagnosis(self, timeout_s: float) -> str:
        if not self._asked:
            return (
                f"No node of the mesh {self._invite.mesh_name!r} was seen within {timeout_s:g} s. Is the node that gave the "
                "invite running (`lepton-node up`), on the same network, with multicast (mDNS) allowed?"
            )
        found = "; ".join(f"{short(peer)}: {what}" for peer, what in self._asked.items())
        if all(what == "does not hold this invite" for what in self._asked.values()):
            msg = f"This invite was not accepted: no node of {self._invite.mesh_name!r} knows it ({found})."
            raise Refused(msg)
        return f"Nodes of {self._invite.mesh_name!r} were seen, but none could be asked: {found}."


async def _say_and_hear(stream: Stream, message: Message, kind: type[_M]) -> _M:
    for piece in encode(pack(message)):
        await stream.send_all(piece)
    return unpack((await receive_frame(stream, body_bytes_max=0)).header, kind)
