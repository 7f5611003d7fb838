"""Roads that learn together, shortened, and the arithmetic of forecasts and incidents on small roads made by hand."""

from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from lepton.mesh.errors import UsageError
from lepton.node.examples import incidents
from lepton.node.examples.speeds import (
    Roads,
    changes,
    dataset,
    errors_mph,
    forecast_mph,
    linear_errors_mph,
    read_roads,
    seen,
    sites,
)
from lepton.node.examples.telling import Tale, play
from lepton.node.examples.traffic import traffic
from rich.console import Console


def made_up(sensors: int = 2, steps: int = 600) -> Roads:
    """Roads on which speeds rise and fall within each half hour or so."""
    step = np.arange(steps)
    speed = np.stack([50 + 10 * np.sin(step / 5 + sensor) for sensor in range(sensors)]).astype(np.float32)
    return Roads(speed, np.stack([np.arange(sensors), np.zeros(sensors)], 1).astype(float), 480)


def test_a_forecaster_sees_the_past_alone() -> None:
    roads, sensors = made_up(), np.array([1])
    at = [100]
    later = roads.speed.copy()
    later[:, 101:480] = 48.0
    later[:, 101:480] += roads.speed[:, 101:480].mean(1, keepdims=True) - 48.0  # the road's mean is an input
    x, other = seen(roads, sensors, at), seen(roads._replace(speed=later), sensors, at)
    np.testing.assert_allclose(x[..., :15], other[..., :15])
    y = changes(roads, sensors, at)[0, 0]
    np.testing.assert_allclose(y, (roads.speed[1, [103, 106, 112]] - roads.speed[1, 100]) / 10, rtol=1e-4)
    assert forecast_mph(roads, sensors, at, y[None]).item() == pytest.approx(roads.speed[1, 103])


def test_nothing_of_the_test_is_trained_on() -> None:
    roads = made_up()
    assert roads.training[-1] + 12 < roads.cut <= roads.test[0]
    altered = roads.speed.copy()
    altered[:, roads.cut :] = 3.0
    one, other = (dataset(roads._replace(speed=speed), np.array([0, 1])) for speed in (roads.speed, altered))
    np.testing.assert_array_equal(one.x, other.x)
    np.testing.assert_array_equal(one.y, other.y)


def test_a_linear_rule_is_found_and_persistence_is_not_one() -> None:
    roads = made_up()
    truth = changes(roads, np.array([0, 1]), roads.test)
    assert (linear_errors_mph(roads) < 0.01).all()  # a sine is linear in its past
    assert (errors_mph(np.zeros_like(truth), truth) > 3).all()


def test_a_site_is_of_neighbours() -> None:
    place = np.random.default_rng(0).random((50, 2)) * (10, 1)
    groups = sites(place, 4)
    assert sorted(np.concatenate(groups)) == list(range(50))
    assert [np.ptp(place[group, 0]) < 4 for group in groups] == [True] * 4


def test_an_alarm_is_far_below_the_forecast_twice_and_slow() -> None:
    forecast = np.full((3, 6), 60.0, np.float32)
    speed = forecast.copy()
    speed[0, 2:5] = 10
    speed[1, 2] = 10  # once
    speed[2, 2:5] = 40  # not slow
    flags = incidents.alarms(forecast, speed, np.full(3, 15.0, np.float32), np.full(3, 60.0, np.float32))
    assert [list(np.flatnonzero(row)) for row in flags] == [[3, 4], [], []]
    assert [list(np.flatnonzero(row)) for row in incidents.begun(flags)] == [[3], [], []]
    found = incidents.judged(flags, flags[1:], np.array([102, 102, 102]), 100)
    assert (found.recall, found.minutes, found.false_per_sensor_day) == (1 / 3, 10.0, 0.0)


def test_the_mesh_forecasts_better_than_the_baselines_and_finds_incidents(real: Path) -> None:
    text = StringIO()
    tale = play(traffic, real, quick=True, tale=Tale(Console(file=text, width=110)))
    assert tale.held, text.getvalue()
    assert len(tale.claims) == 2
    stays = [tale.figures[f"all stays as it is, {minutes} min"] for minutes in (15, 30, 60)]
    np.testing.assert_allclose(stays, [3.283, 4.031, 5.211], atol=0.001)
    linear = [tale.figures[f"shared AR(12), {minutes} min"] for minutes in (15, 30, 60)]
    np.testing.assert_allclose(linear, [3.183, 3.969, 5.167], atol=0.001)


def test_where_the_data_are_not_it_says_where_they_can_be_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=r"METR-LA, from github\.com/liyaguang/DCRNN"):
        read_roads(tmp_path)
    assert not play(traffic, tmp_path, quick=True).held
    assert "could not go on" in capsys.readouterr().err
