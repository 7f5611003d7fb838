"""Invites: the book of codes that one node has given out, and its side of an attempt to use one. Without I/O.

A code (``codes.py``) is short, so nobody may try many: the joiner and the issuer run a PAKE over it (``pake.py``), in
which a wrong guess is seen by the issuer and counted, whoever it came from, for peer ids cost nothing.

Invariant: an invite turns into grants for at most ``uses`` peers, one each, none after its expiry; after
``INVITE_TRIES_MAX`` wrong codes it is closed for everybody, and its password is forgotten. A try is counted before it
is answered.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from . import limits
from .admission import JOIN_ANEW
from .codes import NAMEPLATES, Code, code_of
from .errors import Refused, UsageError
from .grants import GRANT_LIFETIME_S, Chain, Grant, allows, capabilities_of_role, issue
from .identity import Identity, PeerId
from .messages import Message, pack
from .pake import Entropy, Side
from .protocol import JoinAsk, JoinGranted, JoinHeld, JoinProof, Verdict, Welcome
from .revocations import Revocation, Revocations

INVITE_LIFETIME_S = 3600  # an hour to walk to the other device
_ASK_ANEW = "ask for a new one (`lepton-node invite`)."
_CLOSED = f"This invite is closed: {limits.INVITE_TRIES_MAX} wrong codes were tried with it; {_ASK_ANEW}"


class OpenInvite(Message, frozen=True, kw_only=True):
    """What the issuer remembers of one invite, until it expires: so who comes too late learns why."""

    nameplate: str
    password: str  # a PAKE needs it as it is; "" once the invite is closed
    capabilities: tuple[str, ...]
    uses: int
    given: dict[PeerId, Grant] = {}  # noqa: RUF012 - a frozen struct copies it
    tries_left: int = limits.INVITE_TRIES_MAX
    expires: int  # Unix seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Who answers for a mesh: the issuer, its chain of grants, and the revocations that it knows."""

    mesh_name: str
    root: PeerId
    identity: Identity
    chain: Chain
    revocations: Revocations


@dataclass(frozen=True, slots=True)
class Answer:
    """What to send to the one who tried, and for the log why it was refused ("" when it was not)."""

    message: JoinGranted
    refused: str = ""


class InviteBook:
    """The invites that one node has given out and not yet forgotten."""

    def __init__(self, open_invites: tuple[OpenInvite, ...] = ()) -> None:
        self._open = {invite.nameplate: invite for invite in open_invites}
        self._broken_off: dict[str, int] = {}  # by nameplate: attempts begun and not (yet) brought to an end

    def snapshot(self) -> tuple[OpenInvite, ...]:
        """Return what has to be kept across a restart."""
        return tuple(self._open.values())

    def give(
        self,
        *,
        held: tuple[str, ...],
        role: str = "member",
        uses: int = 1,
        now: float,
        lifetime_s: float = INVITE_LIFETIME_S,
        entropy: bytes,
    ) -> Code:
        """Open an invite. ``held`` are the issuer's own capabilities, ``entropy`` is ``ENTROPY_BYTES`` long.

        Raises Refused or UsageError with the reason.
        """
        wanted = capabilities_of_role(role)
        _check(held, wanted, role, uses, lifetime_s)
        self._drop_expired(now)
        if len(self._open) >= limits.INVITES_MAX:
            msg = f"{limits.INVITES_MAX} invites are open already; wait until some expire."
            raise UsageError(msg)
        code = self._free(int.from_bytes(entropy))
        self._open[code.nameplate] = OpenInvite(
            nameplate=code.nameplate,
            password=code.password,
            capabilities=wanted,
            uses=uses,
            expires=int(now + lifetime_s),
        )
        return code

    def _free(self, number: int) -> Code:
        """Make a code whose nameplate no other invite of this book has."""
        nameplate, password = divmod(number, 1 << 40)
        while (code := code_of(nameplate % NAMEPLATES, password)).nameplate in self._open:
            nameplate += 1
        return code

    def receive(
        self, ask: JoinAsk, *, joiner: PeerId, issuer: PeerId, entropy: Entropy
    ) -> tuple[JoinHeld, Side | None]:
        """Begin an attempt by the peer at the other end of the connection. Without a Side it ends with this answer."""
        invite = self._open.get(ask.nameplate)
        if invite is None:
            return JoinHeld(), None
        begun = self._broken_off.get(ask.nameplate, 0)
        if not invite.tries_left:
            return JoinHeld(refused=_CLOSED), None
        if begun >= limits.INVITE_BROKEN_OFF_MAX:
            return JoinHeld(refused=f"Too many attempts with this invite were broken off; {_ASK_ANEW}"), None
        self._broken_off[ask.nameplate] = begun + 1
        code = Code(invite.nameplate, invite.password)
        side = Side(code, joiner=joiner, issuer=issuer, joins=False, entropy=entropy)
        return JoinHeld(share=side.share), side

    def conclude(
        self, side: Side, proof: JoinProof, *, joiner: PeerId, host: Host, now: float, serial: bytes
    ) -> Answer:
        """Turn a proof that the code is known into a grant. Raises PeerError when the share in it is none.

        Keep ``snapshot`` before the answer is sent: it counts the try or the use.
        """
        side.receive(proof.share)
        invite = self._open.get(side.code.nameplate)
        if invite is None or invite.password != side.code.password:  # closed while this attempt was under way
            return Answer(JoinGranted(refused=_CLOSED), _CLOSED)
        self._broken_off[invite.nameplate] -= 1
        if not side.confirmed_by(proof.confirmation):
            refused = self._count_wrong(invite)
            return Answer(JoinGranted(refused=refused), refused)
        refused = self._why_no_grant(invite, joiner, now) or _why_out(host, joiner)
        verdict = Verdict(refused=refused) if refused else self._welcome(invite, joiner, host, now, serial)
        return Answer(JoinGranted(confirmation=side.confirmation, sealed=side.seal(pack(verdict))), refused)

    def _count_wrong(self, invite: OpenInvite) -> str:
        left = invite.tries_left - 1
        password = invite.password if left else ""
        self._open[invite.nameplate] = msgspec.structs.replace(invite, tries_left=left, password=password)
        what = "The code of this invite is another: it was mistyped or guessed"
        return f"{what} ({left} more tries)." if left else f"{what}. {_CLOSED}"

    @staticmethod
    def _why_no_grant(invite: OpenInvite, joiner: PeerId, now: float) -> str:
        if now >= invite.expires:
            return f"This invite has expired; {_ASK_ANEW}"
        room = len(invite.given) < invite.uses or joiner in invite.given
        return "" if room else f"This invite was used already; {_ASK_ANEW}"

    def _welcome(self, invite: OpenInvite, joiner: PeerId, host: Host, now: float, serial: bytes) -> Verdict:
        grant = invite.given.get(joiner)  # our last answer may have been lost on the way
        if grant is None:
            grant = issue(host.identity, joiner, invite.capabilities, expires=now + GRANT_LIFETIME_S, serial=serial)
            self._open[invite.nameplate] = msgspec.structs.replace(invite, given=invite.given | {joiner: grant})
        chain, revocations = (*host.chain, grant), _fitting(host.revocations.all)
        return Verdict(welcome=Welcome(mesh_name=host.mesh_name, root=host.root, chain=chain, revocations=revocations))

    def _drop_expired(self, now: float) -> None:
        self._open = {nameplate: invite for nameplate, invite in self._open.items() if now < invite.expires}
        self._broken_off = {name: count for name, count in self._broken_off.items() if name in self._open}


def _why_out(host: Host, joiner: PeerId) -> str:
    if why := host.revocations.why_not(host.chain):
        return f"The node that gave this invite is a member no more: {why}"
    why = host.revocations.why(joiner)
    return f"{why} {JOIN_ANEW}" if why else ""


def _fitting(revocations: Iterable[Revocation]) -> tuple[Revocation, ...]:
    """Take as many as one welcome holds."""
    room, taken = limits.JOIN_REVOCATIONS_BYTES_MAX, list[Revocation]()
    for item in revocations:
        room -= len(pack(item))
        if room < 0:
            break
        taken.append(item)
    return tuple(taken)


def _check(held: tuple[str, ...], wanted: tuple[str, ...], role: str, uses: int, lifetime_s: float) -> None:
    lacking = [capability for capability in wanted if not allows(held, capability)]
    if not allows(held, "invite") or lacking:
        msg = f"This node may not invite a {role}: it lacks {', '.join(lacking) or 'the capability invite'}."
        raise Refused(msg)
    if not 1 <= uses <= limits.MEMBERS_MAX or lifetime_s <= 0:
        msg = (
            f"An invite needs 1 to {limits.MEMBERS_MAX} uses and a time to live; got {uses} uses and {lifetime_s:g} s."
        )
        raise UsageError(msg)
