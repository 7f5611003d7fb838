"""A node's load: coarse, and quiet while nothing changes; unknown where the system does not say."""

from pathlib import Path

import pytest
from lepton.mesh.messages import pack
from lepton.node.seeing.load import INTERVAL_S, Gauge, LoadRecord, interval_s, stepped


def system(folder: Path, *, idle: int, busy: int, free_kb: int = 800) -> Path:
    (folder / "self").mkdir(exist_ok=True)
    (folder / "stat").write_text(f"cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 2 3 4\n")
    (folder / "meminfo").write_text(f"MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: {free_kb} kB\n")
    (folder / "self/statm").write_text("99999 25600 1 1 0 1 0\n")
    return folder


def test_it_says_what_the_system_counts(tmp_path: Path) -> None:
    gauge = Gauge(system(tmp_path, idle=0, busy=0))
    gauge.cpu()
    system(tmp_path, idle=600, busy=400)
    said = gauge.look(LoadRecord(), sessions=2)
    assert said == LoadRecord(cpu=40, memory=20, process_mib=128, sessions=2)
    assert len(pack(said)) < 60


def test_where_the_system_says_nothing_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("what")
    (tmp_path / "meminfo").write_text("MemTotal: 0 kB\nMemAvailable:\n")
    assert Gauge(tmp_path).look(LoadRecord(), sessions=0) == LoadRecord()


@pytest.mark.parametrize(
    ("value", "said", "now"), [(14, None, 10), (17, 10, 10), (19, 10, 20), (3, 10, 10), (1, 10, 0)]
)
def test_from_what_was_said_a_value_has_to_move(value: float, said: int | None, now: int) -> None:
    assert stepped(value, said, 10) == now


def test_an_idle_device_that_trembles_says_nothing_new(tmp_path: Path) -> None:
    gauge, said = Gauge(system(tmp_path, idle=0, busy=0)), LoadRecord()
    gauge.cpu()
    busy = idle = 0
    told = []
    for step in range(100):
        busy, idle = busy + step % 7, idle + 100 - step % 7  # up to 6 per cent
        system(tmp_path, idle=idle, busy=busy, free_kb=800 + step % 20)
        said = gauge.look(said, sessions=0)
        told.append(said)
    assert len(set(told)) == 1


def test_in_a_large_mesh_it_is_looked_at_less_often() -> None:
    assert interval_s(3) == INTERVAL_S
    assert interval_s(500) == 10 * INTERVAL_S
