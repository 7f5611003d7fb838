"""Cameras over a road, shortened: what an alarm is, and that a mesh raises one for each car and for nothing else."""

from io import StringIO
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from lepton.node.examples.lookout import Watch, after
from lepton.node.examples.road import (
    alarms,
    background,
    cameras,
    in_hindsight,
    judged,
    scored,
    spans,
    terms_for,
    worst_of,
)
from lepton.node.examples.surveillance import main, surveillance
from lepton.node.examples.telling import Tale, play
from rich.console import Console

TERMS = terms_for(1.0)  # high 3.0, low 1.8


def flags(text: str) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    return np.array([letter == "#" for letter in text])


def test_an_alarm_begins_at_the_second_frame_in_a_row_and_ends_at_the_fifth() -> None:
    found = np.array([0, 4, 0, 4, 4, 4, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0], np.float64)
    np.testing.assert_array_equal(alarms(found, TERMS), flags("....############.."))


def test_an_alarm_goes_on_from_where_an_instance_before_left_it() -> None:
    assert after(Watch(alarm=False, frames=1), 4.0, TERMS).alarm
    assert not after(Watch(alarm=False, frames=0), 4.0, TERMS).alarm
    assert after(Watch(alarm=True, frames=3), 0.0, TERMS).alarm
    assert not after(Watch(alarm=True, frames=4), 0.0, TERMS).alarm


def test_only_an_alarm_that_begins_with_a_car_and_ends_soon_after_it_is_right() -> None:
    car = flags("..####" + 20 * ".")
    assert spans(car) == ((2, 6),)
    assert judged(flags("...####" + 19 * "."), car)[:3] == (1, 1, 0)
    assert judged(flags(26 * "."), car)[:3] == (1, 0, 0)
    assert judged(flags("######" + 20 * "."), car)[:3] == (1, 0, 1), "it was there before the car"
    assert judged(flags("...###############" + 8 * "."), car)[:3] == (1, 1, 1), "it outlasts the car by over a second"
    assert judged(flags("...###" + 12 * "." + "##......"), car)[:3] == (1, 1, 1)


def test_background_difference_falls_into_the_trap_and_evening_the_light_out_does_not(real: Path) -> None:
    seen, car = cameras(real)
    assert [camera.frames.shape for camera in seen] == [(377, 54, 66)] * 4
    assert not any((camera.own & car).any() for camera in seen)
    plain, even = ([background(camera, evened=evened) for camera in seen] for evened in (False, True))
    assert [in_hindsight(found, car).false for found in plain] == [1, 1, 0, 1]
    assert scored(even, worst_of(even, seen), seen, car)[:3] == (12, 12, 0)


def test_a_mesh_of_cameras_raises_an_alarm_for_each_car_and_for_nothing_else(real: Path) -> None:
    text = StringIO()
    tale = play(surveillance, real, quick=True, tale=Tale(Console(file=text, width=110)))
    assert tale.held, text.getvalue()
    assert tale.figures["cars"] == 11, "one camera is gone when the third car comes"
    assert tale.figures["auc"] > 0.98
    assert "is unplugged, with its instance" in text.getvalue()


def test_without_the_clip_it_says_what_is_missing(tmp_path: Path) -> None:
    said = CliRunner().invoke(main, ["--quick", "--data", str(tmp_path)])
    assert said.exit_code == 1
    assert "car_96x54.npz" in said.output
