"""Hospitals that train one model without showing a patient, or their own model, to anybody: better than any alone.

Each hospital sees other patients than the next. What it learned alone it knows of its own kind; the question is how
well it would judge all hospitals' patients. Models are summed under masks (`policy = "private"`): nobody, the other
hospitals included, reads a single one.

    python -m lepton.node.examples.medical
"""

import importlib.util
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression

from ..learning.data import Dataset
from ..learning.settings import DpSettings, TrainSettings
from ..learning.trainer import train_alone
from ..node import Node
from ..shapes import ModelSpec
from .gathering import gathered
from .telling import Tale, command, percent

Floats = npt.NDArray[np.float32]
Whole = npt.NDArray[np.int64]

_TEST_SHARE: Final = 0.4  # of all patients: with a fifth, one of them would be half a point
_SETTINGS: Final = TrainSettings(
    local_steps=10, batch_size=32, learning_rate=0.03, weight_decay=1e-3, schedule="cosine"
)
_ROUNDS: Final = 60
_QUICK_ROUNDS: Final = 25
# Few, large steps: with records as few as these each step's noise is what counts.
_CAREFUL: Final = TrainSettings(
    local_steps=2, batch_size=128, learning_rate=0.1, dp=DpSettings(epsilon=8.0, delta=1e-3)
)
_CAREFUL_ROUNDS: Final = 30

# Of the 19 measurements of an eye: round numbers near what is ordinary, and how far it varies. Hospitals agree on them
# beforehand, as they do on units; means of all patients nobody knows. Lesions are counted: their logarithms are taken.
_COUNTS: Final = slice(2, 16)
_USUAL: Final = (1, 1, *6 * (3.2,), 3.2, 2.6, 2, 1.2, 0.6, 0.3, 0.2, 0.2, 0.52, 0.108, 0.3)
_SPREAD: Final = (0.1, 0.3, *6 * (0.8,), *3 * (1.2,), 1, 0.8, 0.5, 0.5, 0.5, 0.03, 0.018, 0.5)
_LESIONS, _DISC = 2, 17  # measurements by which patients are divided


class Patients(NamedTuple):
    """n patients, what is known of each, and whose they are."""

    subject: str
    division: str
    x: Floats  # (n, F)
    y: Whole  # (n,): 1 is ill
    hospital: Whole  # (n,)
    names: tuple[str, ...]


def patients(folder: Path) -> Patients:
    """Read the eyes of 1,151 diabetics where they are; else take the 569 tumours that scikit-learn carries."""
    path = folder / "diabetic_retinopathy" / "messidor_features.arff"
    return _eyes(path) if path.is_file() else _tumours()


def _eyes(path: Path) -> Patients:
    rows = path.read_text("utf-8").partition("@data")[2].split()
    table = np.array([[float(cell) for cell in row.split(",")] for row in rows])
    table[:, _COUNTS] = np.log1p(table[:, _COUNTS])
    new, clinic = (
        table[:, column] > np.quantile(table[:, column], share) for column, share in ((_DISC, 0.4), (_LESIONS, 0.6))
    )
    return Patients(
        subject="diabetic retinopathy, 1,151 patients, 19 measurements of the eye (Messidor, UCI)",
        division="by the optic disc's apparent size, which a camera decides, and by how many lesions there are",
        x=((table[:, :-1] - _USUAL) / _SPREAD).astype(np.float32),
        y=table[:, -1].astype(np.int64),
        hospital=(2 * new + clinic).astype(np.int64),
        names=("town-old-camera", "clinic-old-camera", "town-new-camera", "clinic-new-camera"),
    )


def _tumours() -> Patients:
    """Scale each measurement by its least and largest value, which scikit-learn documents."""
    x, y = load_breast_cancer(return_X_y=True)
    least, largest = x.min(0), x.max(0)
    return Patients(
        subject="breast cancer, 569 tumours, 30 measurements (scikit-learn)",
        division="by the tumour's radius",
        x=(4 * (x - least) / (largest - least) - 1).astype(np.float32),
        y=1 - y.astype(np.int64),  # there 0 is malignant
        hospital=np.digitize(x[:, 0], np.quantile(x[:, 0], (0.25, 0.5, 0.75))).astype(np.int64),
        names=("smallest", "small", "large", "largest"),
    )


def shared_out(all_of_them: Patients) -> tuple[dict[str, Dataset], Dataset]:
    """Return each hospital's own patients, and all in one place; each is tested on the same patients of all."""
    x, y = all_of_them.x, all_of_them.y
    test = np.zeros(len(y), np.bool_)
    test[np.random.default_rng(0).permutation(len(y))[: round(_TEST_SHARE * len(y))]] = True

    def of(which: npt.NDArray[np.bool_]) -> Dataset:
        return Dataset(x=x[which], y=y[which], classes=2, x_test=x[test], y_test=y[test])

    parts = {name: of(~test & (all_of_them.hospital == index)) for index, name in enumerate(all_of_them.names)}
    return parts, of(~test)


async def medical(data: Path, folder: Path, quick: bool, tale: Tale) -> None:  # noqa: FBT001 - as `telling` calls it
    """Tell it."""
    found = patients(data)
    parts, whole = shared_out(found)
    assert whole.y_test is not None
    tale.step(f"The patients: {found.subject}")
    tale.say(f"Four hospitals. Who was examined where is not known: the division is ours, {found.division}.")
    tale.say(f"{len(whole.y_test)} patients of all four are held out; everything below is tested on them.")
    spec = ModelSpec(architecture="mlp", inputs=whole.feature_shape, classes=2, hidden=16, hidden_activation="relu")
    rounds = _QUICK_ROUNDS if quick else _ROUNDS
    tale.step("Each hospital alone, as it is today")
    alone = {name: _alone(spec, part, rounds) for name, part in parts.items()}
    for name, part in parts.items():
        tale.say(
            f"{name}: {len(part.y)} patients, {percent(float(part.y.mean()))} ill: right on {percent(alone[name])}"
        )
    tale.step("Four nodes make a mesh, and learn one model in private")
    async with gathered(folder, {name: {"patients": part} for name, part in parts.items()}) as nodes:
        in_mesh = await _learn(nodes[found.names[0]], spec, rounds, tale)
        asked = await _ask(nodes[found.names[-1]], whole)
        tale.say(f"{found.names[-1]} asks the mesh for all {len(whole.y_test)}: {percent(asked)} right.")
        careful = None if quick else await _learn_carefully(nodes[found.names[0]], spec, tale)
    _conclude(tale, alone, in_mesh, careful, _without_mesh(spec, whole, rounds))


def _alone(spec: ModelSpec, part: Dataset, rounds: int) -> float:
    accuracy = train_alone(spec, part, _SETTINGS, rounds * _SETTINGS.local_steps).evaluate().accuracy
    assert accuracy is not None
    return accuracy


async def _learn(node: Node, spec: ModelSpec, rounds: int, tale: Tale) -> float:
    result = await node.train(
        "diagnosis", data="patients", model=spec, policy="private", rounds=rounds, settings=_SETTINGS, members_min=4
    )
    sent = max(said.bytes_sent for said in result.nodes.values())
    tale.say(f"{result.rounds} rounds; each sent {sent / 1000:,.0f} kB, sums under masks, and no patient.")
    await node.wait_served("diagnosis")
    return result.accuracy_worst


async def _ask(node: Node, whole: Dataset) -> float:
    answers = await node.predict("diagnosis", whole.x_test)
    return float((answers.argmax(1) == whole.y_test).mean())


async def _learn_carefully(node: Node, spec: ModelSpec, tale: Tale) -> tuple[float, float] | None:
    """Train again with a bound on what can be learned of any one patient; accuracy and epsilon, if opacus is there."""
    tale.step("The same with a bound on what anybody can learn of any one patient")
    if importlib.util.find_spec("opacus") is None:
        tale.say("Left out: it takes `pip install 'lepton-node[dp]'`.")
        return None
    result = await node.train(
        "diagnosis-dp", data="patients", model=spec, policy="private", rounds=_CAREFUL_ROUNDS, settings=_CAREFUL,
        members_min=4,
    )  # fmt: skip
    epsilon = max(said.epsilon or 0.0 for said in result.nodes.values())
    tale.say(f"Spent: epsilon {epsilon:.2f} at delta {_CAREFUL.dp.delta if _CAREFUL.dp else 0:g}, each patient.")
    return result.accuracy_worst, epsilon


def _without_mesh(spec: ModelSpec, whole: Dataset, rounds: int) -> dict[str, float]:
    """What there would be if hospitals gave their patients away."""
    assert whole.x_test is not None
    linear = LogisticRegression(max_iter=2000).fit(whole.x, whole.y)
    return {
        "all data in one place": _alone(spec, whole, rounds),
        "all data in one place, logistic regression": float(linear.score(whole.x_test, whole.y_test)),
    }


def _conclude(
    tale: Tale, alone: dict[str, float], mesh: float, careful: tuple[float, float] | None, central: dict[str, float]
) -> None:
    rows: list[Any] = [(f"{name}, alone", percent(accuracy)) for name, accuracy in alone.items()]
    rows.append(("mesh, private", percent(mesh)))
    if careful is not None:
        rows.append((f"mesh, private, epsilon {careful[1]:.2f}", percent(careful[0])))
    rows += [(name, percent(accuracy)) for name, accuracy in central.items()]
    tale.table("Right on all hospitals' patients", ("trained by", "accuracy"), rows, marked="mesh, private")
    tale.figures |= {"mesh": mesh, "best_alone": max(alone.values()), **central}
    if careful is not None:
        tale.figures |= {"mesh_dp": careful[0], "epsilon": careful[1]}
        tale.say(
            "A bound on each patient is dear where there are a hundred or two: its noise shrinks with their number."
        )
    tale.claim("The mesh's model is better than any hospital's own", holds=mesh > max(alone.values()))


main = command(medical)

if __name__ == "__main__":
    main()
