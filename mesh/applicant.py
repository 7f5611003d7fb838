"""The joiner's side of one attempt with one peer: ask by nameplate, prove the code, believe what follows. A machine.

Nothing that a peer says is believed before it has proved that it knows the code. What comes then is sealed under the
key of that proof, so the mesh that is joined is that of the person who gave the code.
"""

from dataclasses import dataclass

from .admission import Credentials
from .codes import Code
from .errors import PeerError, Refused
from .grants import authority_of
from .identity import PeerId, short
from .messages import unpack
from .pake import Entropy, Side
from .protocol import JoinAsk, JoinGranted, JoinHeld, JoinProof, Verdict, Welcome
from .revocations import Revocation, Revocations


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What a successful attempt brings: the credentials, and the revocations that the issuer knew. All verify."""

    credentials: Credentials
    revocations: tuple[Revocation, ...]


class Applicant:
    """One attempt. ``issuer`` is the peer at the other end of the connection, whoever that is."""

    def __init__(self, code: Code, *, me: PeerId, issuer: PeerId, entropy: Entropy) -> None:
        self._code = code
        self._me = me
        self._issuer = issuer
        self._entropy = entropy
        self._side: Side | None = None

    def ask(self) -> JoinAsk:
        return JoinAsk(nameplate=self._code.nameplate)

    def prove(self, held: JoinHeld) -> JoinProof | None:
        """Answer a share with a proof; None when this peer does not hold the invite. Raises Refused or PeerError."""
        if held.refused:
            raise Refused(held.refused)
        if not held.share:
            return None
        side = Side(self._code, joiner=self._me, issuer=self._issuer, joins=True, entropy=self._entropy)
        side.receive(held.share)
        self._side = side
        return JoinProof(share=side.share, confirmation=side.confirmation)

    def conclude(self, granted: JoinGranted, now: float) -> Joined | Refused:
        """Read the issuer's answer. Returns Refused when its proven giver says no.

        Raises Refused when somebody unproven says no, PeerError when this peer does not know the code: what it says
        then is worth nothing.
        """
        assert self._side is not None, "prove comes first"
        if granted.refused:
            raise Refused(granted.refused)
        if not self._side.confirmed_by(granted.confirmation):
            msg = f"{short(self._issuer)} claims to hold the invite and does not know its code."
            raise PeerError(msg)
        verdict = unpack(self._side.open(granted.sealed), Verdict)
        return Refused(verdict.refused) if verdict.welcome is None else self._believe(verdict.welcome, now)

    def _believe(self, welcome: Welcome, now: float) -> Joined:
        """Check that the issuer may invite in that mesh, and that all holds. Raises Refused or PeerError."""
        authority_of(welcome.chain[:-1], root=welcome.root, subject=self._issuer, now=now).require("invite", now)
        authority_of(welcome.chain, root=welcome.root, subject=self._me, now=now)
        Revocations(welcome.root, welcome.revocations)
        credentials = Credentials(mesh_name=welcome.mesh_name, root=welcome.root, chain=welcome.chain)
        return Joined(credentials=credentials, revocations=welcome.revocations)
