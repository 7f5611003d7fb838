"""The benchmark's figures make sense, are coarse, and are measured once for each kind of machine."""

from pathlib import Path

import pytest
from lepton.node import speed
from lepton.node.measuring import coarse
from lepton.node.planning import PRECISIONS, Speed, SpeedRecord

SAID = SpeedRecord(speeds={"int8": Speed(mib_ns=1, mib_many_ns=2)})


def test_every_precision_is_measured_and_more_sessions_take_no_less_for_each_step() -> None:
    found = speed.measure_speed()
    assert set(found.speeds) == set(PRECISIONS)
    for measured in found.speeds.values():
        assert 0 < measured.mib_ns == coarse(measured.mib_ns)
        assert measured.mib_many_ns > 0
        assert measured.layer_ns > 0


def test_it_is_measured_once_and_again_on_other_hardware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def measure() -> SpeedRecord:
        measured.append(speed.hardware())
        return SAID

    monkeypatch.setattr(speed, "measure_speed", measure)
    path = tmp_path / "deep" / "speed.json"
    assert speed.load_or_measure(path) == speed.load_or_measure(path) == SAID
    monkeypatch.setattr(speed, "hardware", lambda: "another")
    assert speed.load_or_measure(path) == SAID
    assert len(measured) == 2
    monkeypatch.undo()
    assert speed.known_speed(path) == SAID


@pytest.mark.parametrize("damaged", [b"", b"{", b'{"x": 3}', b'{"x": {"speeds": {"int2": {}}}}'])
def test_a_damaged_file_is_as_good_as_none(damaged: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "measure_speed", lambda: SAID)
    path = tmp_path / "speed.json"
    path.write_bytes(damaged)
    assert speed.load_or_measure(path) == SAID
    assert speed.known_speed(path) == SAID


def test_where_nothing_can_be_written_it_is_measured_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "measure_speed", lambda: SAID)
    (tmp_path / "file").write_bytes(b"")
    assert speed.load_or_measure(tmp_path / "file" / "speed.json") == SAID
