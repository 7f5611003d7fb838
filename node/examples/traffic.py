"""Roads that learn together to forecast their speeds an hour ahead, and to say where something has happened.

The sensors of a site share a device; each device keeps what its sensors saw. They learn one model together, which is
measured beside what needs no learning together: that all stays as it is, and a linear regression on the last hour.

    python -m lepton.node.examples.traffic
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from ..learning.settings import TrainSettings
from ..learning.trainer import Trainer, train_alone
from ..models import build
from ..node import Node
from ..shapes import ModelSpec
from . import incidents
from .gathering import gathered
from .speeds import (
    AHEAD,
    STEP_MIN,
    STEPS_A_DAY,
    Floats,
    Roads,
    Whole,
    changes,
    dataset,
    errors_mph,
    forecast_mph,
    linear_errors_mph,
    read_roads,
    seen,
    sites,
)
from .telling import Row, Tale, command, percent

_SITES: Final = 8
_QUICK_SITES: Final = 4
_ROUNDS: Final = 60
_QUICK_ROUNDS: Final = 15
_SETTINGS: Final = TrainSettings(local_steps=40, batch_size=128, learning_rate=0.05, schedule="cosine")
_SPEC: Final = ModelSpec(
    architecture="mlp", inputs=(17,), classes=len(AHEAD), objective="mae", hidden=64, hidden_activation="relu"
)
_BATCH: Final = 4096  # samples that are asked for at once
_SHOWN: Final = 5
_LEAST_RECALL: Final = 0.8

Errors = npt.NDArray[np.float64]
Sites = Mapping[str, Whole]


async def traffic(data: Path, folder: Path, quick: bool, tale: Tale) -> None:  # noqa: FBT001 - as `telling` calls it
    """Tell it."""
    roads, rounds = read_roads(data), _QUICK_ROUNDS if quick else _ROUNDS
    groups = sites(roads.place, _QUICK_SITES if quick else _SITES)
    where: Sites = {f"site-{index + 1}": group for index, group in enumerate(groups)}
    count, steps = roads.speed.shape
    tale.step(f"The roads: {count} sensors on the motorways of Los Angeles, {steps / STEPS_A_DAY:.1f} days (METR-LA)")
    tale.say(f"{len(where)} devices of {len(groups[0])} sensors or so, by where they stand: this division is ours.")
    tale.say("The last fifth of the time is the test; nothing of it is seen before.")
    parts = {name: {"speeds": dataset(roads, sensors)} for name, sensors in where.items()}
    tale.step(f"{len(where)} nodes make a mesh, and learn one model together")
    async with gathered(folder, parts) as nodes:
        first = nodes["site-1"]
        result = await first.train(
            "speeds", data="speeds", model=_SPEC, rounds=rounds, settings=_SETTINGS, members_min=len(where)
        )
        sent = max(said.bytes_sent for said in result.nodes.values())
        tale.say(f"{result.rounds} rounds; each sent {sent / 1000:,.0f} kB, and no speed.")
        await first.wait_served("speeds")
        errors = await _measure(nodes, roads, where)
        _compare(tale, roads, errors, _alone(roads, where, rounds))
        tale.step("Incidents: a speed far below its forecast of 15 minutes before, twice in a row")
        await _watch(nodes, roads, where, tale)


async def _ask(node: Node, roads: Roads, sensors: Whole, steps: Sequence[int]) -> Floats:
    """Have the mesh say how these sensors' speeds will change: (sensors * steps, 3)."""
    x = seen(roads, sensors, steps)
    x = x.reshape(-1, x.shape[2])
    answers = [await node.predict("speeds", x[start : start + _BATCH]) for start in range(0, len(x), _BATCH)]
    return np.concatenate(answers)


async def _measure(nodes: Mapping[str, Node], roads: Roads, where: Sites) -> Errors:
    """Return the errors of what each site's node is told by the mesh about its own sensors."""
    said = [await _ask(nodes[name], roads, sensors, roads.test) for name, sensors in where.items()]
    truth = [changes(roads, sensors, roads.test).reshape(-1, len(AHEAD)) for sensors in where.values()]
    return errors_mph(np.concatenate(said), np.concatenate(truth))


def _alone(roads: Roads, where: Sites, rounds: int) -> dict[str, Errors]:
    """Return the errors of models that each site trains alone, on its own roads and on all, and of one on all data."""
    steps, every = rounds * _SETTINGS.local_steps, np.arange(len(roads.speed))
    whole = dataset(roads, every)
    assert whole.x_test is not None
    assert whole.y_test is not None
    own, own_day, all_of_them = [], [], []
    for sensors in where.values():
        part = dataset(roads, sensors)
        trainer = train_alone(_SPEC, part, _SETTINGS, steps)
        own.append(errors_mph(_said(trainer, part.x_test), np.asarray(part.y_test)))
        newcomer = train_alone(_SPEC, dataset(roads.last_day(), sensors), _SETTINGS, steps)
        own_day.append(errors_mph(_said(newcomer, part.x_test), np.asarray(part.y_test)))
        all_of_them.append(errors_mph(_said(trainer, whole.x_test), whole.y_test))
    weights = [len(sensors) for sensors in where.values()]
    return {
        "each alone, on its own roads": np.average(own, axis=0, weights=weights),
        "each alone, having seen one day": np.average(own_day, axis=0, weights=weights),
        "each alone, on all roads": np.mean(all_of_them, axis=0),
        "all data in one place": errors_mph(
            _said(train_alone(_SPEC, whole, _SETTINGS, steps), whole.x_test), whole.y_test
        ),
    }


def _said(trainer: Trainer, x: npt.NDArray[Any] | None) -> Floats:
    model = build(_SPEC)
    model.load_state_dict(trainer.tensors())
    with torch.inference_mode():
        y: Floats = model(torch.from_numpy(x)).numpy()
    return y


def _compare(tale: Tale, roads: Roads, mesh: Errors, others: Mapping[str, Errors]) -> None:
    truth = changes(roads, np.arange(len(roads.speed)), roads.test)
    stays, linear = errors_mph(np.zeros_like(truth), truth), linear_errors_mph(roads)
    named = {"all stays as it is": stays, "shared AR(12)": linear, "mesh": mesh, **others}
    rows: list[Row] = [(name, *(f"{error:.2f}" for error in errors)) for name, errors in named.items()]
    columns = ("forecast by", *(f"{STEP_MIN * steps} min" for steps in AHEAD))
    tale.table("Mean absolute error, mph, on the last fifth of the time", columns, rows, marked="mesh")
    tale.say("A site that has kept four days does as well alone on its own roads. Who gains is a site with less.")
    for name, errors in named.items():
        tale.figures |= {f"{name}, {STEP_MIN * ahead} min": float(e) for ahead, e in zip(AHEAD, errors, strict=True)}
    tale.claim(
        "The mesh forecasts better than persistence and the shared AR(12), at 15, 30 and 60 minutes",
        holds=bool((mesh < np.minimum(stays, linear)).all()),
    )


async def _watch(nodes: Mapping[str, Node], roads: Roads, where: Sites, tale: Tale) -> None:
    """Look for incidents: planted ones, and what there was."""
    every, usual = np.arange(len(roads.speed)), roads.speed[:, : roads.cut].mean(1)
    planted, starts = incidents.plant(roads, np.random.default_rng(0))
    forecasts = {
        "forecast": [
            await _forecast(nodes, these, where, steps)
            for these, steps in ((roads, roads.training), (roads, roads.test), (planted, roads.test))
        ],
        "speed of 15 minutes before": [
            these.speed[:, np.array(steps)]
            for these, steps in ((roads, roads.training), (roads, roads.test), (planted, roads.test))
        ],
    }
    known, at = (incidents.later(steps) for steps in (roads.training, roads.test))
    rows: list[Row] = []
    for name, (before, untouched, changed) in forecasts.items():
        limits = incidents.limits_mph(before, roads.speed[:, known])
        quiet = incidents.alarms(untouched, roads.speed[:, at], limits, usual)
        found = incidents.judged(
            incidents.alarms(changed, planted.speed[:, at], limits, usual), quiet, starts, int(at[0])
        )
        rows.append((name, percent(found.recall), f"{found.minutes:.0f} min", f"{found.false_per_sensor_day:.2f}"))
        tale.figures |= {f"recall, {name}": found.recall, f"false, {name}": found.false_per_sensor_day}
        if name == "forecast":
            _show_real(tale, roads, untouched, incidents.begun(quiet), at)
    tale.say(
        f"{len(every)} incidents are planted in a copy of the test, one at each sensor: its speed falls to a fifth."
    )
    tale.table(
        "Alarms, when a speed is far below its ...",
        ("...", "planted ones found", "after", "alarms a sensor and day on untouched roads"),
        rows,
        marked="forecast",
    )
    tale.say("There are no labels: some alarms on untouched roads are real incidents, others jams that began at once.")
    tale.say("For this a forecast is not needed: at as many alarms, the plain fall of a speed finds about as much.")
    recall = tale.figures["recall, forecast"]
    tale.claim(
        f"{100 * _LEAST_RECALL:.0f} % of the planted incidents are found within half an hour",
        holds=recall >= _LEAST_RECALL,
    )


async def _forecast(nodes: Mapping[str, Node], roads: Roads, where: Sites, steps: Sequence[int]) -> Floats:
    """Return all sensors' speeds in 15 minutes as the mesh forecasts them at these steps: (S, steps)."""
    speed = np.empty((len(roads.speed), len(steps)), np.float32)
    for name, sensors in where.items():
        said = await _ask(nodes[name], roads, sensors, steps)
        speed[sensors] = forecast_mph(roads, sensors, steps, said)
    return speed


def _show_real(tale: Tale, roads: Roads, forecast: Floats, begun: npt.NDArray[np.bool_], at: Whole) -> None:
    """Tell of the alarms on the roads as they were, whose speed was furthest from its forecast."""
    below = np.where(begun, forecast - roads.speed[:, at], -np.inf)
    order = np.argsort(below, axis=None)[::-1][:_SHOWN]
    tale.say(f"{int(begun.sum())} alarms on the roads as they were; the {_SHOWN} furthest from what was forecast:")
    for sensor, column in zip(*np.unravel_index(order, below.shape), strict=True):
        minutes = STEP_MIN * (int(at[column]) % STEPS_A_DAY)
        tale.say(
            f"  day {int(at[column]) // STEPS_A_DAY + 1}, {minutes // 60:02d}:{minutes % 60:02d}, sensor {sensor}: "
            f"{roads.speed[sensor, at[column]]:.0f} mph where {forecast[sensor, column]:.0f} were forecast"
        )


main = command(traffic)

if __name__ == "__main__":
    main()
