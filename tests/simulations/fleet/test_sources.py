"""What is made of real data is what the docstrings say, and is measured in the right unit."""

from pathlib import Path

import numpy as np
import pytest
from lepton.mesh.errors import UsageError
from lepton.simulations.fleet.sources.known import SOURCES, source_of
from lepton.simulations.fleet.sources.scores import area_under_curve, recall
from lepton.simulations.fleet.sources.series import AHEAD, PAST

REAL = Path(__file__).parents[4] / "shared" / "data"
CARRIED = {"digits", "breast_cancer", "diabetes"}
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no data in {REAL}")


def test_the_area_under_a_curve_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 6, 60).astype(np.float32), rng.random(60) < 0.3
    pairs = [(float(a), float(b)) for a in scores[positive] for b in scores[~positive]]
    expected = np.mean([(a > b) + (a == b) / 2 for a, b in pairs])
    assert area_under_curve(scores, positive) == pytest.approx(expected)
    assert area_under_curve(scores, np.zeros(60, np.bool_)) == 0.5


def test_recall_counts_a_rare_class_like_a_frequent_one() -> None:
    outputs = np.eye(2, dtype=np.float32)[[0, 0, 0, 0]]
    assert recall(outputs, np.array([0, 0, 0, 1]), outputs) == {"recall": 0.5}


@real
def test_a_sensor_sees_an_hour_of_the_past_and_nothing_of_the_future() -> None:
    with np.load(REAL / "traffic_metr_la" / "metr_la_5days.npz") as file:
        speed = file["speed"]
    found = source_of("traffic", REAL)
    assert found.silos is not None
    first = np.flatnonzero(found.silos == 5)[0]  # its present is step 11, the first with a whole past
    past = found.inputs[first, :PAST] * 10 + speed[PAST - 1, 5]
    assert past == pytest.approx(speed[PAST - 1 :: -1, 5], abs=1e-3)
    ahead = found.labels[first] * 10 + speed[PAST - 1, 5]
    assert ahead == pytest.approx([speed[PAST - 1 + steps, 5] for steps in AHEAD], abs=1e-3)


@real
def test_a_model_of_zeros_is_persistence_in_miles_an_hour() -> None:
    found = source_of("traffic", REAL)
    assert found.score is not None
    errors = found.score(
        np.zeros_like(found.test_labels, dtype=np.float32), found.test_labels, np.zeros((0, 0), np.float32)
    )
    assert list(errors) == ["MAE 15 min, mph", "MAE 30 min, mph", "MAE 60 min, mph"]
    assert list(errors.values()) == pytest.approx([3.28, 4.03, 5.21], abs=0.01)


@real
def test_a_camera_trains_on_the_empty_road_alone_and_never_on_its_test() -> None:
    found = source_of("video", REAL)
    assert found.silos is not None
    assert found.test_silos is not None
    assert found.marks is not None
    with np.load(REAL / "video" / "car_96x54.npz") as file:
        present = file["present"]
    for camera in range(8):
        mine, tests = found.silos == camera, found.test_silos == camera
        assert np.count_nonzero(mine) + np.count_nonzero(tests) == len(present)
        assert found.marks[tests].sum() == present.sum()  # all cars are in the test


@real
def test_the_hospitals_differ_in_size_and_in_how_ill_their_patients_are() -> None:
    found = source_of("hospitals", REAL)
    assert found.silos is not None
    sizes = np.bincount(found.silos)
    ill = np.bincount(found.silos, found.labels) / sizes
    assert max(sizes) > 2 * min(sizes)
    assert max(ill) - min(ill) > 0.2


@real
def test_an_activity_is_felt_while_it_lasts_and_remembered_for_an_hour() -> None:
    found = source_of("adl", REAL)
    assert found.inputs.shape[1] == 12 * 4 + 2
    assert found.classes == 9
    assert found.inputs[:, :48].min() == 0
    assert found.inputs[:, :48].max() == 1
    asleep = found.labels == np.bincount(found.labels[:450]).argmax()  # the first night
    assert found.inputs[asleep][:, 1].mean() > 0.95  # the bed, second in the alphabet


@real
@pytest.mark.parametrize("name", sorted(set(SOURCES) - CARRIED))
def test_a_file_that_is_something_else_is_an_error_for_people(name: str, tmp_path: Path) -> None:
    for folder in REAL.iterdir():
        for file in folder.glob("*.*") if folder.is_dir() else ():
            (tmp_path / folder.name).mkdir(exist_ok=True)
            (tmp_path / folder.name / file.name).write_text("@data nothing,to,see\nhere\nor\n", "utf-8")
    with pytest.raises(UsageError, match=str(tmp_path)):
        source_of(name, tmp_path)
