"""Joining, the stranger's side: dial whoever of Lepton is near, ask each for the invite, have its holder prove itself.

A joiner knows neither the mesh nor its members: only the code. What is decided about what peers say is the machine's
business (``applicant.py``).
"""

import secrets
import time
from collections.abc import Sequence
from typing import TypeVar

import trio

from . import limits
from .applicant import Applicant, Joined
from .calls import receive_frame
from .codes import Code
from .discovery import Sighting, open_search
from .errors import LeptonError, LinkError, Refused, leaves
from .frames import encode
from .identity import Identity, PeerId, short
from .messages import Message, pack, unpack
from .protocol import JOIN, JoinGranted, JoinHeld
from .transport import Connection, Stream, Transport, open_transport

_NAMED_MAX = 8  # peers in an error message
_LOOK = "see that the node that gave it is up, and that it is not long expired."
_BROKEN = (LinkError, trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError)

_M = TypeVar("_M")


class _Known(LinkError):
    """Somebody who is asked already, at another of its addresses."""

    def __init__(self) -> None:
        super().__init__("this peer was met at another address.")


async def join_mesh(
    identity: Identity,
    code: Code,
    *,
    interfaces: tuple[str, ...] = (),
    at: Sequence[str] = (),
    timeout_s: float = limits.JOIN_TIMEOUT_S,
) -> Joined:
    """Turn a code into credentials, asking every node that mDNS shows, or only those at the multiaddresses ``at``.

    Raises Refused when its holder says no or nobody holds it, LinkError when nobody could be asked, UsageError for an
    interface that does not exist.
    """
    async with open_transport(identity, (), on_connection=_let_in, handlers={}) as transport:
        search = _Search(identity.peer_id, code, transport)
        with trio.move_on_after(timeout_s) as search.patience:
            await search.run([Sighting((address,)) for address in at], interfaces)
    # Raised out here, so that no nursery of the transport wraps it in a group.
    return search.outcome(timeout_s)


async def _let_in(_connection: Connection) -> None:
    """Take any connection: the applicant itself believes nobody unproven."""


class _Search:
    """Who was asked so far, and what came of it. All who are seen are asked at once, for some may be gone."""

    def __init__(self, me: PeerId, code: Code, transport: Transport) -> None:
        self.patience: trio.CancelScope
        self._me = me
        self._code = code
        self._transport = transport
        self._seen = set[str]()  # addresses
        self._asking = 0
        self._asked = set[PeerId]()
        self._not_held = list[str]()  # those who do not know the invite
        self._said_no = dict[str, Refused]()
        self._failed = dict[str, str]()
        self._found: Joined | LeptonError | None = None

    async def run(self, places: Sequence[Sighting], interfaces: tuple[str, ...]) -> None:
        """Ask at these places, or else whoever is heard of, until somebody grants the invite or its giver refuses."""
        try:
            async with trio.open_nursery() as nursery:
                for place in places:
                    self._meet(place, nursery)
                if not places:
                    async with open_search(interfaces=interfaces) as sightings:
                        async for sighting in sightings:
                            self._meet(sighting, nursery)
        except* LeptonError as group:  # discovery did not start
            self._found = next(leaf for leaf in leaves(group) if isinstance(leaf, LeptonError))

    def _meet(self, place: Sighting, nursery: trio.Nursery) -> None:
        """Ask there, unless it is a node that was seen under an earlier name, or one too many."""
        addresses = place.addresses[: limits.HINTED_ADDRESSES_MAX]
        if self._asking < limits.JOIN_ASKED_MAX and not self._seen.issuperset(addresses):
            self._asking += 1
            self._seen.update(addresses)
            nursery.start_soon(self._ask, addresses, nursery.cancel_scope)

    async def _ask(self, addresses: tuple[str, ...], done: trio.CancelScope) -> None:
        where = addresses[0]
        self._failed[where] = "did not answer"
        try:
            found = await self._ask_at(addresses)
        except Refused as error:
            self._said_no[where] = error  # anybody can say so: its true holder has a little longer to say otherwise
            self.patience.deadline = min(self.patience.deadline, trio.current_time() + limits.JOIN_SECOND_OPINION_S)
        except (LeptonError, *_BROKEN) as error:
            self._failed[where] = str(error) or "it broke off"
            return
        else:
            if found is not None:
                self._found = found
                done.cancel()
        del self._failed[where]

    async def _ask_at(self, addresses: tuple[str, ...]) -> Joined | Refused | None:
        met = list[PeerId]()

        def meet(peer: PeerId) -> None:
            if peer in self._asked:
                raise _Known
            self._asked.add(peer)
            met.append(peer)

        try:
            connection = await self._transport.dial_whoever(addresses, meet=meet, timeout_s=limits.DIAL_TIMEOUT_S)
            try:
                with trio.fail_after(limits.HANDSHAKE_TIMEOUT_S):
                    async with await connection.open_stream(JOIN) as stream:
                        return await self._ask_over(stream, addresses[0])
            finally:
                await connection.aclose()
        except _BROKEN:
            self._asked.difference_update(met)  # another of its addresses may do
            raise

    async def _ask_over(self, stream: Stream, where: str) -> Joined | Refused | None:
        """Return None when this peer does not hold the invite, Refused when its proven giver says no."""
        applicant = Applicant(self._code, me=self._me, issuer=stream.peer_id, entropy=secrets.token_bytes)
        proof = applicant.prove(await _say_and_hear(stream, applicant.ask(), JoinHeld))
        if proof is None:
            self._not_held.append(f"{short(stream.peer_id)} at {where}")
            return None
        return applicant.conclude(await _say_and_hear(stream, proof, JoinGranted), time.time())

    def outcome(self, timeout_s: float) -> Joined:
        """Return what was found. Raises Refused or LinkError that says what happened instead."""
        if isinstance(self._found, Joined):
            return self._found
        raise self._found or self._diagnosis(timeout_s)

    def _diagnosis(self, timeout_s: float) -> LeptonError:
        if self._said_no:
            return next(iter(self._said_no.values()))
        failed = "; ".join(f"{where}: {what}" for where, what in list(self._failed.items())[:_NAMED_MAX])
        if self._not_held:
            asked = ", ".join(self._not_held[:_NAMED_MAX])
            more = f" Without an answer: {failed}." if failed else ""
            return Refused(f"No node that was asked ({asked}) holds this invite; {_LOOK}{more}")
        if failed:
            return LinkError(f"Nodes were seen, but none could be asked: {failed}.")
        msg = (
            f"No node was seen within {timeout_s:g} s. Is the node that gave the invite running (`lepton-node up`), on "
            "the same network, with multicast (mDNS) allowed? In another network, name its address with --at."
        )
        return LinkError(msg)


async def _say_and_hear(stream: Stream, message: Message, kind: type[_M]) -> _M:
    for piece in encode(pack(message)):
        await stream.send_all(piece)
    return unpack((await receive_frame(stream, body_bytes_max=0)).header, kind)
