"""Ctrl-C ends a command in whatever it is doing: cleanly, soon, without a traceback and without leaving a process."""

import random
import signal
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from lepton.node import create_mesh
from lepton.node.control import socket_path
from lepton.node.home import Home
from lepton.node.setup import open_invite

from .fakes import COMMAND, HERE, Process, Up, processes_of, run


def begun(folder: Path, *words: str | Path) -> Process:
    """A command that has got as far as our own code, and says so before it goes on."""
    program = "import sys; import lepton.node.__main__ as m; print('begun', flush=True); m.main(sys.argv[1:])"
    process = Process(folder, sys.executable, "-c", program, *words)
    process.until_said("begun")
    return process


@pytest.mark.parametrize("after_s", [0.0, 0.4, 1.2, 2.5])
def test_up_is_interrupted_while_it_starts(tmp_path: Path, after_s: float) -> None:
    home = tmp_path / "home"
    create_mesh(home, "home")
    process = begun(home, "up", "--home", home, *HERE)
    try:
        time.sleep(after_s + random.Random(after_s).random() / 10)  # wherever that is, on this machine
        process.signal(signal.SIGINT)
        assert process.ended() in {0, 130}
        assert "Traceback" not in process.err
    finally:
        process.end()
    with Home(home).locked():
        assert not socket_path(home).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_is_stopped(tmp_path: Path, number: signal.Signals) -> None:
    home = tmp_path / "home"
    create_mesh(home, "home")
    node = Up(home).ready()
    try:
        node.signal(number)
        assert node.ended() == 0
        assert node.out.endswith("Stopped.\n")
        assert "Traceback" not in node.err
    finally:
        node.end()
    assert not socket_path(home).exists()
    assert processes_of(tmp_path) == []


def test_join_is_interrupted(tmp_path: Path) -> None:
    create_mesh(tmp_path / "home", "home")
    code = open_invite(tmp_path / "home", role="member", uses=1, lifetime_s=600)
    other = tmp_path / "other"
    process = begun(other, "join", code, "--timeout", "600", "--home", other, *HERE)
    try:
        process.until((other / "identity.key").exists)  # it is about to search
        time.sleep(0.5)
        process.signal(signal.SIGINT)
        assert process.ended() == 130
        assert process.err == "lepton-node: interrupted\n"
    finally:
        process.end()
    assert not Home(other).in_mesh


@pytest.mark.parametrize("words", [("predict", "x", "--data", "x.npz"), ("status",), ("train", "x", "--data", "x")])
def test_a_command_is_interrupted_while_the_node_is_silent(
    tmp_path: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 4), np.float32))
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(socket_path(tmp_path)))
        silent.listen()
        process = begun(tmp_path / "command", *words, "--home", tmp_path)
        try:
            asker, _ = silent.accept()
            with asker:
                asker.recv(1)
                process.signal(signal.SIGINT)
                assert process.ended() == 130
                assert process.err == "lepton-node: interrupted\n"
        finally:
            process.end()


def test_a_node_that_stops_before_it_answers(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path(tmp_path)))
        listener.listen()
        process = Process(tmp_path / "command", *COMMAND, "status", "--home", tmp_path)
        try:
            listener.accept()[0].close()
            assert process.ended() == 1
            assert process.err == "lepton-node: The node stopped before it answered.\n"
        finally:
            process.end()
    assert run("status", home=tmp_path).returncode == 1
