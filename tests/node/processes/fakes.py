"""The command line as a user has it: real processes, their words, and what is left of them afterwards."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import trio
from lepton.node.control import Control

COMMAND = (sys.executable, "-m", "lepton.node")
HERE = ("--interface", "127.0.0.1")
PATIENCE_S = 120.0  # for what takes seconds: the machine may be busy
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}


def run(*words: str | Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, words), "--home", str(home)],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
        timeout=PATIENCE_S,
    )


def said(*words: str | Path, home: Path) -> str:
    """What a command that must succeed printed."""
    done = run(*words, home=home)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def assert_refused(done: subprocess.CompletedProcess[str], status: int, pattern: str) -> None:
    """The exit status, one sentence for the user that fits, and no traceback."""
    assert done.returncode == status, done.stderr
    assert re.search(pattern, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("lepton-node:") == 1, done.stderr


class Process:
    """A process that goes on while the test does, with its output in files."""

    def __init__(self, folder: Path, *command: str | Path, env: Mapping[str, str] = ENVIRONMENT) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._out, self._err = folder / "out.log", folder / "err.log"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            # In a session of its own: what a test interrupts is this process, as a terminal would, and not the test.
            self._popen = subprocess.Popen(
                [str(word) for word in command], stdout=out, stderr=err, env=dict(env), start_new_session=True
            )

    @property
    def out(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def err(self) -> str:
        return self._err.read_text(errors="replace")

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until something is so while the process lives; fails with what it said."""
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert self._popen.poll() is None, f"it ended: {self.out}\n{self.err}"
            assert time.monotonic() < end, f"it never came to that: {self.out}\n{self.err}"
            time.sleep(0.02)

    def until_said(self, text: str) -> None:
        self.until(lambda: text in self.out)

    def signal(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def ended(self) -> int:
        """Its exit status; the wait for it is bounded."""
        return self._popen.wait(PATIENCE_S)

    def end(self) -> None:
        """See that it is gone, whatever happened."""
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
            try:
                self._popen.wait(20)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()


# An owner's own model: a training of 100,000 rounds with it goes on for hours, and leaves the processor to others.
UNHURRIED = """
import time
from torch import nn

class Unhurried(nn.Sequential):
    def forward(self, x):
        time.sleep(0.01)
        return super().forward(x)

def model():
    return Unhurried(nn.Linear(10, 5))
"""
LONG = ("--model", "unhurried:model", "--rounds", "100000")  # for `train`, with nodes that were told of `unhurried`


def unhurried(folder: Path) -> tuple[tuple[str, str], dict[str, str]]:
    """Write that model's module. Returns what `up` is told of it, and the environment that finds it."""
    (folder / "unhurried.py").write_text(UNHURRIED, "utf-8")
    return ("--allow-model", "unhurried:model"), {**ENVIRONMENT, "PYTHONPATH": str(folder)}


class Up(Process):
    """`lepton-node up` on the loopback interface."""

    def __init__(self, home: Path, *words: str | Path, env: Mapping[str, str] = ENVIRONMENT) -> None:
        super().__init__(home, *COMMAND, "up", "--home", home, *HERE, *words, env=env)

    def ready(self) -> "Up":
        self.until_said("Ctrl-C stops it.")
        return self


def eventually(condition: Callable[[], object], *nodes: Process) -> None:
    """Wait until something is so; fails with what the nodes said."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "".join(node.err for node in nodes)
        time.sleep(0.1)


def here(home: Path) -> set[str]:
    """Whom a node sees: asked as `status --json` does, without a process for each look."""
    status, _ = trio.run(Control(home).ask, "status", {})
    return {peer["device"] for peer in status["peers"]}


def processes_of(folder: Path) -> list[str]:
    """The command lines of processes that still run with something in this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended meanwhile
            continue
        if str(folder) in line and path.parent.name != str(os.getpid()):
            found.append(line)
    return found


def write_example(folder: Path) -> tuple[Path, Path, Path, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """The mission's own example, 100 samples of 10 features in 5 classes: one-hot .csv, index .csv, .npz, features."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, 100)
    x = (rng.standard_normal((5, 10))[y] * 2 + rng.standard_normal((100, 10))).astype(np.float32)
    onehot, index, npz = folder / "onehot.csv", folder / "index.csv", folder / "example.npz"
    np.savetxt(onehot, np.hstack([x, np.eye(5)[y]]), delimiter=",", fmt="%.6g")
    header = ",".join([*(f"f{i}" for i in range(10)), "label"])
    np.savetxt(index, np.hstack([x, y[:, None]]), delimiter=",", fmt="%.6g", header=header, comments="")
    np.savez(npz, x=x, y=y)
    return onehot, index, npz, x
