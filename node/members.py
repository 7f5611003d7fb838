"""Who belongs to the mesh as this device knows it: shown by `mesh show`, and searched for whom `revoke` means.

What a device is called is its own claim and no proof of anything; whoever throws a device out is shown its id, its role
and through whom it came in.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from ..mesh.errors import PeerError, UsageError
from ..mesh.grants import Authority, Grant, read_grant, role_of
from ..mesh.identity import PeerId, public_key_of, short
from ..mesh.revocations import Revocations, grant_id

_SHORT_LEAST: Final = 3  # characters of a short id: fewer name too many

Chain = tuple[Grant, ...]


class KnownMember(msgspec.Struct, frozen=True):
    """What is kept of a member that may be away: a stolen device mostly is."""

    peer: str
    device: str
    chain: Chain


def through(chain: Chain) -> list[PeerId]:
    """Whom a chain passes through between the root and its subject, the inviter last."""
    return [read_grant(grant).subject for grant in chain[:-1]]


def grants_by(issuer: PeerId, chains: Iterable[Chain]) -> tuple[bytes, ...]:
    """Return the ids of the grants in these chains that somebody gave: what a revocation of it may keep."""
    found = {grant_id(grant) for chain in chains for grant in chain if read_grant(grant).issuer == issuer}
    return tuple(sorted(found))


def describe(
    *,
    mesh_name: str,
    me: Authority,
    chains: Mapping[PeerId, Chain],
    devices: Mapping[PeerId, str],
    here: Iterable[PeerId],
    revocations: Revocations,
    root_key_here: bool,
) -> dict[str, Any]:
    """Return what `mesh show` shows, as plain data."""
    present = {me.subject, *here}
    return {
        "mesh": mesh_name,
        "id": revocations.root,
        "me": me.subject,
        "role": role_of(me.capabilities),
        "expires": me.expires,
        "root_key_here": root_key_here,
        "members": [
            _member(peer, chain, devices.get(peer, "?"), revocations.root)
            | {"here": peer in present, "this": peer == me.subject}
            for peer, chain in sorted(chains.items())
        ],
        "revoked": [
            {
                "id": subject,
                "device": devices.get(subject, "?"),
                "by": found[0].sentence.issuer,
                "reason": found[0].sentence.reason,
                "issued": found[0].sentence.issued,
            }
            for subject, found in sorted(revocations.counting.items())
        ],
    }


def _member(peer: PeerId, chain: Chain, device: str, root: PeerId) -> dict[str, Any]:
    last = read_grant(chain[-1])
    return {
        "id": peer,
        "device": device,
        "role": role_of(last.capabilities),
        "capabilities": list(last.capabilities),
        "invited_by": last.issuer,
        "through": through(chain),
        "by_root": last.issuer == root,
        "expires": min(read_grant(grant).expires for grant in chain),
    }


def find(text: str, shown: Mapping[str, Any]) -> dict[str, Any]:
    """Return the member that a text names: a peer id, the short form or its beginning, or a device's name.

    Raises UsageError when it names nobody, several, or somebody that was revoked already.
    """
    found = [member for member in shown["members"] if _is_meant(text, member)]
    if len(found) == 1:
        member: dict[str, Any] = found[0]
        return member
    if found:
        names = ", ".join(f"{short(member['id'])} ({member['device']})" for member in found)
        msg = f"{text!r} may mean {names}; name one by its id."
        raise UsageError(msg)
    if any(_is_meant(text, gone) for gone in shown["revoked"]):
        msg = f"{text!r} was revoked already; `lepton-node mesh show` says when and why."
        raise UsageError(msg)
    try:
        public_key_of(text)
    except PeerError as error:
        msg = f"No member is called {text!r}; `lepton-node mesh show` lists those that this device knows."
        raise UsageError(msg) from error
    return {"id": text, "device": "?", "role": "never seen here", "this": False, "invited_by": ""}


def _is_meant(text: str, member: Mapping[str, Any]) -> bool:
    begins = len(text) >= _SHORT_LEAST and short(member["id"]).startswith(text)
    return text in {member["id"], member["device"]} or begins


def guests_of(peer: str, shown: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return who came in through a member, this device left out."""
    return [member for member in shown["members"] if peer in member["through"] and not member["this"]]


def names(members: Sequence[Mapping[str, Any]]) -> str:
    """Name members for people."""
    return ", ".join(f"{member['device']} ({short(member['id'])})" for member in members)


def named(text: str, devices: Mapping[PeerId, str]) -> str:
    """Return a sentence with devices' names in place of short ids; a name that several have stands beside its id."""
    shared = Counter(devices.values())
    called = {short(peer): name if shared[name] == 1 else f"{name} ({short(peer)})" for peer, name in devices.items()}
    return re.sub(r"\b\w{8}\b", lambda found: called.get(found[0], found[0]), text, flags=re.ASCII)
