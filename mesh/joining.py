"""Joining, the stranger's side: find who holds an invite, check that it may, show the secret, get a grant."""

import time
from collections.abc import Iterator
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

_NOT_HELD = "does not hold this invite"
_NAMED_MAX = 8  # peers in an error message

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

    Raises Refused when its holder says no or nobody knows it, LinkError when nobody of that mesh could be asked,
    UsageError for an interface that does not exist.
    """
    async with open_transport(identity, (), on_connection=_let_in, handlers={}) as transport:
        search = _Search(identity.peer_id, invite, transport)
        with trio.move_on_after(timeout_s):
            await search.run(hints, interfaces)
    # Raised out here, so that no nursery of the transport wraps it in a group.
    return search.outcome(timeout_s)


async def _let_in(_connection: Connection) -> None:
    """Take any connection: the search itself checks whom it talks to, before it shows anything."""


class _Search:
    """Who was asked so far, and what came of it. All who are seen are asked at once, for some may be gone."""

    def __init__(self, me: PeerId, invite: Invite, transport: Transport) -> None:
        self._me = me
        self._invite = invite
        self._transport = transport
        self._asked: dict[PeerId, str] = {}
        self._found: Credentials | LeptonError | None = None

    async def run(self, hints: tuple[Hint, ...], interfaces: tuple[str, ...]) -> None:
        """Ask these and whoever is heard of, until somebody grants the invite or its holder refuses."""
        try:
            async with trio.open_nursery() as nursery:
                for hint in hints:
                    nursery.start_soon(self._ask, hint, nursery.cancel_scope)
                async with open_discovery(self._invite.root, interfaces=interfaces) as heard:
                    async for hint in heard:
                        if len(self._asked) < limits.HINTED_PEERS_MAX:
                            nursery.start_soon(self._ask, hint, nursery.cancel_scope)
        except* LeptonError as group:  # discovery did not start
            self._found = next(leaf for leaf in _leaves(group) if isinstance(leaf, LeptonError))

    async def _ask(self, hint: Hint, done: trio.CancelScope) -> None:
        if hint.peer in self._asked or hint.peer == self._me:
            return
        self._asked[hint.peer] = "did not answer"
        try:
            found = await self._ask_at(hint)
        except (LeptonError, trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._asked[hint.peer] = str(error) or "the connection broke"
            return
        if found is not None:
            self._found = found
            done.cancel()

    async def _ask_at(self, hint: Hint) -> Credentials | Refused | None:
        connection = await self._transport.dial(
            hint.peer, hint.addresses[: limits.HINTED_ADDRESSES_MAX], timeout_s=limits.DIAL_TIMEOUT_S
        )
        try:
            with trio.fail_after(limits.HANDSHAKE_TIMEOUT_S):
                async with await connection.open_stream(JOIN) as stream:
                    return await self._ask_over(stream)
        finally:
            await connection.aclose()

    async def _ask_over(self, stream: Stream) -> Credentials | Refused | None:
        """Return what came of it: None when this peer has no say, Refused when its proven holder says no."""
        peer, root = stream.peer_id, self._invite.root
        held = await _say_and_hear(stream, JoinAsk(hint=self._invite.hint), JoinHeld)
        if not held.held:
            self._asked[peer] = _NOT_HELD
            return None
        # Raises Refused for a stranger that only says so; the search goes on.
        authority_of(held.chain, root=root, subject=peer, now=time.time()).require("invite", time.time())
        granted = await _say_and_hear(stream, JoinSecret(secret=self._invite.secret), JoinGranted)
        if granted.refused:
            return Refused(granted.refused)
        authority_of(granted.chain, root=root, subject=self._me, now=time.time())
        return Credentials(mesh_name=self._invite.mesh_name, root=root, chain=granted.chain)

    def outcome(self, timeout_s: float) -> Credentials:
        """Return what was found. Raises Refused or LinkError that says what happened instead."""
        if isinstance(self._found, Credentials):
            return self._found
        raise self._found or self._diagnosis(timeout_s)

    def _diagnosis(self, timeout_s: float) -> LeptonError:
        mesh = self._invite.mesh_name
        if not self._asked:
            msg = (
                f"No node of the mesh {mesh!r} was seen within {timeout_s:g} s. Is the node that gave the "
                "invite running (`lepton-node up`), on the same network, with multicast (mDNS) allowed?"
            )
            return LinkError(msg)
        found = "; ".join(f"{short(peer)}: {what}" for peer, what in list(self._asked.items())[:_NAMED_MAX])
        if all(what == _NOT_HELD for what in self._asked.values()):
            return Refused(f"This invite was not accepted: no node of {mesh!r} knows it ({found}).")
        return LinkError(f"Nodes of {mesh!r} were seen, but none could be asked: {found}.")


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


async def _say_and_hear(stream: Stream, message: Message, kind: type[_M]) -> _M:
    for piece in encode(pack(message)):
        await stream.send_all(piece)
    return unpack((await receive_frame(stream, body_bytes_max=0)).header, kind)
