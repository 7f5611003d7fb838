"""Making a mesh and joining one: what a program does once per device, before its node runs."""

import time
from pathlib import Path

from ..mesh.errors import UsageError
from ..mesh.identity import PeerId
from ..mesh.invites import read_code
from .config import load_config
from .home import Home


def create_mesh(home: str | Path, name: str) -> PeerId:
    """Make a mesh whose root key stays in this folder; returns its id. Raises UsageError if the folder is in one."""
    return Home(home).create_mesh(name).root


async def join_mesh(home: str | Path, code: str, *, interfaces: tuple[str, ...] = (), timeout_s: float = 20.0) -> str:
    """Join with an invite's code, found by mDNS alone; returns the mesh's name.

    Raises UsageError for a code that does not read or has expired, Refused when its holder says no, LinkError when
    nobody of that mesh is found.
    """
    from ..mesh.joining import join_mesh as join

    folder = Home(home)
    if folder.in_mesh:
        msg = f"The node in {folder.path} is already in the mesh {folder.credentials().mesh_name!r}."
        raise UsageError(msg)
    invite = read_code(code, time.time())
    with folder.locked():
        interfaces = interfaces or load_config(folder.path / "node.toml").interfaces
        try:
            credentials = await join(folder.identity(), invite, interfaces=interfaces, timeout_s=timeout_s)
        except BaseExceptionGroup as group:
            raise _only(group) from None
        folder.save_credentials(credentials)
    return credentials.mesh_name


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
