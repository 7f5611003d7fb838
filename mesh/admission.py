"""Who has proved to belong: verified authorities by peer. A machine without I/O.

Invariant: ``authorities`` holds only what a chain from this mesh's root proves for exactly that peer.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from . import limits
from .errors import Refused
from .grants import Authority, Grant, authority_of
from .identity import PeerId, short


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What makes a node a member: the mesh's name and root, and its own chain of grants."""

    mesh_name: str
    root: PeerId
    chain: tuple[Grant, ...]


class Admission:
    """One node's list of proven members, and their chains to pass on with their records."""

    def __init__(self, credentials: Credentials, me: PeerId, now: float) -> None:
        """Raises Refused when one's own grant does not hold (any more)."""
        self.root = credentials.root
        self.me = authority_of(credentials.chain, root=credentials.root, subject=me, now=now)
        self._authorities = {me: self.me}
        self._chains = {me: credentials.chain}

    def admit(self, peer: PeerId, chain: tuple[Grant, ...], now: float) -> Authority:
        """Verify what a peer showed. Raises Refused with the reason; a known better grant is not replaced."""
        authority = authority_of(chain, root=self.root, subject=peer, now=now)
        authority.require("mesh", now)
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

    def knows(self, peer: PeerId) -> bool:
        return peer in self._authorities

    def authority(self, peer: PeerId) -> Authority:
        """Return what a proven member may do. Raises KeyError for anybody else."""
        return self._authorities[peer]

    def chains(self, peers: Iterable[PeerId]) -> dict[PeerId, tuple[Grant, ...]]:
        """Return the chains of those of these peers that are known."""
        return {peer: self._chains[peer] for peer in peers if peer in self._chains}
