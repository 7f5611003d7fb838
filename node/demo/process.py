"""One real `lepton-node` process on this machine, driven through its command line and its control socket."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from ...mesh.errors import LeptonError
from ..control import Control

_START_TIMEOUT_S: Final = 60.0  # importing torch on a busy machine
_STOP_TIMEOUT_S: Final = 5.0
_POLL_S: Final = 0.1

COMMAND: Final = (sys.executable, "-m", "lepton.node")


class NodeProcess:
    """A node that was started as a user starts it, in a folder of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.control = Control(home)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return self.home.name

    async def command(self, *words: str, timeout_s: float = _START_TIMEOUT_S) -> str:
        """Run one command of the command line with this node's folder; returns what it printed.

        Raises LeptonError with what it said when it fails.
        """
        with trio.fail_after(timeout_s):
            done = await trio.run_process(
                [*COMMAND, *words, "--home", str(self.home)], capture_stdout=True, capture_stderr=True, check=False,
                env=_environment(), start_new_session=True,
            )  # fmt: skip
        if done.returncode:
            raise LeptonError(done.stderr.decode(errors="replace").strip() or f"{words[0]} failed")
        return done.stdout.decode()

    async def up(self) -> None:
        """Start the node and wait until it answers. Raises LeptonError with the end of its log when it does not."""
        with (self.home / "node.log").open("ab") as log:
            self.process = subprocess.Popen(  # noqa: ASYNC220 - it must outlive every nursery but `stopping`
                [*COMMAND, "up", "--home", str(self.home)], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env=_environment(), start_new_session=True,
            )  # fmt: skip
        with trio.move_on_after(_START_TIMEOUT_S):
            while self.process.poll() is None:
                try:
                    await self.status()
                except LeptonError:
                    await trio.sleep(_POLL_S)
                else:
                    return
        end = (self.home / "node.log").read_text(errors="replace")[-1000:]
        raise LeptonError(f"The node {self.name} did not come up; its log ends: {end}")

    async def status(self) -> dict[str, Any]:
        said, _ = await self.control.ask("status")
        return dict(said)

    async def stream(self, *words: str) -> AsyncIterator[Mapping[str, Any]]:
        """Run a command that prints JSON lines, and yield each as it comes. Raises LeptonError when it fails."""
        process = await trio.lowlevel.open_process(
            [*COMMAND, *words, "--home", str(self.home)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=_environment(), start_new_session=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            rest = b""
            async for piece in process.stdout:
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    yield json.loads(line)
            if await process.wait():
                raise LeptonError((await process.stderr.receive_some(4096)).decode(errors="replace").strip())
        finally:
            if process.poll() is None:
                process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()

    def kill(self) -> None:
        """Kill the process as a power cut would: SIGKILL, by its id."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Ask the process to end, and see that it does. Never raises: it is called on every way out."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@asynccontextmanager
async def stopping(nodes: list[NodeProcess]) -> AsyncIterator[None]:
    """See that none of these processes outlives the block, however it ends."""
    try:
        yield
    finally:
        for node in nodes:
            if node.process is not None and node.process.poll() is None:
                node.process.send_signal(signal.SIGINT)
        for node in nodes:
            node.stop()


def _environment() -> dict[str, str]:
    """Give every process one thread for arithmetic: several nodes share this machine's cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
