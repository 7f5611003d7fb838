"""A data folder keeps its secrets, says which file is damaged, and never overwrites what it could not read."""

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from lepton.mesh.admission import Credentials
from lepton.mesh.errors import LeptonError, UsageError
from lepton.mesh.grants import ROLES
from lepton.mesh.identity import Identity
from lepton.mesh.invites import InviteBook
from lepton.mesh.records import RecordStore, open_record
from lepton.mesh.revocations import Revocation, revoke
from lepton.node import files
from lepton.node.home import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A folder in which a mesh was made, an invite was given and a record was kept."""
    made = Home(tmp_path / "home")
    made.create_mesh("home")
    book = InviteBook()
    book.give(held=ROLES["admin"], now=time.time(), entropy=bytes(7))
    made.save_invites(book)
    made.next_incarnation()
    store = RecordStore(made.identity(), 1)
    store.publish("task", "digits", {"rounds": 3}, durable=True)
    store.publish("stage", "digits", {"first": 0})
    made.save_records(store.durable())
    return made


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "lock"}


def test_everything_comes_back(home: Home) -> None:
    again = Home(home.path)
    assert again.identity().peer_id == home.identity().peer_id
    assert again.credentials() == home.credentials()
    root = again.root()
    assert root is not None
    assert root.peer_id == again.credentials().root
    assert len(again.invites().snapshot()) == 1
    (record,) = again.records()
    assert open_record(record).name == "digits"
    assert [again.next_incarnation() for _ in range(3)] == [2, 3, 4]


def test_only_the_owner_may_read(home: Home) -> None:
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    for path in home.path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
    home.path.joinpath("identity.key").chmod(0o644)  # as some backup would
    home.identity()
    assert stat.S_IMODE(home.path.joinpath("identity.key").stat().st_mode) == 0o600


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut short": lambda data: data[: len(data) // 2],
    "one character": lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
    "noise": lambda _: b"\xff\x00" * 40,
    "something else": lambda _: b"{}",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["identity.key", "root.key"])
def test_a_damaged_key_is_named_and_left_alone(home: Home, name: str, damage: str) -> None:
    path = home.path / name
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    before = snapshot(home.path)
    with pytest.raises(UsageError, match=r"The identity file .*\.key is damaged .* Restore it from a backup; or move"):
        home.identity() if name == "identity.key" else home.root()
    assert snapshot(home.path) == before


READERS: dict[str, Callable[[Home], object]] = {
    "mesh.json": Home.credentials,
    "invites.json": Home.invites,
    "state.json": Home.next_incarnation,
}


@pytest.mark.parametrize("damage", ["empty", "cut short", "noise"])
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_named_and_left_alone(home: Home, name: str, damage: str) -> None:
    path = home.path / name
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    before = snapshot(home.path)
    with pytest.raises(UsageError, match=f"The file .*{name} is damaged .* Restore it from a backup or move it away"):
        READERS[name](home)
    assert snapshot(home.path) == before


def test_a_mesh_file_that_names_no_root_is_damaged(home: Home) -> None:
    path = home.path / "mesh.json"
    said = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(said | {"root": "nobody"}))
    with pytest.raises(UsageError, match="'nobody' is not the peer id"):
        home.credentials()


def test_damaged_records_are_set_aside(home: Home) -> None:
    path = home.path / "records.msgpack"
    for damaged in (b"\x00", b"\x91\x92\xc4\x01x\xc4\x40" + bytes(64)):  # no list; a forged record
        path.write_bytes(damaged)
        assert home.records() == []
        assert not path.exists()
        assert (home.path / "records.damaged").read_bytes() == damaged
    assert home.records() == []


def test_damaged_members_stay_until_others_take_their_place(home: Home) -> None:
    path = home.path / "members.msgpack"
    path.write_bytes(b"\x00")
    assert home.members() == []
    assert path.read_bytes() == b"\x00"  # a command that only looks moves nothing
    home.save_members([])
    assert (home.path / "members.damaged").read_bytes() == b"\x00"
    assert home.members() == []


def revocations(home: Home) -> list[Revocation]:
    root = home.root()
    assert root is not None
    return [
        revoke(root, Identity.generate().peer_id, root=root.peer_id, reason=f"lost {n}", now=1.8e9) for n in range(2)
    ]


def test_revocations_come_back(home: Home) -> None:
    assert home.revocations() == []
    kept = revocations(home)
    home.save_revocations(kept[:1])
    assert home.revocations() == kept[:1]
    home.add_revocations(kept)  # as after joining again: what was known stays
    assert set(home.revocations()) == set(kept)


def test_damaged_revocations_are_never_passed_over(home: Home, tmp_path: Path) -> None:
    """To go on without them would let in who was thrown out."""
    path = home.path / "revocations.msgpack"
    home.save_revocations(revocations(home))
    whole = path.read_bytes()
    other = Home(tmp_path / "other")
    other.create_mesh("other")
    other.save_revocations(revocations(other))
    of_another_mesh = (other.path / "revocations.msgpack").read_bytes()
    for damaged in (b"", whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b"\x00", of_another_mesh):
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match=r"revoked devices .* is damaged .* Restore it from a backup; or move it"):
            home.revocations()
        assert path.read_bytes() == damaged


def test_records_that_are_a_folder_are_named(home: Home) -> None:
    (home.path / "records.msgpack").unlink()
    (home.path / "records.msgpack").mkdir()
    with pytest.raises(UsageError, match=r"records.msgpack is damaged"):
        home.records()


def test_a_folder_is_in_one_mesh(home: Home, tmp_path: Path) -> None:
    before = snapshot(home.path)
    with pytest.raises(UsageError, match=r"is already in the mesh 'home'. Use another folder with --home"):
        home.create_mesh("other")
    with pytest.raises(UsageError, match="is already in the mesh 'home'"):
        home.save_credentials(home.credentials())
    assert snapshot(home.path) == before
    with pytest.raises(UsageError, match="cannot name a mesh"):
        Home(tmp_path / "b").create_mesh("A mesh!")
    with pytest.raises(UsageError, match=r"belongs to no mesh yet. Make one \(`lepton-node mesh create NAME`\)"):
        Home(tmp_path / "b").credentials()
    assert not (tmp_path / "b").exists()


def test_a_grant_that_expired_is_replaced_by_one_of_the_same_mesh_alone(home: Home, tmp_path: Path) -> None:
    held = home.credentials()
    home.rejoin(Credentials(mesh_name="home", root=held.root, chain=held.chain * 2))
    assert home.credentials().chain == held.chain * 2
    other = Home(tmp_path / "other").create_mesh("other")
    with pytest.raises(UsageError, match="this invite is of another"):
        home.rejoin(other)
    assert home.credentials().root == held.root


def test_two_nodes_cannot_hold_one_folder(home: Home) -> None:
    with home.locked(), pytest.raises(UsageError, match="A node already runs with the folder"), home.locked():
        pass
    with home.locked():
        pass  # the lock went with the block


def test_the_lock_of_a_killed_process_holds_nothing(home: Home) -> None:
    program = f"""
import os
from lepton.node.home import Home
with Home({str(home.path)!r}).locked():
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    with home.locked():
        pass


def test_a_folder_that_cannot_be_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "home"):
        home = Home(path)
        with pytest.raises(UsageError, match=r"Cannot make the data folder .* Choose another with --home"):
            home.identity()
        with pytest.raises(UsageError, match="Cannot make the data folder"), home.locked():
            pass
        with pytest.raises(LeptonError, match="Cannot make the folder"):
            home.folder("blobs")
    (tmp_path / "lock").mkdir()
    with pytest.raises(UsageError, match="Cannot hold the data folder"), Home(tmp_path).locked():
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_the_right_to_write_is_a_sentence(home: Home) -> None:
    home.path.chmod(0o500)
    try:
        with pytest.raises(LeptonError, match="cannot be written: Permission denied; free space or mend permissions"):
            home.next_incarnation()
    finally:
        home.path.chmod(0o700)


# -- files that are whole or not there ---------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    files.write_whole(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LeptonError, match="cannot be written: No space left on device"):
        files.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    program = f"""
import os
from pathlib import Path
from lepton.node import files
os.fsync = lambda _: os._exit(9)
files.write_whole(Path({str(tmp_path)!r}, "file"), b"new")
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    assert [found.name[:9] for found in tmp_path.iterdir()] == [".writing-"]
    files.clear_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_identity_is_made_once(tmp_path: Path) -> None:
    home = Home(tmp_path / "deep" / "home")
    assert home.root() is None
    assert home.identity().peer_id == home.identity().peer_id
    assert isinstance(home.identity(), Identity)
