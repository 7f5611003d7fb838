"""The environment of a bundle with requirements of its own: a venv, made once for each list of them.

It sees what the node has installed, Lepton among it, behind what the list asks for. It is made beside and renamed when
it is whole, so that a node that is killed in between leaves nothing half made that anybody would use.
"""

import hashlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from .. import surroundings
from ..errors import DoesNotStart
from .folder import REQUIREMENTS

ENVIRONMENTS: Final = "environments"  # where a node has them, in its folder for services
TIMEOUT_S: Final = 900.0  # for pip to fetch and unpack some hundred megabytes on an edge device
_LEFT_S: Final = 24 * 3600.0  # what is half made for so long nobody is making
_MAKING: Final = ".making-"
_LOG_BYTES_MAX: Final = 16 * 1024  # of what pip says: its last lines
_WORDS_MAX: Final = 1500
_READ_BYTES: Final = 4096
# A line that means the same for every bundle: a name with a version or an address, or a hash.
_PLAIN: Final = re.compile(
    rb"\s*(#|\\?$|--hash=|--(only|no|prefer)-binary\b|--require-hashes|--pre"
    rb"|[A-Za-z0-9][A-Za-z0-9._-]*\s*(\[[^]]*\]\s*)?([=<>~!]=|[<>;]|@\s*(https?|git\+https?|file)://))"
)
# What pip says of what went wrong, and the two that are met most.
_ERROR: Final = "ERROR: "
_OTHER_HASH: Final = re.compile(
    r"^ERROR: THESE PACKAGES DO NOT MATCH THE HASHES.*\n +(\S.*?)(?: ?@ \S+)? from ", re.MULTILINE
)
_NOT_THERE: Final = re.compile(r"^ERROR: No matching distribution found for (\S[^\n]{0,200})", re.MULTILINE)
# Behind the venv's own packages, and with the files through which packages are installed in place.
_BEHIND: Final = "import site; site.addsitedir({folder!r})\n"


async def python_for(folder: Path, cache: Path) -> Path | None:
    """Return the Python of a folder's own environment; None: it has no requirements. Raises DoesNotStart."""
    if not await trio.Path(folder / REQUIREMENTS).is_file():
        return None
    return await make_environment(folder, cache)


async def make_environment(folder: Path, cache: Path, *, timeout_s: float = TIMEOUT_S) -> Path:
    """Return the Python of the environment of a folder's ``requirements.lock``, made in ``cache`` if it is not there.

    Where the list has hashes pip demands one for everything. Raises DoesNotStart: the reason in one line, and under it
    pip's last words.
    """
    cache = await trio.to_thread.run_sync(cache.absolute)  # the service's process begins in another folder
    wanted = await trio.to_thread.run_sync((folder / REQUIREMENTS).read_bytes)
    key = _key(wanted, folder)
    python = cache / key / "bin" / "python"
    if python.exists():
        return python
    making = cache / f"{_MAKING}{secrets.token_hex(8)}"
    try:
        with trio.move_on_after(timeout_s) as scope:
            await trio.to_thread.run_sync(_prepare, cache)
            await _run([sys.executable, "-P", "-m", "venv", "--without-pip", str(making)], folder)
            await trio.to_thread.run_sync(_let_see, making)
            hashes = ["--require-hashes"] if b"--hash=" in wanted else []
            pip = [sys.executable, "-P", "-m", "pip", "--python", str(making / "bin" / "python"), "install", *hashes]
            quiet = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
            await _run([*pip, *quiet, "--requirement", str((folder / REQUIREMENTS).resolve())], folder)
        if scope.cancelled_caught:
            raise DoesNotStart(f"Its requirements were not installed within {timeout_s:g} s.")
        with suppress(OSError):  # another made the same meanwhile
            making.rename(cache / key)
        return python
    except OSError as error:
        raise DoesNotStart(f"{cache}: no environment can be made there: {error.strerror or error}.") from error
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(lambda: shutil.rmtree(making, ignore_errors=True))


def _key(wanted: bytes, folder: Path) -> str:
    """Return what an environment is called: what lies in a folder is another thing under the same name in another."""
    plain = all(map(_PLAIN.match, wanted.splitlines()))
    about = (wanted, sys.version.encode(), sys.prefix.encode(), b"" if plain else os.fsencode(folder.absolute()))
    return hashlib.sha256(b"\0".join(about)).hexdigest()[:32]


def _prepare(cache: Path) -> None:
    """Make the folder, without what was left half made by a node that was killed."""
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in cache.glob(f"{_MAKING}*"):
        if time.time() - left.stat().st_mtime > _LEFT_S:
            shutil.rmtree(left, ignore_errors=True)


def _let_see(venv: Path) -> None:
    """Let an environment see this interpreter's packages behind its own."""
    (packages,) = (venv / "lib").glob("python3.*/site-packages")
    folders = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "lepton-node.pth").write_text("".join(_BEHIND.format(folder=each) for each in folders), "utf-8")


async def _run(command: list[str], folder: Path) -> None:
    """Run one step in a process group of its own, and in the bundle's folder: the node's own may be anybody's.

    Raises DoesNotStart with its last lines.
    """
    process = await trio.lowlevel.open_process(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        cwd=folder,
        env=surroundings.for_pip(),
    )
    said: deque[bytes] = deque(maxlen=_LOG_BYTES_MAX // _READ_BYTES)
    try:
        assert process.stdout is not None
        async with process.stdout as stream:
            while data := await stream.receive_some(_READ_BYTES):
                said.append(bytes(data))
        status = await process.wait()
    finally:
        with trio.CancelScope(shield=True), suppress(ProcessLookupError):
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if status:
        words = b"".join(said).decode(errors="replace").strip()
        why = why_not(words) or f"status {status}"
        raise DoesNotStart(f"Its requirements could not be installed: {why}\n{words[-_WORDS_MAX:]}")


def why_not(words: str) -> str:
    """Return the reason in what pip said, as one sentence: others see little more. Nothing where it gave none."""
    errors = [line.removeprefix(_ERROR).strip() for line in words.splitlines() if line.startswith(_ERROR)]
    if not errors:
        return ""
    if (found := _OTHER_HASH.search(words)) is not None:
        return f"{found[1]} is not what its --hash says; another file, or an outdated list."
    if (found := _NOT_THERE.search(words)) is not None:
        return f"{found[1]} is not to be had where this device gets packages."
    return errors[-1]
