"""The shell of the door: greets whom this node dials, hears who dials it, serves a stranger that comes to join.

Order on every connection: the side that dialled says hello with its grant, the other verifies it and answers with its
own; where they know of other revocations, they tell each other of all and look again. Until both hold nothing but the
join protocol is served, and whoever does anything else loses the connection.
"""

import logging
import secrets
import time
from collections.abc import Callable, Sequence

import trio

from . import limits
from .admission import Admission
from .arrivals import Arrivals
from .calls import receive_frame
from .codes import ENTROPY_BYTES, Code
from .errors import Busy, LinkError, PeerError, Refused
from .frames import encode
from .grants import Chain
from .identity import Identity, PeerId, short
from .invites import Host, InviteBook
from .messages import Message, pack, unpack
from .protocol import HELLO, JOIN, Hello, HelloAnswer, JoinAsk, JoinProof
from .revocations import Revocation
from .revoking import answer_in_greeting, ask_in_greeting
from .transport import Connection, Stream

log = logging.getLogger(__name__)


class Door:
    """Lets connections in, or says why not."""

    def __init__(self, identity: Identity, admission: Admission, invites: InviteBook) -> None:
        self.invites = invites
        self.refusals: dict[PeerId, str] = {}  # who refused us or whom we refused, and why; the latest comes last
        self.refusals_total = 0
        self.on_refused: Callable[[PeerId, str], None] = lambda _peer, _reason: None
        self.on_joined: Callable[[PeerId], None] = lambda _peer: None  # somebody came in with an invite of this node
        self.on_invites_changed: Callable[[], None] = lambda: None  # a use or a wrong try was counted
        self.on_revocations: Callable[[Sequence[Revocation], PeerId], int] = lambda _items, _peer: 0  # how many are new
        self._identity = identity
        self._admission = admission
        # Connections of those who have shown nothing yet; whom one knows from earlier is not pushed out.
        self._strangers = Arrivals(lambda: limits.STRANGERS_MAX, admission.knows)

    @property
    def _own_chain(self) -> Chain:
        return self._admission.chains([self._identity.peer_id])[self._identity.peer_id]

    def refuse(self, peer: PeerId, reason: str) -> None:
        """Note that a peer was refused, or refused this node."""
        log.warning("refused %s: %s", short(peer), reason)
        self.refusals_total += 1
        self.on_refused(peer, reason)
        self.refusals.pop(peer, None)
        if len(self.refusals) >= limits.STRANGERS_MAX:
            self.refusals.pop(next(iter(self.refusals)))
        self.refusals[peer] = reason

    async def pass_through(self, connection: Connection) -> None:
        """Let a connection in. Raises LinkError, Refused or PeerError with why not."""
        peer = connection.peer_id
        try:
            with trio.fail_after(limits.HANDSHAKE_TIMEOUT_S):
                if connection.initiator:
                    await self._greet(connection)
                else:
                    await self._be_greeted(connection)
        except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            msg = f"{short(peer)} broke off the greeting."
            raise LinkError(msg) from error
        except (Refused, PeerError) as error:
            self.refuse(peer, str(error))
            raise

    async def _greet(self, connection: Connection) -> None:
        """Say hello on a connection that we dialled. Raises Refused or PeerError."""
        peer = connection.peer_id
        async with await connection.open_stream(HELLO) as stream:
            digest = self._admission.revocations.digest
            await _say(stream, Hello(chain=self._own_chain, revocations=digest))
            answer = unpack((await receive_frame(stream, body_bytes_max=0)).header, HelloAnswer)
            self.on_revocations(answer.proof, peer)
            if answer.refused:
                raise Refused(answer.refused)
            self._admission.check(peer, answer.chain, time.time())
            if answer.revocations != digest:  # who was revoked itself hears of it so, and is refused then
                await ask_in_greeting(stream, self._admission, lambda items: self.on_revocations(items, peer))
        self._admission.admit(peer, answer.chain, time.time())
        self._admission.standing(peer, time.time())

    async def _be_greeted(self, connection: Connection) -> None:
        """Hear a hello, or serve a stranger's attempt to join and then see it off."""
        place = self._strangers.enter(connection.peer_id)
        try:
            with place.scope:
                await self._hear_a_stranger(connection)
        finally:
            self._strangers.leave(place)
        if place.scope.cancelled_caught:
            msg = f"More than {limits.STRANGERS_MAX} strangers are here; {short(connection.peer_id)} made room."
            raise Busy(msg)

    async def _hear_a_stranger(self, connection: Connection) -> None:
        async with await connection.accept_stream(HELLO, JOIN) as stream:
            if stream.protocol == JOIN:
                await self._serve_join(stream)
                msg = f"{short(connection.peer_id)} came to join; as a member it will greet on a new connection."
                raise LinkError(msg)
            await self._answer_hello(stream)

    async def _answer_hello(self, stream: Stream) -> None:
        peer = stream.peer_id
        hello = unpack((await receive_frame(stream, body_bytes_max=0)).header, Hello)
        try:
            self._admission.admit(peer, hello.chain, time.time())
        except Refused as error:
            proof = self._admission.proof(peer, hello.chain, time.time())
            await _say(stream, HelloAnswer(refused=str(error), proof=proof))
            raise
        digest = self._admission.revocations.digest
        await _say(stream, HelloAnswer(chain=self._own_chain, revocations=digest))
        if hello.revocations != digest:
            await answer_in_greeting(stream, self._admission, lambda items: self.on_revocations(items, peer))
        self._admission.standing(peer, time.time())

    # -- invites ------------------------------------------------------------------------------------------------------

    def invite(self, *, role: str, uses: int, lifetime_s: float) -> Code:
        """Open an invite that this node will honour. Raises Refused or UsageError with the reason."""
        if len(self._own_chain) >= limits.GRANT_CHAIN_MAX:
            msg = (
                f"This node's own grant is a chain of {limits.GRANT_CHAIN_MAX} links, and longer ones are refused; "
                "let the node that invited it give the invite."
            )
            raise Refused(msg)
        return self.invites.give(
            held=self._admission.me.capabilities,
            role=role,
            uses=uses,
            now=time.time(),
            lifetime_s=lifetime_s,
            entropy=secrets.token_bytes(ENTROPY_BYTES),
        )

    async def _serve_join(self, stream: Stream) -> None:
        """Answer a stranger with an invite on the one connection that it has for that."""
        joiner = stream.peer_id
        ask = unpack((await receive_frame(stream, body_bytes_max=0)).header, JoinAsk)
        held, side = self.invites.receive(
            ask, joiner=joiner, issuer=self._identity.peer_id, entropy=secrets.token_bytes
        )
        if held.refused:
            self.refuse(joiner, held.refused)
        await _say(stream, held)
        if side is None:
            return
        proof = unpack((await receive_frame(stream, body_bytes_max=0)).header, JoinProof)
        answer = self.invites.conclude(
            side, proof, joiner=joiner, host=self._host, now=time.time(), serial=secrets.token_bytes(16)
        )
        self.on_invites_changed()  # before the answer: a try and a use are kept, whatever becomes of this process
        if answer.refused:
            self.refuse(joiner, answer.refused)
        else:
            log.info("%s joined with an invite of this node", short(joiner))
            self.on_joined(joiner)
        await _say(stream, answer.message)

    @property
    def _host(self) -> Host:
        return Host(
            mesh_name=self._admission.mesh_name,
            root=self._admission.root,
            identity=self._identity,
            chain=self._own_chain,
            revocations=self._admission.revocations,
        )


async def _say(stream: Stream, message: Message) -> None:
    for piece in encode(pack(message)):
        await stream.send_all(piece)
