"""The audit log: bounded, only added to, and nothing that strangers do pushes out what members did."""

import stat
from dataclasses import dataclass
from pathlib import Path

import pytest
from lepton.node.home import Home
from lepton.node.seeing import audit
from lepton.node.seeing.audit import FILE, REFUSALS_FILE, Audit, read
from lepton.node.seeing.seeing import Seeing


@dataclass
class Clock:
    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def test_what_happened_is_read_back_in_order(tmp_path: Path) -> None:
    clock = Clock()
    log = Audit(tmp_path, clock)
    log.note("joined", who="12D3KooWpeer", detail="with an invite of this device")
    clock.now += 1
    log.refused("12D3KooWeve", "It has shown no grant.")
    clock.now += 1
    log.note("command", name="revoke", who="12D3KooWpeer")
    assert [(e.what, e.who) for e in read(tmp_path)] == [
        ("joined", "12D3KooWpeer"),
        ("refused", "12D3KooWeve"),
        ("command", "12D3KooWpeer"),
    ]
    assert [e.what for e in read(tmp_path, last=1)] == ["command"]
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


def test_a_flood_of_refusals_is_bounded_counted_and_pushes_out_nothing_else(tmp_path: Path) -> None:
    clock = Clock()
    log = Audit(tmp_path, clock)
    log.note("revoked", who="12D3KooWmallory")
    for index in range(20_000):
        log.refused(f"12D3KooW{index}", "x" * 5000)
        clock.now += 0.01
    entries = read(tmp_path)
    written = [e for e in entries if e.what == "refused"]
    assert entries[0].what == "revoked"
    assert 200 < len(written) < 300
    assert sum(e.also for e in written) > 19_000
    assert all(len(e.detail) == audit.TEXT_MAX for e in written)


def test_the_same_refusal_is_written_once_a_minute(tmp_path: Path) -> None:
    clock = Clock()
    log = Audit(tmp_path, clock)
    for _ in range(120):
        log.refused("12D3KooWeve", "no grant")
        clock.now += 1
    assert [e.also for e in read(tmp_path)] == [0, 59]


def test_both_files_are_bounded_and_the_newest_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "BYTES_MAX", 2000)
    log = Audit(tmp_path, Clock())
    for index in range(500):
        log.note("command", name=str(index))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2 * 2000
    assert read(tmp_path)[-1].name == "499"


def test_a_line_that_was_cut_off_or_damaged_costs_only_itself(tmp_path: Path) -> None:
    log = Audit(tmp_path, Clock())
    log.note("started")
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"at": 3, "what": "no such thing"}\n\xff\xfe\n{"at": 17')
    log.note("stopped")
    (tmp_path / REFUSALS_FILE).write_bytes(b"\x00" * 100)
    assert [e.what for e in read(tmp_path)] == ["started"]  # what is glued to a cut-off line goes with it
    log.note("stopped")
    assert [e.what for e in read(tmp_path)] == ["started", "stopped"]


def test_a_full_disk_does_not_stop_the_node(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE).mkdir()  # cannot be written
    Audit(tmp_path, Clock()).note("started")
    assert "cannot be written" in caplog.text


def test_deployments_are_noted_once_also_across_a_restart_and_not_lost_with_an_owner_that_is_away(
    tmp_path: Path,
) -> None:
    seeing = Seeing(Home(tmp_path))
    tales = {("model tales", "anna"): "version 1", ("task digits", "bob"): "version 1"}
    seeing.note_deployed(tales, {"anna", "bob"})
    seeing.note_deployed({("model tales", "anna"): "version 2"}, {"anna"})  # bob is away
    again = Seeing(Home(tmp_path))
    again.note_deployed({("model tales", "anna"): "version 2"}, {"anna"})
    again.note_deployed({}, {"anna", "bob"})
    assert [(e.what, e.name, e.by, e.detail) for e in read(tmp_path)] == [
        ("deployed", "model tales", "anna", "version 1"),
        ("deployed", "task digits", "bob", "version 1"),
        ("deployed", "model tales", "anna", "version 2"),
        ("withdrawn", "model tales", "anna", ""),
        ("withdrawn", "task digits", "bob", ""),
    ]


def test_no_member_fills_the_log_at_one_look(tmp_path: Path) -> None:
    seeing = Seeing(Home(tmp_path))
    seeing.note_deployed({(f"model {n}", "eve"): "version 1" for n in range(1000)}, {"eve"})
    assert len(read(tmp_path)) == 16
