"""A device is thrown out of a mesh of real processes while calls run; one that was down meanwhile refuses it too."""

import json
import re
from pathlib import Path

from .fakes import COMMAND, HERE, LONG, Process, Up, eventually, here, run, said, unhurried, write_example


def shown(home: Path) -> dict[str, dict[str, dict[str, object]]]:
    data = json.loads(said("mesh", "show", "--json", home=home))
    return {key: {row["device"]: row for row in data[key]} for key in ("members", "revoked")}


def test_a_revoked_device_is_cut_off_everywhere_told_why_and_refused_by_who_was_down(tmp_path: Path) -> None:
    _, index, _, _ = write_example(tmp_path)
    allow, env = unhurried(tmp_path)
    first, away, thief = (tmp_path / name for name in ("first", "away", "thief"))
    said("mesh", "create", "home", home=first)
    nodes = list[Up]()

    def up(home: Path, name: str) -> Up:
        nodes.append(Up(home, "--name", name, "--data", f"example={index}", *allow, env=env).ready())
        return nodes[-1]

    try:
        up(first, "kitchen")
        for home in (away, thief):
            said("join", said("invite", home=first), *HERE, home=home)
        attic, cellar = up(away, "attic"), up(thief, "cellar")
        everyone = {"kitchen", "attic", "cellar"}
        eventually(lambda: here(first) == here(away) == here(thief) == everyone, *nodes)
        row = shown(thief)["members"]["attic"]
        assert row["invited_by"] == shown(thief)["members"]["kitchen"]["id"]
        assert row["here"]

        said("down", home=away)
        assert attic.ended() == 0
        training = Process(tmp_path / "training", *train(thief))
        try:
            training.until(lambda: "training" in training.out)  # calls go both ways now
            assert "Revoked cellar" in said("revoke", "cellar", "--yes", "--reason", "it was stolen", home=first)
            eventually(lambda: here(first) == {"kitchen"} and here(thief) == {"cellar"}, *nodes)
            cellar.until(lambda: "thrown out of the mesh" in cellar.err and "it was stolen" in cellar.err)
        finally:
            training.end()
        assert list(shown(first)["revoked"]) == ["cellar"]
        assert run("revoke", "attic", "--yes", home=thief).returncode == 1  # and it may do nothing any more

        up(away, "attic")  # it was down: it hears of it from the kitchen
        eventually(lambda: here(away) == {"kitchen", "attic"} and "cellar" in shown(away)["revoked"], *nodes)
        assert "it was stolen" in (away / "err.log").read_text()
        assert here(thief) == {"cellar"}
        table = " ".join(said("status", home=thief).split())
        assert re.search(
            r"This device was thrown out of the mesh on 20..-..-.. ..:..: .* was revoked by .*stolen", table
        )

        said("down", home=thief)
        assert cellar.ended() == 0
        told = run("status", home=thief)
        assert told.returncode == 1
        assert "thrown out of the mesh 'home'" in told.stderr
        assert "it was stolen" in told.stderr
        again = run("up", *HERE, home=thief)
        assert again.returncode == 1
        assert "belongs to 'home' no more" in again.stderr
        assert "it was stolen" in again.stderr
    finally:
        for node in nodes:
            node.end()


def train(home: Path) -> tuple[str | Path, ...]:
    return (*COMMAND, "train", "long", "--data", "example", *LONG, "--plain", "--home", home)
