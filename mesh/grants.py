"""Who may do what: signed grants in chains that only narrow, from the mesh's root key to one peer.

A mesh *is* its root public key, written as a peer id. A grant says 'this subject may do these things until then'.
The first grant of a chain is signed by the root, each further one by the subject of the one before, and none may give
more, or for longer, than its issuer had. Times are Unix seconds handed in by the caller.
"""

import datetime as dt
import re
from typing import Annotated

import msgspec

from . import limits
from .errors import PeerError, Refused, UsageError
from .identity import SIGNATURE_BYTES, Identity, PeerId, short, verify
from .messages import Message, Natural, pack, unpack

_PURPOSE = "grant"
_SERIAL_BYTES = 16

_KINDS = ("infer", "service", "train", "deploy", "host")  # of capabilities that name something
_NAMED = rf"^({'|'.join(_KINDS)}):(\*|[a-z0-9][a-z0-9._-]{{0,63}})\Z"

# exact ('mesh'), of a kind ('infer:digits') or all of a kind ('infer:*')
Capability = Annotated[str, msgspec.Meta(pattern=r"^[a-z]+(:(\*|[a-z0-9][a-z0-9._-]{0,63}))?\Z")]

ROLES: dict[str, tuple[str, ...]] = {
    "client": ("mesh", "infer:*", "service:*"),
    "trainer": ("mesh", "train:*"),
    "member": ("mesh", "infer:*", "service:*", "train:*"),
    "admin": ("mesh", "infer:*", "service:*", "train:*", "invite", "admin"),
}

DEPLOY = "deploy"  # 'deploy:NAME': to say what code others run as the service NAME
HOST = "host"  # 'host:NAME': to run the service, or hold layers of the model, NAME: to see and answer what it is asked
_HOSTING_ROLE = frozenset({"service:*", "train:*"})  # what the role member has and no lesser one

GRANT_LIFETIME_S = 90 * 24 * 3600  # a season: short enough that a forgotten device drops out, see trust.md


class Statement(Message, frozen=True, kw_only=True):
    """What a grant says."""

    version: int = 1
    issuer: PeerId
    subject: PeerId
    capabilities: Annotated[tuple[Capability, ...], msgspec.Meta(max_length=limits.CAPABILITIES_MAX)]
    expires: Natural  # Unix seconds
    serial: Annotated[bytes, msgspec.Meta(min_length=_SERIAL_BYTES, max_length=_SERIAL_BYTES)]


class Grant(Message, frozen=True, kw_only=True):
    """A statement and its issuer's signature over exactly these bytes."""

    statement: Annotated[bytes, msgspec.Meta(max_length=limits.GRANT_BYTES_MAX)]
    signature: Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


Chain = Annotated[tuple[Grant, ...], msgspec.Meta(max_length=limits.GRANT_CHAIN_MAX)]


class Authority(msgspec.Struct, frozen=True):
    """What a verified chain allows its subject, and until when (Unix seconds)."""

    subject: PeerId
    capabilities: tuple[str, ...]
    expires: int

    def allows(self, needed: str) -> bool:
        return allows(self.capabilities, needed)

    def at(self, now: float) -> "Authority":
        """Return what is left of it at this moment: nothing once it has ended."""
        return self if now < self.expires else Authority(self.subject, (), self.expires)

    def require(self, needed: str, now: float) -> None:
        """Raise Refused unless this authority covers the capability at this moment."""
        if now >= self.expires:
            raise Refused(_ended(self.subject, self.expires))
        if not self.allows(needed):
            msg = f"{short(self.subject)} lacks the capability {needed!r}; ask an admin for an invite that has it."
            raise Refused(msg)


def _ended(subject: PeerId, expires: int) -> str:
    on = dt.datetime.fromtimestamp(expires, dt.UTC).strftime("%Y-%m-%d %H:%M")
    return (
        f"The grant of {short(subject)} has expired (on {on} UTC); join again with a new invite, or set the clock if "
        "it is wrong."
    )


def allows(capabilities: tuple[str, ...], needed: str) -> bool:
    """Whether a set of capabilities covers one, which may itself be a whole kind ('infer:*').

    Who is an admin may deploy any service and host any service or model, and who has all that the role member has may
    host any: so grants from before there were these capabilities say it too.
    """
    kind = needed.partition(":")[0]
    if kind in {DEPLOY, HOST} and ":" in needed and "admin" in capabilities:
        return True
    if kind == HOST and ":" in needed and _HOSTING_ROLE.issubset(capabilities):
        return True
    return needed in capabilities or (":" in needed and f"{kind}:*" in capabilities)


def issue(issuer: Identity, subject: PeerId, capabilities: tuple[str, ...], *, expires: float, serial: bytes) -> Grant:
    """Sign one grant. ``serial`` is 16 random bytes; whether it may be given is checked by whoever verifies."""
    statement = Statement(
        issuer=issuer.peer_id, subject=subject, capabilities=capabilities, expires=int(expires), serial=serial
    )
    payload = pack(statement)
    return Grant(statement=payload, signature=issuer.sign(_PURPOSE, payload))


def authority_of(chain: tuple[Grant, ...], *, root: PeerId, subject: PeerId, now: float) -> Authority:
    """Verify a chain from the mesh's root to ``subject``. Raises Refused with what failed.

    The last link must name ``subject``: the caller takes it from the connection, never from a payload.
    """
    if not chain:
        msg = f"{short(subject)} showed no grant of this mesh; it must join with an invite first."
        raise Refused(msg)
    if len(chain) > limits.GRANT_CHAIN_MAX:
        msg = f"The grant of {short(subject)} has {len(chain)} links; at most {limits.GRANT_CHAIN_MAX} are accepted."
        raise Refused(msg)
    authority = Authority(root, ROLES["admin"], 2**53)
    for grant in chain:
        authority = _follow(authority, grant, now)
    if authority.subject != subject:
        msg = f"{short(subject)} showed a grant that belongs to {short(authority.subject)}."
        raise Refused(msg)
    return authority


def read_grant(grant: Grant) -> Statement:
    """Read what a grant says, without asking whether it may. Raises PeerError when it does not parse."""
    return unpack(grant.statement, Statement)


def _follow(authority: Authority, grant: Grant, now: float) -> Authority:
    try:
        verify(authority.subject, _PURPOSE, grant.statement, grant.signature)
        statement = unpack(grant.statement, Statement)
    except PeerError as error:
        signer = short(authority.subject)
        msg = f"A grant is not signed by {signer}, as its chain demands: it is of another mesh or forged."
        raise Refused(msg) from error
    if statement.issuer != authority.subject or statement.version != 1:
        msg = "A grant names another issuer, or a version that this release does not know."
        raise Refused(msg)
    if now >= statement.expires:
        raise Refused(_ended(statement.subject, statement.expires))
    if not all(authority.allows(capability) for capability in statement.capabilities):
        msg = f"The grant of {short(statement.subject)} gives more than its issuer {short(authority.subject)} has."
        raise Refused(msg)
    if not authority.allows("invite"):
        msg = f"{short(authority.subject)} may not give grants to others."
        raise Refused(msg)
    return Authority(statement.subject, statement.capabilities, min(authority.expires, statement.expires))


def capabilities_of_role(role: str) -> tuple[str, ...]:
    """Return the capabilities of a role, and of what is named behind it: "client,host:eyes". Raises UsageError.

    What may be named so has a name of its own: to invite, or to be an admin, is a role's alone.
    """
    name, *more = (word.strip() for word in role.split(","))
    if name not in ROLES:
        msg = f"There is no role {name!r}; choose one of {', '.join(ROLES)}."
        raise UsageError(msg)
    for word in more:
        if re.search(_NAMED, word) is None:
            msg = (
                f"{word!r} is no capability; write {', '.join(f'{kind}:NAME' for kind in _KINDS)}, or * for all names."
            )
            raise UsageError(msg)
    given = tuple(dict.fromkeys((*ROLES[name], *more)))
    if len(given) > limits.CAPABILITIES_MAX:
        msg = f"A grant holds {limits.CAPABILITIES_MAX} capabilities; {role!r} are {len(given)}."
        raise UsageError(msg)
    return given


def role_of(capabilities: tuple[str, ...]) -> str:
    """Name a set of capabilities for people: the role that gives exactly these, or what they are."""
    for role, given in ROLES.items():
        if sorted(given) == sorted(capabilities):
            return role
    return ", ".join(sorted(capabilities)) or "nothing"
