"""What a user gets wrong, or a disk, is one clear sentence and an exit status, and costs nothing else."""

import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lepton.mesh.identity import Identity
from lepton.node import create_mesh
from lepton.node.home import Home
from lepton.node.setup import open_invite

from .fakes import HERE, assert_refused, run


@pytest.fixture
def home(tmp_path: Path) -> Path:
    create_mesh(tmp_path / "home", "home")
    return tmp_path / "home"


def misspell(home: Path) -> tuple[str, ...]:
    (home / "node.toml").write_text('[serve]\nmemroy = "1GB"\n')
    return ()


def shape_wrongly(home: Path) -> tuple[str, ...]:
    np.savez(home / "part.npz", x=np.zeros((3, 4), np.float32), y=np.zeros(4, np.int64))
    return ("--data", f"digits={home / 'part.npz'}")


def corrupt(home: Path) -> tuple[str, ...]:
    path = home / "identity.key"
    path.write_bytes(path.read_bytes()[:-7])
    return ()


def forget(home: Path) -> tuple[str, ...]:
    (home / "mesh.json").unlink()
    return ()


def expire(home: Path) -> tuple[str, ...]:
    """Put another node's grant in place of this one's: as after a folder was pieced together from backups."""
    (home / "identity.key").unlink()
    Home(home)._write_key("identity.key", Identity.generate())
    return ()


@pytest.mark.parametrize(
    ("damage", "status", "pattern"),
    [
        (misspell, 2, r"node.toml: there is no key 'serve.memroy'. Did you mean 'serve.memory'\?"),
        (shape_wrongly, 2, r"part.npz: `x` has 3 rows, `y` has 4; each sample needs its label"),
        (corrupt, 2, r"The identity file .*identity.key is damaged .* Restore it from a backup; or move it away"),
        (forget, 2, r"belongs to no mesh yet. Make one \(`lepton-node mesh create NAME`\) or join one"),
        (expire, 1, r"showed a grant that belongs to"),
        (lambda _: ("--memory", "lots"), 2, r"'lots' is not a size; write a number and B, kB"),
        (lambda _: ("--data", "digits"), 2, r"--data takes NAME=FILE"),
        (lambda _: ("--data", "Digits=x.npz"), 2, r"'Digits' cannot name a data set"),
        (lambda _: ("--interface", "203.0.113.7"), 2, r"203.0.113.7"),
        (lambda _: ("--listen", "127.0.0.1"), 2, r"127.0.0.1"),
    ],
)
def test_up_says_what_is_wrong(
    home: Path, damage: Callable[[Path], tuple[str, ...]], status: int, pattern: str
) -> None:
    words = damage(home)
    before = {path.name: path.read_bytes() for path in home.iterdir() if path.is_file()}
    done = run("up", *(words if "--interface" in words else (*HERE, *words)), home=home)
    assert_refused(done, status, pattern)
    after = {path.name: path.read_bytes() for path in home.iterdir() if path.is_file()}
    kept = {name: data for name, data in after.items() if name in before and name not in {"state.json", "lock"}}
    assert kept == {name: data for name, data in before.items() if name not in {"state.json", "lock"}}


def test_a_port_that_is_taken_is_named(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("up", *HERE, "--listen", f"127.0.0.1:{port}", home=home)
    assert_refused(done, 2, f"Port {port} on 127.0.0.1 is taken by another program; choose another, or 0 for any")


def test_an_invite_that_nobody_here_gave_is_refused_after_a_search(home: Path, tmp_path: Path) -> None:
    code = open_invite(home, role="member", uses=1, lifetime_s=60)
    done = run("join", code, *HERE, "--timeout", "1", home=tmp_path / "other")
    # Somebody else's nodes may be on this machine too.
    assert_refused(done, 1, "No node (was seen within 1 s. Is the node that gave the invite running|that was asked)")
    assert not Home(tmp_path / "other").in_mesh


@pytest.mark.parametrize("command", ["status", "down", "train x --data y", "export x --out y"])
def test_commands_without_a_node_say_how_to_start_one(tmp_path: Path, command: str) -> None:
    done = run(*command.split(), home=tmp_path)
    assert_refused(done, 1, "No node runs with the folder .* Start it with `lepton-node up`")


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("mesh", "create", "home", home=tmp_path / "file" / "home")
    assert_refused(done, 2, "Cannot make the data folder .* Choose another with --home")
