"""What a device does with its authority while its node runs, and while it does not: renew by the root key, revoke."""

import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..mesh.admission import JOIN_ANEW, Admission, Credentials
from ..mesh.errors import LeptonError, UsageError
from ..mesh.grants import Authority, authority_of, read_grant
from ..mesh.identity import PeerId
from ..mesh.renewal import Renewal, Renewer
from ..mesh.revocations import Revocations, revoke
from .home import Home
from .members import KnownMember, describe, grants_by
from .seeing.audit import Audit

if TYPE_CHECKING:  # the command line asks without loading what a node needs
    from ..mesh.mesh import Mesh


def current_credentials(home: Home, now: float) -> Credentials:
    """Return what makes this node a member, renewed with the root key if it is here and it is time, or too late."""
    held, root = home.credentials(), home.root()
    me = home.identity().peer_id
    if root is None or root.peer_id != held.root:
        return held
    # When it was last good, however long ago: what the root gave it may give again.
    then = authority_of(held.chain, root=held.root, subject=me, now=0.0)
    if not Renewal().is_due(then, now):
        return held
    renewer = Renewer(identity=home.identity(), chain=held.chain, authority=then, root=root)
    home.save_chain(renewer.renew(then, held.chain, now=now, serial=secrets.token_bytes(16)))
    return home.credentials()


def require_membership(home: Home, now: float) -> None:
    """Raise Refused, with what to do, when this device is no member any more: expired, or revoked."""
    Admission(current_credentials(home, now), home.identity().peer_id, now, home.revocations())


def thrown_out(home: Home, mesh: "Mesh") -> dict[str, Any] | None:
    """Say by whom, why and when (Unix seconds by the revoker's clock) this node was revoked; None while it was not."""
    if not (why := mesh.admission.ended):
        return None
    passes = [read_grant(grant).subject for grant in home.credentials().chain]
    found = [revoked for subject in passes for revoked in mesh.admission.revocations.counting.get(subject, ())]
    return {"why": why, "when": found[0].sentence.issued if found else None}


def why_out(home: Home) -> str:
    """Say that this device was thrown out, as its folder knows it while no node runs; nothing when it was not."""
    if not home.in_mesh:
        return ""
    held = home.credentials()
    why = Revocations(held.root, home.revocations()).why_not(held.chain)
    return f"This device was thrown out of the mesh {held.mesh_name!r}: {why} {JOIN_ANEW}" if why else ""


def show_running(home: Home, mesh: "Mesh", mesh_name: str) -> dict[str, Any]:
    """Return what `mesh show` shows, from a node that runs."""
    return describe(
        mesh_name=mesh_name,
        me=mesh.admission.me,
        chains=mesh.admission.members(),
        devices=devices_of(home, mesh),
        here=mesh.present,
        revocations=mesh.admission.revocations,
        root_key_here=home.root() is not None,
    )


def devices_of(home: Home, mesh: "Mesh") -> dict[PeerId, str]:
    """Return what devices call themselves, or did when they were last here."""
    from .picture import PROFILE, Profile

    devices = {PeerId(known.peer): known.device for known in home.members()}
    for owner in mesh.store.owners():
        record = mesh.store.find(PROFILE, "self", owner)
        if record is not None:
            try:
                devices[owner] = record.value(Profile).device
            except LeptonError:
                continue
    return devices


def known_members(home: Home, mesh: "Mesh") -> list[KnownMember]:
    """Return what is to be kept of all members; of the revoked only their names."""
    chains, devices = mesh.admission.members(), devices_of(home, mesh)
    gone = mesh.admission.revocations.counting.keys() & devices.keys()
    return [KnownMember(peer, devices.get(peer, "?"), chains.get(peer, ())) for peer in sorted(chains.keys() | gone)]


def revoke_running(mesh: "Mesh", subject: PeerId, *, reason: str, keep_invited: bool, disown: bool) -> None:
    """Throw somebody out, by a node that runs. Raises Refused when it may not."""
    chains = mesh.admission.members()
    kept = list(chains.values()) if keep_invited else [chains[mesh.me]]  # one does not throw out oneself by mistake
    mesh.revoke(subject, reason=reason, keeps=grants_by(subject, kept), disowns=disown)


def show_stopped(home: Home) -> dict[str, Any]:
    """Return what `mesh show` shows, from a folder whose node does not run."""
    held, me = home.credentials(), home.identity().peer_id
    known = home.members()
    revocations = Revocations(held.root, home.revocations())
    chains = {PeerId(its.peer): its.chain for its in known if its.chain and not revocations.why_not(its.chain)}
    own: Authority = authority_of(held.chain, root=held.root, subject=me, now=0.0)
    return describe(
        mesh_name=held.mesh_name,
        me=own,
        chains=chains | {me: held.chain},
        devices={PeerId(its.peer): its.device for its in known},
        here=(),
        revocations=revocations,
        root_key_here=home.root() is not None,
    )


def revoke_stopped(home: Home, subject: PeerId, *, reason: str, keep_invited: bool, disown: bool) -> None:
    """Throw somebody out while no node runs: it takes effect when this one meets others.

    Raises Refused when this device may not, UsageError when a node runs after all or no more revocations fit.
    """
    with home.locked():
        held, identity, root = home.credentials(), home.identity(), home.root()
        admission = Admission(held, identity.peer_id, time.time(), home.revocations())
        chains = [its.chain for its in home.members() if its.chain] if keep_invited else []
        item = revoke(
            root or identity,
            subject,
            root=held.root,
            reason=reason,
            now=time.time(),
            chain=() if root else held.chain,
            keeps=grants_by(subject, [*chains, held.chain]),
            disowns=disown,
        )
        if not admission.revocations.merge([item]):
            msg = "No more revocations fit under this device's authority. Sign with the root key."
            raise UsageError(msg)
        Audit(home.path).note("command", name="revoke", who=subject, detail=reason)
        home.save_revocations(admission.revocations.all)


def refusal_of(shown: Mapping[str, Any]) -> str:
    """Say why this device may not revoke; nothing when it may."""
    mine = next(member for member in shown["members"] if member["this"])
    if shown["root_key_here"] or "admin" in mine["capabilities"]:
        return ""
    return "This device may not revoke: that takes the role admin, or the root key. Ask an admin."
