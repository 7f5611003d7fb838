"""The benchmark's figures make sense, are coarse, survive a busy moment, and are measured again after a week."""

import time
from pathlib import Path

import pytest
from lepton.node import measuring, speed
from lepton.node.deployments import Precision
from lepton.node.kernels import Packed
from lepton.node.planning import BATCH, PRECISIONS, Speed, SpeedRecord
from lepton.node.plausible import bounded, coarse, settled

SAID = SpeedRecord(speeds={"int8": Speed(mib_ns=1, mib_many_ns=2)})
NOW_S, WEEK_S = 1e9, 7 * 24 * 3600.0
# A core of a small server, in ns for a MiB: one session, and eight.
TRUE: dict[Precision, tuple[int, int]] = {
    "float32": (28_000, 35_000), "bfloat16": (41_000, 62_000), "int8": (43_000, 87_000), "int4": (60_000, 170_000)
}  # fmt: skip


def record(**changed: tuple[int, int]) -> SpeedRecord:
    figures = {precision: changed.get(precision, TRUE[precision]) for precision in PRECISIONS}
    return SpeedRecord(
        speeds={name: Speed(mib_ns=one, mib_many_ns=many, layer_ns=40_000) for name, (one, many) in figures.items()}
    )


def test_every_precision_is_measured_and_more_sessions_take_no_less_for_each_step() -> None:
    found = speed.measure_speed()
    assert set(found.speeds) == set(PRECISIONS)
    for measured in found.speeds.values():
        assert 0 < measured.mib_ns == coarse(measured.mib_ns)
        assert measured.mib_many_ns >= measured.mib_ns
        assert measured.layer_ns > 0


def test_time_in_which_others_had_the_core_does_not_count() -> None:
    took = measuring._quickest_ns(lambda: time.sleep(0.05), warm=lambda: None)
    assert took < 0.04e9 or not measuring._COUNTS_THREADS


def test_what_can_be_true_stays_and_a_figure_of_a_busy_moment_is_brought_into_bounds() -> None:
    assert bounded(record()) == record()
    with_torch = record(
        float32=(105_000, 105_000), bfloat16=(205_000, 205_000), int8=(436_000, 436_000), int4=(1_500_000,) * 2
    )
    assert bounded(with_torch) == with_torch
    busy = bounded(record(int4=(60_000, 1_300_000))).speeds["int4"]
    assert (busy.mib_ns, busy.mib_many_ns) == (60_000, 480_000)  # as eight steps of one
    assert bounded(record(float32=(900_000, 900_000))).speeds["float32"].mib_many_ns <= 2 * 62_000
    assert bounded(record(float32=(900_000, 900_000))).speeds["int4"] == record().speeds["int4"]


def test_measuring_goes_on_while_figures_contradict_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []

    def measure(matrix: Packed, least: measuring.Least) -> None:
        passes.append(matrix.precision)
        one, many = TRUE[matrix.precision]
        busy = 10 if matrix.precision == "int4" and passes.count("int4") < 7 else 1
        for rows, took in ((1, one), (BATCH, many * busy)):
            least[matrix.precision, rows] = min(took, least.get((matrix.precision, rows), took))

    monkeypatch.setattr(measuring, "_measure", measure)
    assert measuring.measured().speeds["int4"].mib_many_ns == 170_000
    assert passes.count("int4") == 7


def test_it_is_measured_once_and_again_on_other_hardware_and_after_a_week(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def measure() -> SpeedRecord:
        measured.append(speed.hardware())
        return SAID

    monkeypatch.setattr(speed, "measure_speed", measure)
    path = tmp_path / "deep" / "speed.json"
    assert speed.load_or_measure(path, NOW_S) == speed.load_or_measure(path, NOW_S + WEEK_S - 1) == SAID
    assert len(measured) == 1
    monkeypatch.setattr(speed, "hardware", lambda: "another")
    assert speed.load_or_measure(path, NOW_S) == SAID
    assert len(measured) == 2
    monkeypatch.undo()
    assert speed.known_speed(path) == SAID
    monkeypatch.setattr(speed, "measure_speed", measure)
    speed.load_or_measure(path, NOW_S + WEEK_S)
    assert len(measured) == 3
    speed.load_or_measure(path, NOW_S)  # a clock that was set back by as much says nothing of when
    assert len(measured) == 4


def test_contradicting_figures_are_not_kept_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy, path = record(int4=(60_000, 1_300_000)), tmp_path / "speed.json"
    monkeypatch.setattr(speed, "measure_speed", lambda: busy)
    assert speed.load_or_measure(path, NOW_S) == bounded(busy)
    monkeypatch.setattr(speed, "measure_speed", record)
    assert speed.load_or_measure(path, NOW_S + 1) == record()


def test_what_an_earlier_release_kept_is_known_and_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "speed.json"
    path.write_text(f'{{"{speed.hardware()}":{{"speeds":{{"int8":{{"mib_ns":9,"mib_many_ns":9}}}}}}}}')
    known = speed.known_speed(path)
    assert known is not None
    assert known.speeds["int8"].mib_ns == 9
    monkeypatch.setattr(speed, "measure_speed", lambda: SAID)
    assert speed.load_or_measure(path, NOW_S) == SAID


def test_figures_that_are_nearly_as_before_stay_as_they_were() -> None:
    assert settled(record(), record(int8=(50_000, 90_000))) == record()
    assert settled(record(), record(int8=(60_000, 90_000))) == record(int8=(60_000, 87_000))


@pytest.mark.parametrize("damaged", [b"", b"{", b'{"x": 3}', b'{"x": {"speeds": {"int2": {}}}}'])
def test_a_damaged_file_is_as_good_as_none(damaged: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "measure_speed", lambda: SAID)
    path = tmp_path / "speed.json"
    path.write_bytes(damaged)
    assert speed.load_or_measure(path, NOW_S) == SAID
    assert speed.known_speed(path) == SAID


def test_where_nothing_can_be_written_it_is_measured_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "measure_speed", lambda: SAID)
    (tmp_path / "file").write_bytes(b"")
    assert speed.load_or_measure(tmp_path / "file" / "speed.json", NOW_S) == SAID
