"""Who has proved to belong: verified authorities by peer. A machine without I/O.

Invariant: ``authorities`` holds only what a chain from this mesh's root proves for exactly that peer, and in which
nobody is revoked, but for the node's own: it must know what it was to say what became of it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from . import limits
from .errors import Refused
from .grants import Authority, Grant, authority_of
from .identity import PeerId, short
from .revocations import Revocation, Revocations


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What makes a node a member: the mesh's name and root, and its own chain of grants."""

    mesh_name: str
    root: PeerId
    chain: tuple[Grant, ...]


# What the owner of a device does that is no member any more.
JOIN_ANEW = (
    "If it should be a member again, ask an admin for an invite and join with a new folder (`lepton-node join CODE "
    "--home FOLDER`): a revoked key stays revoked."
)


class Admission:
    """One node's list of proven members, and their chains to pass on with their records."""

    def __init__(
        self, credentials: Credentials, me: PeerId, now: float, revocations: Iterable[Revocation] = ()
    ) -> None:
        """Start with the revocations that were kept.

        Raises Refused when one's own grant does not hold (any more), PeerError when a revocation does not verify.
        """
        self.mesh_name = credentials.mesh_name
        self.root = credentials.root
        self.revocations = Revocations(credentials.root, revocations)
        self.me = authority_of(credentials.chain, root=credentials.root, subject=me, now=now)
        self.ended = self.revocations.why_not(credentials.chain)  # why this node itself is out; empty while it is not
        if self.ended:
            msg = f"This device belongs to {credentials.mesh_name!r} no more: {self.ended} {JOIN_ANEW}"
            raise Refused(msg)
        self._authorities = {me: self.me}
        self._chains = {me: credentials.chain}
        self._fallen: dict[PeerId, str] = {}  # who was a member until a revocation came, and why no more

    def admit(self, peer: PeerId, chain: tuple[Grant, ...], now: float) -> Authority:
        """Verify what a peer showed. Raises Refused with the reason; a known better grant is not replaced."""
        authority = authority_of(chain, root=self.root, subject=peer, now=now)
        authority.require("mesh", now)
        if reason := self.revocations.why_not(chain):
            raise Refused(reason)
        self._fallen.pop(peer, None)
        known = self._authorities.get(peer)
        if known is None:
            self._make_room(peer, now)
        if known is None or authority.expires >= known.expires:
            self._authorities[peer] = authority
            self._chains[peer] = chain
        return self._authorities[peer]

    def _make_room(self, peer: PeerId, now: float) -> None:
        if len(self._authorities) < limits.MEMBERS_MAX:
            return
        expired = [known for known, its in self._authorities.items() if now >= its.expires and known != self.me.subject]
        if not expired:
            msg = f"This mesh has {limits.MEMBERS_MAX} members already; {short(peer)} can come in when a grant expires."
            raise Refused(msg)
        for known in expired:
            del self._authorities[known], self._chains[known]

    def learn(self, chains: Mapping[PeerId, tuple[Grant, ...]], now: float) -> None:
        """Take in chains of third parties that came with their records; what does not verify is passed over."""
        for peer, chain in chains.items():
            try:
                self.admit(peer, chain, now)
            except Refused:  # expired meanwhile, most likely: its records are then not taken either
                continue

    def check(self, peer: PeerId, chain: tuple[Grant, ...], now: float) -> None:
        """Raise Refused unless a chain verifies for this peer. Whether anybody in it was revoked is not asked."""
        authority_of(chain, root=self.root, subject=peer, now=now).require("mesh", now)

    def proof(self, peer: PeerId, chain: tuple[Grant, ...], now: float) -> tuple[Revocation, ...]:
        """Return the revocations that make a chain of this mesh worth nothing; none to whom never had one."""
        try:
            self.check(peer, chain, now)
        except Refused:
            return ()
        return self.revocations.proof(chain)

    def falls(self) -> dict[PeerId, str]:
        """Drop every member whose chain the revocations make worth nothing; return why, the node's own among them."""
        out = {peer: why for peer, chain in self._chains.items() if (why := self.revocations.why_not(chain))}
        self.ended = out.get(self.me.subject, "")
        for peer in out.keys() - {self.me.subject}:
            del self._authorities[peer], self._chains[peer]
            if len(self._fallen) < limits.MEMBERS_MAX:
                self._fallen[peer] = out[peer]
        return out

    def revoked_among(self, owners: Iterable[PeerId]) -> list[PeerId]:
        """Return who of these was revoked itself, be its chain known here or not: after a restart few chains are."""
        return sorted(owner for owner in owners if self.revocations.why(owner))

    def knows(self, peer: PeerId) -> bool:
        return peer in self._authorities

    def is_member(self, peer: PeerId) -> bool:
        """Whether a peer has proved to belong, and was not thrown out since."""
        return self.knows(peer) and bool(self.authority(peer).capabilities)

    def authority(self, peer: PeerId) -> Authority:
        """Return what a member may do: nothing once it was revoked. Raises KeyError for who never was one."""
        if self.ended or peer in self._fallen:
            return Authority(peer, (), 0)
        return self._authorities[peer]

    def standing(self, peer: PeerId, now: float) -> Authority:
        """Return what a member may do now. Raises Refused with the reason when it may do nothing any more."""
        if reason := self.ended or self._fallen.get(peer, ""):
            raise Refused(reason)
        authority = self._authorities.get(peer)
        if authority is None:
            msg = f"{short(peer)} has shown no grant of this mesh; it must join with an invite first."
            raise Refused(msg)
        authority.require("mesh", now)
        return authority

    def members(self) -> dict[PeerId, tuple[Grant, ...]]:
        """Return all that are known, this node too, with their chains."""
        return dict(self._chains)

    def chains(self, peers: Iterable[PeerId]) -> dict[PeerId, tuple[Grant, ...]]:
        """Return the chains of those of these peers that are known."""
        return {peer: self._chains[peer] for peer in peers if peer in self._chains}

    def renew(self, chain: tuple[Grant, ...], now: float) -> None:
        """Take a newer chain of one's own. Raises Refused unless it gives just what the old one gave, for longer."""
        authority = authority_of(chain, root=self.root, subject=self.me.subject, now=now)
        if reason := self.revocations.why_not(chain):
            raise Refused(reason)
        if sorted(authority.capabilities) != sorted(self.me.capabilities) or authority.expires <= self.me.expires:
            msg = "A renewed grant gives something else than the one before, or does not last longer."
            raise Refused(msg)
        self.me = self._authorities[self.me.subject] = authority
        self._chains[self.me.subject] = chain
