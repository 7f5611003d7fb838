"""Making a mesh and joining one: what a program does once per device, before its node runs."""

import secrets
import time
from pathlib import Path

from ..mesh.codes import ENTROPY_BYTES, read_code
from ..mesh.errors import UsageError
from ..mesh.grants import authority_of
from ..mesh.identity import PeerId
from .config import load_config
from .home import Home
from .seeing.audit import Audit, invited


def create_mesh(home: str | Path, name: str) -> PeerId:
    """Make a mesh whose root key stays in this folder; returns its id. Raises UsageError if the folder is in one."""
    return Home(home).create_mesh(name).root


def open_invite(home: str | Path, *, role: str, uses: int, lifetime_s: float) -> str:
    """Open an invite while no node runs in this folder; it is honoured once one does. Returns the code.

    Raises UsageError when a node runs (ask it instead) or for bad values, Refused when this device may not invite.
    """
    folder = Home(home)
    with folder.locked():
        credentials, book, now = folder.credentials(), folder.invites(), time.time()
        me = folder.identity().peer_id
        held = authority_of(credentials.chain, root=credentials.root, subject=me, now=now).capabilities
        code = book.give(
            held=held,
            role=role,
            uses=uses,
            now=now,
            lifetime_s=lifetime_s,
            entropy=secrets.token_bytes(ENTROPY_BYTES),
        )
        folder.save_invites(book)
    Audit(folder.path).note("invited", detail=invited(role, uses, lifetime_s))
    return str(code)


async def join_mesh(
    home: str | Path,
    code: str,
    *,
    interfaces: tuple[str, ...] = (),
    at: str | None = None,
    timeout_s: float = 20.0,
) -> str:
    """Join with an invite's code, found by mDNS or at one node's address; returns the mesh's name.

    ``at`` is ``host:port`` or a multiaddr, for networks without mDNS. Raises UsageError for a code or an address that
    does not read, Refused when the invite's holder says no, LinkError when nobody is found.
    """
    from ..mesh.joining import join_mesh as join
    from ..mesh.tcp import parse_place

    folder = Home(home)
    if folder.in_mesh and not _has_expired(folder):
        msg = f"The node in {folder.path} is already in the mesh {folder.credentials().mesh_name!r}."
        raise UsageError(msg)
    typed, places = read_code(code), () if at is None else (parse_place(at),)
    with folder.locked():
        interfaces = interfaces or load_config(folder.path / "node.toml").interfaces
        try:
            joined = await join(folder.identity(), typed, interfaces=interfaces, at=places, timeout_s=timeout_s)
        except BaseExceptionGroup as group:
            raise _only(group) from None
        if folder.in_mesh:
            folder.rejoin(joined.credentials)
        else:
            folder.save_credentials(joined.credentials)
        folder.add_revocations(joined.revocations)
    return joined.credentials.mesh_name


def _has_expired(folder: Home) -> bool:
    """Whether the grant in a folder has run out: then a new invite of the same mesh takes its place."""
    held, me = folder.credentials(), folder.identity().peer_id
    return time.time() >= authority_of(held.chain, root=held.root, subject=me, now=0.0).expires


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
