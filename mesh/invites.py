"""Invites: a code that one device shows and another types in, good once, for a while. A machine without I/O.

The code carries the mesh's name and root key, an expiry and a secret. The issuer keeps only the secret's hash. The
joiner first asks who holds the invite (by the hash's first bytes), checks that this peer's grant chains to the root
key in the code, and only then shows the secret, over the encrypted connection.
"""

import hashlib
import hmac
from typing import Annotated

import base58
import msgpack
import msgspec

from . import limits
from .errors import PeerError, Refused, UsageError
from .grants import GRANT_LIFETIME_S, Grant, allows, capabilities_of_role, issue
from .identity import PUBLIC_KEY_BYTES, Identity, PeerId, peer_id_of, public_key_of, short
from .messages import Message, Name, Natural, unpack

SECRET_BYTES = 16  # 128 bits: no one guesses it within its lifetime
_HINT_BYTES = 8
INVITE_LIFETIME_S = 3600  # an hour to walk to the other device


class Invite(Message, frozen=True, kw_only=True, array_like=True):
    """What a code says."""

    version: int = 1
    mesh_name: Name
    root_key: Annotated[bytes, msgspec.Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]
    secret: Annotated[bytes, msgspec.Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]
    expires: Natural  # Unix seconds

    @property
    def root(self) -> PeerId:
        return peer_id_of(self.root_key)

    @property
    def hint(self) -> bytes:
        """The public name of this invite: tells its issuer which one is meant, and nobody anything else."""
        return hint_of(secret_hash(self.secret))

    def code(self) -> str:
        """Return the text form, with a checksum so that a typing mistake is seen before anything is sent."""
        packed: bytes = msgpack.packb(msgspec.to_builtins(self, builtin_types=(bytes,)))
        return base58.b58encode_check(packed).decode()


def read_code(code: str, now: float) -> Invite:
    """Parse a code. Raises UsageError when it is mistyped, of another release, or expired."""
    try:
        raw = base58.b58decode_check(code.strip()) if len(code) <= limits.STRING_BYTES_MAX else b""
        invite = unpack(raw, Invite)
    except (ValueError, PeerError) as error:
        msg = (
            "This is not an invite code, or a character of it is wrong; copy it again as `lepton-node invite` shows it."
        )
        raise UsageError(msg) from error
    if invite.version != 1:
        msg = f"This invite is of version {invite.version}; this release reads version 1. Update lepton-node."
        raise UsageError(msg)
    if now >= invite.expires:
        msg = f"This invite to {invite.mesh_name!r} has expired; ask for a new one (`lepton-node invite`)."
        raise UsageError(msg)
    return invite


def secret_hash(secret: bytes) -> bytes:
    return hashlib.sha256(b"lepton/invite\x00" + secret).digest()


def hint_of(hashed: bytes) -> bytes:
    return hashed[:_HINT_BYTES]


class OpenInvite(Message, frozen=True, kw_only=True):
    """What the issuer remembers of one invite."""

    hashed: bytes
    capabilities: tuple[str, ...]
    uses_left: int
    expires: int


class InviteBook:
    """The invites that one node has given out and not yet used up.

    Invariant: a secret turns into at most ``uses`` grants, none after its expiry, and a peer that shows wrong
    secrets ``INVITE_TRIES_MAX`` times is not listened to again.
    """

    def __init__(self, open_invites: tuple[OpenInvite, ...] = ()) -> None:
        self._open = {hint_of(invite.hashed): invite for invite in open_invites}
        self._failures: dict[str, int] = {}

    def snapshot(self) -> tuple[OpenInvite, ...]:
        """Return what has to be kept across a restart."""
        return tuple(self._open.values())

    def give(
        self,
        mesh_name: str,
        root: PeerId,
        *,
        held: tuple[str, ...],
        role: str = "member",
        uses: int = 1,
        now: float,
        lifetime_s: float = INVITE_LIFETIME_S,
        secret: bytes,
    ) -> Invite:
        """Open an invite. ``held`` are the issuer's own capabilities. Raises Refused or UsageError with the reason."""
        wanted = capabilities_of_role(role)
        lacking = [capability for capability in wanted if not allows(held, capability)]
        if not allows(held, "invite") or lacking:
            msg = f"This node may not invite a {role}: it lacks {', '.join(lacking) or 'the capability invite'}."
            raise Refused(msg)
        if uses < 1 or lifetime_s <= 0:
            msg = f"An invite needs at least one use and a time to live; got {uses} uses and {lifetime_s:g} s."
            raise UsageError(msg)
        self._drop_expired(now)
        if len(self._open) >= limits.INVITES_MAX:
            msg = f"{limits.INVITES_MAX} invites are open already; wait until some expire."
            raise UsageError(msg)
        invite = Invite(mesh_name=mesh_name, root_key=public_key_of(root), secret=secret, expires=int(now + lifetime_s))
        self._open[invite.hint] = OpenInvite(
            hashed=secret_hash(secret), capabilities=wanted, uses_left=uses, expires=invite.expires
        )
        return invite

    def holds(self, hint: bytes) -> bool:
        return hint in self._open

    def redeem(
        self, hint: bytes, secret: bytes, joiner: PeerId, *, issuer: Identity, now: float, serial: bytes
    ) -> Grant:
        """Turn a secret into a grant for the peer at the other end of the connection. Raises Refused."""
        if self._failures.get(joiner, 0) >= limits.INVITE_TRIES_MAX:
            msg = f"{short(joiner)} has shown {limits.INVITE_TRIES_MAX} wrong invites; it is not listened to any more."
            raise Refused(msg)
        invite = self._open.get(hint)
        if invite is None or not hmac.compare_digest(invite.hashed, secret_hash(secret)):
            self._count_failure(joiner)
            msg = "This invite is not known here: it was mistyped, taken back, or is of another node or mesh."
            raise Refused(msg)
        if now >= invite.expires:
            msg = "This invite has expired; ask for a new one (`lepton-node invite`)."
            raise Refused(msg)
        if invite.uses_left == 0:  # kept until it expires, so that its second user learns why
            msg = "This invite was used already; ask for a new one (`lepton-node invite`)."
            raise Refused(msg)
        self._open[hint] = msgspec.structs.replace(invite, uses_left=invite.uses_left - 1)
        return issue(issuer, joiner, invite.capabilities, expires=now + GRANT_LIFETIME_S, serial=serial)

    def _count_failure(self, joiner: str) -> None:
        if len(self._failures) >= limits.INVITES_MAX:  # strangers can make identities at will: forget the oldest
            self._failures.pop(next(iter(self._failures)))
        self._failures[joiner] = self._failures.get(joiner, 0) + 1

    def _drop_expired(self, now: float) -> None:
        self._open = {hint: invite for hint, invite in self._open.items() if now < invite.expires}
