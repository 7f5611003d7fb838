"""Ours and other implementations of libp2p, both ways: 32 MiB each way and 50 short streams, over Noise and over TLS.

js-libp2p is installed by npm, in the versions named here, into the user's cache folder; without npm or network these tests skip.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from lepton.mesh.transport import NOISE, TLS, Connection, PeerId, Transport

pytestmark = pytest.mark.trio
Node = Callable[..., Any]

BULK = os.urandom(32 * 1024 * 1024)
SHORT = 50
PACKAGES = {
    "libp2p": "3.3.11",
    "@libp2p/tcp": "11.0.28",
    "@libp2p/tls": "3.1.10",
    "@chainsafe/libp2p-noise": "17.0.0",
    "@chainsafe/libp2p-yamux": "8.0.1",
}


async def exchange(connection: Connection) -> None:
    """Echo a lot through one stream, and a little through many."""
    with trio.fail_after(120):
        await _echo(connection, BULK)
        for count in range(SHORT):
            await _echo(connection, b"short %d" % count)


async def _echo(connection: Connection, data: bytes) -> None:
    stream = await connection.open_stream("/echo")

    async def send() -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        into, at = bytearray(len(data)), 0
        while at < len(data) and (size := await stream.receive_into(memoryview(into)[at:])):
            at += size
    assert into == data
    assert await stream.receive_some() == b""
    await stream.aclose()


@pytest.fixture(scope="session")
def js_root() -> Path:
    """The folder with the installed packages."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("js-libp2p is not tried: this machine has no Node.js with npm")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = cache / "lepton-tests" / "js-libp2p"
    wanted = json.dumps({"private": True, "dependencies": PACKAGES}, indent=1)
    manifest = root / "package.json"
    if not (root / "installed").exists() or (root / "installed").read_text() != wanted:
        root.mkdir(parents=True, exist_ok=True)
        manifest.write_text(wanted)
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
        found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=240)
        if found.returncode:
            pytest.skip(f"js-libp2p is not tried: npm could not install it ({found.stderr.strip()[-200:]})")
        (root / "installed").write_text(wanted)
    return root


@asynccontextmanager
async def peer(*command: str) -> AsyncIterator[trio.Process]:
    """Another implementation in a process of its own."""
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            lambda task_status: trio.run_process(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, check=False, task_status=task_status
            )
        )
        yield process
        assert process.stdin
        await process.stdin.aclose()
        with trio.move_on_after(5) as scope:
            await process.wait()
        if scope.cancelled_caught:
            nursery.cancel_scope.cancel()


async def line(process: trio.Process) -> str:
    assert process.stdout
    text = b""
    while not text.endswith(b"\n"):
        text += await process.stdout.receive_some(4096) or b" (it ended)\n"
    return text.decode().strip()


async def both_ways(ours: Transport, process: trio.Process) -> None:
    with trio.fail_after(120):
        address = await line(process)
        connection = await ours.dial(PeerId(address.rsplit("/", 1)[1]), [address], timeout_s=10)
        await exchange(connection)
        await connection.aclose()
        assert process.stdin
        await process.stdin.send_all(f"{ours.addresses[0]}/p2p/{ours.peer_id}\n".encode())
        assert await line(process) == "ok"


@pytest.mark.parametrize("security", [NOISE, TLS])
async def test_stock_py_libp2p_both_ways(node: Node, security: str) -> None:
    ours = await node(security=[security])
    async with peer(sys.executable, str(Path(__file__).with_name("stock_peer.py")), security) as process:
        await both_ways(ours, process)


@pytest.mark.parametrize("security", [NOISE, TLS])
async def test_js_libp2p_both_ways(node: Node, js_root: Path, security: str) -> None:
    script = js_root / "peer.mjs"  # beside its packages, where Node.js looks for them
    shutil.copy(Path(__file__).with_name("js_peer.mjs"), script)
    ours = await node(security=[security])
    async with peer("node", str(script), security) as process:
        await both_ways(ours, process)
