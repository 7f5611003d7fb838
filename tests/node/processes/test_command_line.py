"""Two devices from nothing to answers, by the commands that a user types."""

import contextlib
import json
import os
import pty
import re
import signal
import stat
import subprocess
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from lepton.node.control import socket_path
from lepton.node.export import load_model

from .fakes import (
    COMMAND,
    HERE,
    LONG,
    PATIENCE_S,
    Process,
    Up,
    assert_refused,
    processes_of,
    run,
    said,
    unhurried,
    write_example,
)


@dataclass
class Pair:
    """Two nodes that are up in one mesh, and the invite that the second one used."""

    folder: Path
    one: Path
    two: Path
    used: str


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    onehot, index, npz, _ = write_example(folder)
    allow, env = unhurried(folder)
    one, two = folder / "one", folder / "two"
    first = second = None
    try:
        assert "Made the mesh 'home'" in said("mesh", "create", "home", home=one)
        before = run("invite", home=one)  # before any node runs: honoured once one does
        assert "No node runs here: start it" in before.stderr
        data = ("--data", f"example={onehot}@onehot:5", "--data", f"npz={npz}")
        first = Up(one, "--name", "kitchen", *data, *allow, env=env).ready()
        used = before.stdout.strip()
        assert "Joined the mesh 'home'" in said("join", used, *HERE, home=two)
        second = Up(two, "--name", "attic", "--data", f"example={index}", *allow, env=env).ready()
        end = time.monotonic() + 60
        while len(json.loads(said("status", "--json", home=one))["peers"]) < 2:
            assert time.monotonic() < end, first.err + second.err
        yield Pair(folder, one, two, used)
        assert said("down", home=one) == "The node is stopping."
        assert first.ended() == 0
        assert first.out.endswith("Stopped.\n")
        second.signal(signal.SIGTERM)
        assert second.ended() == 0
        for home, node in ((one, first), (two, second)):
            assert "Traceback" not in node.err
            assert not socket_path(home).exists()
        assert processes_of(folder) == []
    finally:
        for process in (first, second):
            if process is not None:
                process.end()


def test_status_shows_who_is_here(pair: Pair) -> None:
    status = json.loads(said("status", "--json", home=pair.one))
    assert status["mesh"] == "home"
    assert {peer["device"]: peer["data"] for peer in status["peers"]} == {
        "kitchen": ["example", "npz"],
        "attic": ["example"],
    }
    table = said("status", home=pair.two)
    assert "kitchen" in table
    assert "(this)" in table
    assert stat.S_IMODE(socket_path(pair.one).stat().st_mode) == 0o600


def train(home: Path, name: str, data: str, *words: str) -> None:
    *progress, result = said("train", name, "--data", data, "--rounds", "30", "--json", *words, home=home).splitlines()
    told = [json.loads(line) for line in progress]
    rounds = [item["round"]["round"] for item in told if "round" in item]
    assert rounds == list(range(1, 31))  # one line each, however fast they are
    assert json.loads(result)["version"] >= 1
    assert all(node["state"] == "done" for node in json.loads(result)["nodes"].values())


def test_the_missions_example_is_learned_answered_and_exported(pair: Pair) -> None:
    train(pair.two, "example", "example", "--hidden", "20", "--classes", "5")  # one has it one-hot, two as numbers
    done = run("predict", "example", "--data", pair.folder / "index.csv", "--target", "label", home=pair.one)
    assert done.returncode == 0, done.stderr
    right = re.search(r"(\d+) of 100 right", done.stdout)
    assert right is not None
    assert int(right[1]) >= 90
    onehot = ("--data", str(pair.folder / "onehot.csv"), "--target", "onehot:5")
    classes = json.loads(said("predict", "example", *onehot, "--json", home=pair.two))
    assert len(classes) == 100
    answers, model = pair.folder / "answers.npy", pair.folder / "model.safetensors"
    said("predict", "example", "--data", pair.folder / "example.npz", "--out", answers, home=pair.two)
    said("export", "example", "--out", model, home=pair.one)
    x = np.load(pair.folder / "example.npz")["x"]
    with torch.inference_mode():
        whole = load_model(model).probabilities(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(np.load(answers), whole, rtol=0, atol=1e-5)
    assert [int(row.argmax()) for row in whole] == classes
    assert "served" in said("status", home=pair.one)


def test_an_npz_of_one_node_alone_and_plain_lines(pair: Pair) -> None:
    lines = said("train", "alone", "--data", "npz", "--rounds", "5", "--activation", "relu", "--plain", home=pair.one)
    assert re.findall(r"^round (\d+)/5: loss [0-9.]+, ", lines, re.MULTILINE) == ["1", "2", "3", "4", "5"]
    assert "done 5/5" in lines
    assert "'alone' is trained: version 1, 5 rounds." in lines


def test_a_task_from_a_file_with_its_policy_and_curves(pair: Pair) -> None:
    file, picture = pair.folder / "task.toml", pair.folder / "curves.png"
    file.write_text('name = "filed"\ndata = "npz"\n[model]\nhidden_activation = "relu"\n[budget]\nrounds = 9\n')
    lines = said("train", file, "--rounds", "4", "--plain", "--plot", picture, home=pair.one)
    assert "4/4" in lines
    assert "Policy: trusted" in lines
    assert "'filed' is trained: version 1, 4 rounds." in lines
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "trusted" in said("status", home=pair.one)
    (task,) = [task for task in json.loads(said("status", "--json", home=pair.one))["tasks"] if task["name"] == "filed"]
    assert task["policy"] == "trusted"
    file.write_text('name = "filed"\ndata = "npz"\n[budget]\nruonds = 9\n')
    done = run("train", file, home=pair.one)
    assert done.returncode == 2
    assert f"{file}: there is no key 'budget.ruonds'. Did you mean 'budget.rounds'?" in done.stderr


@pytest.mark.parametrize(
    ("words", "status", "pattern"),
    [
        (("train", "x"), 2, "Which data is 'x' learned from\\? Say --data NAME"),
        (("train", "x", "--data", "npz", "--plot", "x.gif"), 2, "name a .png file"),
        (("train", "x", "--data", "npz", "--policy", "privat"), 2, "policy cannot be 'privat'. Did you mean 'private'"),
        (("train", "x", "--data", "npz", "--policy", "private"), 2, "a private task needs 3 members"),
        (("train", "x", "--data", "exampel"), 2, "No node that is here has a data set 'exampel'. Did you mean 'exam"),
        (("train", "X!", "--data", "example"), 2, "'X!' cannot name a task"),
        (("train", "x", "--data", "npz", "--model", "rnn"), 2, r"model.architecture cannot be 'rnn'"),
        (("train", "x", "--data", "npz", "--rounds", "0"), 2, "The task 'x': budget.rounds: Expected"),
        (("predict", "exampel", "--data", "example.npz"), 2, "No model 'exampel' is served in this mesh."),
        (("predict", "example", "--data", "nothing.npz"), 2, "nothing.npz: no such file"),
        (("export", "exampel", "--out", "x"), 2, "No model 'exampel'"),
        (("invite", "--role", "king"), 2, "There is no role 'king'; choose one of client"),
        (("invite", "--expires", "soon"), 2, "'soon' is not a time; write a number and s, m, h or d"),
        (("up",), 2, "A node already runs with the folder"),
        (("mesh", "create", "home"), 2, "is already in the mesh 'home'"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    pair: Pair, words: tuple[str, ...], status: int, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pair.folder)
    assert_refused(run(*words, home=pair.one), status, pattern)


def test_an_answer_that_cannot_be_written_is_a_sentence(pair: Pair) -> None:
    train(pair.one, "small", "npz")
    out = pair.folder / "no" / "folder.npy"
    done = run("predict", "small", "--data", pair.folder / "example.npz", "--out", out, home=pair.one)
    assert_refused(done, 2, "folder.npy: cannot be written: No such file or directory")
    assert_refused(run("export", "small", "--out", out, home=pair.one), 1, "folder.npy: cannot be written")


def test_invites_are_good_once_and_for_a_while(pair: Pair, tmp_path: Path) -> None:
    brief = said("invite", "--expires", "1s", home=pair.one)
    done = run("join", pair.used, *HERE, home=tmp_path / "third")
    assert_refused(done, 1, "This invite was used already; ask for a new one")
    done = run("join", pair.used[:-1] + ("X" if pair.used[-1] != "X" else "Y"), *HERE, home=tmp_path / "third")
    assert_refused(done, 2, "not an invite code, or a character of it is wrong: .* nothing was sent")
    time.sleep(1.1)  # what is under test here
    assert_refused(run("join", brief, *HERE, home=tmp_path / "third"), 1, "This invite has expired; ask for")
    assert_refused(run("join", pair.used, *HERE, home=pair.two), 2, "is already in the mesh 'home'")
    done = run("join", brief, "--at", "kitchen", home=tmp_path / "third")
    assert_refused(done, 2, "'kitchen' is no address of a node; it looks like 192.0.2.1:4001, kitchen.local:4001")
    fresh = run("invite", home=pair.two)  # a member may not
    assert_refused(fresh, 1, "may not invite a member: it lacks the capability invite")


def test_a_device_joins_at_an_address_with_a_code_typed_by_hand(pair: Pair, tmp_path: Path) -> None:
    """No mDNS: the code in small letters and without its dashes, an O for a zero, and the node's address."""
    code = said("invite", "--role", "client", home=pair.one)
    address = json.loads(said("status", "--json", home=pair.one))["addresses"][0].split("/")
    typed = code.lower().replace("-", "").replace("0", "O")
    place = f"localhost:{address[-1]}"
    assert "Joined the mesh 'home'" in said("join", typed, "--at", place, home=tmp_path / "third")
    assert stat.S_IMODE((pair.one / "invites.json").stat().st_mode) == 0o600


def test_a_terminal_shows_a_code_to_scan_and_what_to_do_next(pair: Pair) -> None:
    ours, theirs = pty.openpty()
    # A window: rich and click measure it.
    termios.tcsetwinsize(theirs, (40, 100))
    done = subprocess.run([*COMMAND, "invite", "--home", str(pair.one)], stdout=theirs, check=False, timeout=PATIENCE_S)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while block := os.read(ours, 65536):
            shown += block
    os.close(ours)
    assert done.returncode == 0
    code, *rest = shown.decode().splitlines()
    assert re.fullmatch(r"[0-9A-Z]{4}-[0-9A-Z]{4}-[0-9A-Z]{4}", code)
    assert any("\u2588" in line for line in rest)
    assert rest[-1] == f"On the other device, within 1h: `lepton-node join {code}`. Tell the code to nobody else."


def test_an_interrupt_ends_the_watching_and_not_the_training(pair: Pair) -> None:
    words = ("train", "long", "--data", "example", *LONG, "--plain")
    watching = Process(pair.folder / "watching", *COMMAND, *words, "--home", pair.one)
    try:
        watching.until(lambda: "training" in watching.out)
        watching.signal(signal.SIGINT)
        assert watching.ended() == 130
        assert watching.err == "lepton-node: interrupted\n"
    finally:
        watching.end()

    def rounds() -> int:
        tasks = json.loads(said("status", "--json", home=pair.two))["tasks"]
        (task,) = (task for task in tasks if task["name"] == "long")
        return max(int(node.get("round", 0)) for node in task["nodes"].values())

    first, end = rounds(), time.monotonic() + 60
    while rounds() <= first:
        assert time.monotonic() < end, "the training must go on"
