"""The mesh of a run: the first device makes it and invites all others with real invites, over no wire at all.

Who comes later, or comes back without its key, joins over the network (`joining.py`).
"""

import random
from collections.abc import Sequence

from ..mesh.admission import Credentials
from ..mesh.applicant import Applicant, Joined
from ..mesh.codes import ENTROPY_BYTES, Code, read_code
from ..mesh.grants import GRANT_LIFETIME_S, ROLES, Grant, issue
from ..mesh.identity import Identity, PeerId
from ..mesh.invites import Host, InviteBook
from ..mesh.revocations import Revocations
from .world import World

MESH_NAME = "simulated"


class Founding:
    """Who has which key and which grant."""

    def __init__(self, world: World, dice: random.Random, members: Sequence[str], clients: Sequence[str]) -> None:
        """The first of the members makes the mesh."""
        self.identities: dict[str, Identity] = {}
        self.credentials: dict[str, Credentials] = {}
        self._world, self._dice = world, dice
        first, *others = members
        self.root, creator = self.identity("root"), self.identity(first)
        chain = (self.grant(self.root, creator.peer_id),)
        self.identities[first] = creator
        self.credentials[first] = Credentials(mesh_name=MESH_NAME, root=self.root.peer_id, chain=chain)
        revocations = Revocations(self.root.peer_id)
        host = Host(
            mesh_name=MESH_NAME, root=self.root.peer_id, identity=creator, chain=chain, revocations=revocations
        )  # fmt: skip
        book = InviteBook()
        for name in [*others, *clients]:
            self._invite(name, "client" if name in clients else "member", book, host)
        self.belonging = {identity.peer_id for identity in self.identities.values()}

    def identity(self, name: str, device: int = 1) -> Identity:
        """Make the key of a device; of the second that goes by a name, and so on, when the first is gone."""
        identity = Identity(self._world.secret(f"identity/{name}" + (f"/{device}" if device > 1 else "")))
        self._world.name(identity.peer_id, name)
        return identity

    def grant(self, issuer: Identity, subject: PeerId) -> Grant:
        expires = self._world.unix_s + GRANT_LIFETIME_S
        return issue(issuer, subject, ROLES["admin"], expires=expires, serial=self._dice.randbytes(16))

    def joined(self, name: str, identity: Identity, credentials: Credentials) -> None:
        """Note who has come since."""
        self.identities[name], self.credentials[name] = identity, credentials
        self.belonging.add(identity.peer_id)

    def _invite(self, name: str, role: str, book: InviteBook, host: Host) -> None:
        now, identity = self._world.unix_s, self.identity(name)
        entropy = self._dice.randbytes(ENTROPY_BYTES)
        code = read_code(str(book.give(held=ROLES["admin"], role=role, now=now, entropy=entropy)))
        self.identities[name] = identity
        self.credentials[name] = self._join(book, host, code, identity)

    def _join(self, book: InviteBook, host: Host, code: Code, joiner: Identity) -> Credentials:
        issuer, now, entropy = host.identity.peer_id, self._world.unix_s, self._dice.randbytes
        applicant = Applicant(code, me=joiner.peer_id, issuer=issuer, entropy=entropy)
        held, side = book.receive(applicant.ask(), joiner=joiner.peer_id, issuer=issuer, entropy=entropy)
        proof = applicant.prove(held)
        assert proof is not None
        assert side is not None
        serial = self._dice.randbytes(16)
        answer = book.conclude(side, proof, joiner=joiner.peer_id, host=host, now=now, serial=serial)
        joined = applicant.conclude(answer.message, now)
        assert isinstance(joined, Joined)
        return joined.credentials
