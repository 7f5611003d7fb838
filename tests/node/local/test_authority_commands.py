"""What an administrator types while no node runs: the members that are known, revoking, and the root key in a file."""

import json
import stat
import time
from pathlib import Path

import nacl.pwhash.argon2id as argon
import pytest
from click.testing import CliRunner, Result
from lepton.mesh.admission import Credentials
from lepton.mesh.errors import Refused
from lepton.mesh.grants import GRANT_LIFETIME_S, ROLES, Grant, issue
from lepton.mesh.identity import Identity
from lepton.mesh.revocations import Revocations
from lepton.node import authority_commands, root_file
from lepton.node.__main__ import main
from lepton.node.authority import current_credentials, require_membership, show_stopped
from lepton.node.home import Home
from lepton.node.members import KnownMember

KITCHEN, ATTIC, CELLAR = (Identity(bytes([n]) * 32) for n in (1, 2, 3))
WORDS = "four words of mine\n"


def grant(issuer: Identity, subject: Identity, role: str = "member", *, expires: float | None = None) -> Grant:
    until = time.time() + GRANT_LIFETIME_S if expires is None else expires
    return issue(issuer, subject.peer_id, ROLES[role], expires=until, serial=bytes(16))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """The device that made the mesh; it let in the kitchen, an admin, through which the attic and the cellar came."""
    made = Home(tmp_path / "first")
    chain = made.create_mesh("home").chain
    kitchen = (*chain, grant(made.identity(), KITCHEN, "admin"))
    members = [KnownMember(KITCHEN.peer_id, "kitchen", kitchen)]
    for who, name in ((ATTIC, "attic"), (CELLAR, "cellar")):
        members.append(KnownMember(who.peer_id, name, (*kitchen, grant(KITCHEN, who))))
    made.save_members(members)
    return made


def run(home: Home, *words: str | Path, answers: str = "") -> Result:
    return CliRunner().invoke(main, [*map(str, words), "--home", str(home.path)], input=answers)


def shown(home: Home) -> dict[str, dict[str, str]]:
    said = json.loads(run(home, "mesh", "show", "--json").output)
    return {key: {row["device"]: row["id"] for row in said[key]} for key in ("members", "revoked")}


# -- who belongs -------------------------------------------------------------------------------------------------------


def test_members_are_shown_with_role_inviter_and_end(home: Home) -> None:
    said = json.loads(run(home, "mesh", "show", "--json").output)
    rows = {row["device"]: row for row in said["members"]}
    assert rows["kitchen"]["role"] == "admin"
    assert rows["attic"]["role"] == "member"
    assert rows["attic"]["invited_by"] == KITCHEN.peer_id
    assert rows["attic"]["through"] == [home.identity().peer_id, KITCHEN.peer_id]
    assert not rows["attic"]["here"]
    assert said["root_key_here"]
    assert said["role"] == "admin"
    table = run(home, "mesh", "show").output
    assert "its root key is here" in table
    assert "this is what it knew when it last did" in table


def test_a_folder_in_no_mesh_has_none_to_show(tmp_path: Path) -> None:
    done = run(Home(tmp_path / "new"), "mesh", "show")
    assert done.exit_code == 2
    assert "belongs to no mesh yet" in done.output


# -- revoking ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["attic", ATTIC.peer_id, ATTIC.peer_id[-8:], ATTIC.peer_id[-8:-4]])
def test_a_device_is_revoked_by_name_id_or_the_beginning_of_its_short_form(home: Home, text: str) -> None:
    done = run(home, "revoke", text, "--yes", "--reason", "left on a bus")
    assert done.exit_code == 0, done.output
    assert f"Revoked attic ({ATTIC.peer_id[-8:]})." in done.output
    assert "takes effect when this one is up" in done.output
    assert shown(home)["revoked"] == {"attic": ATTIC.peer_id}  # it keeps its name
    assert "attic" not in shown(home)["members"]
    assert "left on a bus" in run(home, "mesh", "show").output
    again = run(home, "revoke", text, "--yes")
    assert again.exit_code == 2
    assert "was revoked already" in again.output


def test_who_came_in_through_the_revoked_is_named_and_out(home: Home) -> None:
    done = run(home, "revoke", "kitchen", "--yes")
    assert "Out as well, for they came in through it:" in done.output
    assert f"attic ({ATTIC.peer_id[-8:]})" in done.output
    assert "cellar" in done.output
    assert shown(home)["members"].keys() == {"?"}  # this device alone, which never ran
    require_membership(home, time.time())


def test_known_guests_of_the_revoked_can_be_kept(home: Home) -> None:
    done = run(home, "revoke", "kitchen", "--yes", "--keep-invited")
    assert "Kept, though they came in through it:" in done.output
    assert shown(home)["members"].keys() == {"?", "attic", "cellar"}
    unknown = (*home.credentials().chain, grant(home.identity(), KITCHEN, "admin"), grant(KITCHEN, KITCHEN))
    assert Revocations(home.credentials().root, home.revocations()).why_not(unknown)


def test_an_admin_that_revokes_its_own_inviter_stays(tmp_path: Path) -> None:
    """Without the root key: it would otherwise throw out itself, and the mesh had no admin left."""
    root, first, second = Identity(bytes(32)), Identity(bytes([9]) * 32), Home(tmp_path / "second")
    chain = (grant(root, first, "admin"), grant(first, second.identity(), "admin"))
    second.save_credentials(Credentials(mesh_name="home", root=root.peer_id, chain=chain))
    second.save_members([KnownMember(first.peer_id, "first", chain[:1])])
    assert run(second, "revoke", "first", "--yes").exit_code == 0
    require_membership(second, time.time())
    assert show_stopped(second)["revoked"][0]["by"] == second.identity().peer_id


def test_a_terminal_is_asked_and_a_no_revokes_nobody(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(home, "revoke", "attic")
    assert done.exit_code == 2
    assert "without a terminal, say --yes" in done.output
    monkeypatch.setattr(authority_commands, "_is_terminal", lambda: True)
    done = run(home, "revoke", "kitchen", answers="y\nn\n")
    assert "These came in through it: attic" in done.output
    assert "Nothing was revoked." in done.output
    assert shown(home)["revoked"] == {}
    assert run(home, "revoke", "kitchen", answers="y\ny\n").exit_code == 0
    assert shown(home)["members"].keys() == {"?", "attic", "cellar"}


@pytest.mark.parametrize(
    ("text", "why"),
    [("nobody", "No member is called 'nobody'"), ("a", "No member is called 'a'"), ("twin", "may mean")],
)
def test_a_text_that_names_nobody_or_several_revokes_nobody(home: Home, text: str, why: str) -> None:
    members = home.members()
    home.save_members([*members, KnownMember(Identity(bytes([7]) * 32).peer_id, "twin", members[0].chain)])
    home.save_members([*home.members(), KnownMember(Identity(bytes([8]) * 32).peer_id, "twin", members[0].chain)])
    done = run(home, "revoke", text, "--yes")
    assert done.exit_code == 2
    assert why in done.output
    assert home.revocations() == []


def test_a_member_that_may_not_revoke_is_told_so(tmp_path: Path) -> None:
    root, member = Identity(bytes(32)), Home(tmp_path / "member")
    chain = (grant(root, member.identity()),)
    member.save_credentials(Credentials(mesh_name="home", root=root.peer_id, chain=chain))
    done = run(member, "revoke", ATTIC.peer_id, "--yes")
    assert done.exit_code == 1
    assert "takes the role admin, or the root key" in done.output


def test_only_the_root_key_can_disown(home: Home, tmp_path: Path) -> None:
    other = Home(tmp_path / "other")
    root = home.root()
    assert root is not None
    chain = (grant(root, other.identity(), "admin"),)
    other.save_credentials(Credentials(mesh_name="home", root=root.peer_id, chain=chain))
    done = run(other, "revoke", KITCHEN.peer_id, "--yes", "--disown")
    assert done.exit_code == 1
    assert "Only the root key can disown" in done.output
    assert run(home, "revoke", "kitchen", "--yes", "--disown").exit_code == 0


# -- grants that end ---------------------------------------------------------------------------------------------------


def test_up_of_an_expired_or_revoked_device_says_what_to_do(tmp_path: Path) -> None:
    root, member = Identity(bytes(32)), Home(tmp_path / "member")
    chain = (grant(root, member.identity(), expires=time.time() - 1),)
    member.save_credentials(Credentials(mesh_name="home", root=root.peer_id, chain=chain))
    done = run(member, "up")
    assert done.exit_code == 1
    assert "has expired" in done.output
    assert "join again with a new invite, or set the clock" in done.output


def test_a_revoked_device_does_not_come_up(home: Home) -> None:
    assert run(home, "revoke", home.identity().peer_id, "--yes").exit_code == 0
    done = run(home, "up")
    assert done.exit_code == 1
    assert "belongs to 'home' no more:" in done.output
    assert "join with a new folder" in done.output


def test_the_device_with_the_root_key_renews_itself_at_its_start_however_late(home: Home) -> None:
    before, years = home.credentials(), time.time() + 5 * 365 * 24 * 3600
    assert current_credentials(home, time.time()) == before  # it is not time yet
    renewed = current_credentials(home, years)
    assert renewed != before
    assert renewed == home.credentials()
    require_membership(home, years)


# -- the root key ------------------------------------------------------------------------------------------------------


@pytest.fixture
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root_file, "_PASSES", argon.OPSLIMIT_MIN)
    monkeypatch.setattr(root_file, "_MEMORY_BYTES", argon.MEMLIMIT_MIN)


@pytest.mark.usefixtures("_cheap")
def test_the_root_key_goes_to_another_device_under_a_passphrase(home: Home, tmp_path: Path) -> None:
    file, new = tmp_path / "root.sealed", Home(tmp_path / "new")
    done = run(home, "mesh", "export-root", file, answers=2 * WORDS)
    assert done.exit_code == 0, done.output
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "four words" not in done.output
    again = run(home, "mesh", "export-root", file, answers=2 * WORDS)
    assert "is there already; name a new file" in again.output
    wrong = run(new, "mesh", "import-root", file, answers="not these words\n")
    assert wrong.exit_code == 2
    assert "The passphrase is wrong" in wrong.output
    assert new.root() is None
    assert run(new, "mesh", "import-root", file, answers=WORDS).exit_code == 0
    taken, mine = new.root(), home.root()
    assert taken is not None
    assert mine is not None
    assert taken.peer_id == mine.peer_id == new.credentials().root
    require_membership(new, time.time())  # the mesh has an admin again
    assert run(new, "revoke", home.identity().peer_id, "--yes").exit_code == 0


@pytest.mark.usefixtures("_cheap")
def test_the_root_key_of_another_mesh_or_another_file_is_not_taken(home: Home, tmp_path: Path) -> None:
    other, file = Home(tmp_path / "other"), tmp_path / "root.sealed"
    other.create_mesh("other")
    assert run(other, "mesh", "export-root", file, answers=2 * WORDS).exit_code == 0
    done = run(home, "mesh", "import-root", file, answers=WORDS)
    assert done.exit_code == 2
    assert "and this is the root key of another: 'other'" in done.output
    (tmp_path / "text").write_text("hello")
    assert "not a root key" in run(home, "mesh", "import-root", tmp_path / "text", answers=WORDS).output
    assert "cannot be read" in run(home, "mesh", "import-root", tmp_path / "nothing", answers=WORDS).output


def test_who_has_no_root_key_exports_none(tmp_path: Path) -> None:
    done = run(Home(tmp_path / "member"), "mesh", "export-root", tmp_path / "x")
    assert done.exit_code == 2
    assert "it is on the device that made the mesh" in done.output


def test_a_revocation_needs_a_right_even_below_the_command_line(home: Home) -> None:
    from lepton.node.authority import revoke_stopped

    (home.path / "root.key").unlink()
    chain = (grant(Identity(bytes(32)), home.identity(), "member"),)
    home._write_json("mesh.json", {"name": "home", "root": Identity(bytes(32)).peer_id, "chain": chain})
    with pytest.raises(Refused, match="lacks the capability 'admin'"):
        revoke_stopped(home, ATTIC.peer_id, reason="", keep_invited=False, disown=False)
