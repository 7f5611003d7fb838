"""Has a folder's code describe itself, in a process of its own: to read a class is to run what stands beside it."""

import sys
from pathlib import Path
from typing import Final

import msgspec
import trio

from ....mesh.errors import UsageError
from ..spec import ServiceSpec
from .environment import python_for
from .folder import read_manifest

_TIMEOUT_S: Final = 120.0  # to import torch from a slow card
_WORDS_MAX: Final = 2000  # of what the code said when it failed
# What the code prints goes to the other stream: the description alone comes back.
_PROGRAM: Final = """
import importlib, os, sys
back = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
import msgspec
from lepton.node.services.writing.declaring import declared
sys.path.insert(0, os.getcwd())
module, _, name = sys.argv[1].partition(":")
back.write(msgspec.json.encode(declared(getattr(importlib.import_module(module), name)).spec))
back.close()
"""


async def describe(folder: Path, *, environments: Path | None = None) -> ServiceSpec:
    """Return what a service is; one with requirements of its own is read where these are, made in ``environments``.

    Raises UsageError with what its code said when it cannot be read, DoesNotStart when the requirements cannot be had.
    """
    manifest = await trio.to_thread.run_sync(read_manifest, folder)
    python = sys.executable if environments is None else await python_for(folder, environments) or sys.executable
    command = [str(python), "-P", "-c", _PROGRAM, manifest.entry]
    with trio.move_on_after(_TIMEOUT_S) as scope:
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False, cwd=str(folder))
    if scope.cancelled_caught:
        raise UsageError(f"{folder}: {manifest.entry} is not imported after {_TIMEOUT_S:g} s.")
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-_WORDS_MAX:]
        raise UsageError(f"{folder}: {manifest.entry} cannot be read as a service:\n{said}")
    try:
        return msgspec.json.decode(done.stdout, type=ServiceSpec)
    except msgspec.MsgspecError as error:
        raise UsageError(f"{folder}: {manifest.entry} does not describe a service: {error}.") from error
