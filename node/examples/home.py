"""A home whose small devices recognise what somebody does, a rule that heats by it, and a device that is unplugged.

What is recognised comes from a model that the devices trained together; the rule is a service of the mesh, on two of
them. One of these two, which also holds the model, is a process of its own and is killed as a power cut would do it:
in the middle of predictions, of the rule's calls and of a second training.

    python -m lepton.node.examples.home
"""

import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import trio
from sklearn.linear_model import LogisticRegression

from ...mesh.errors import LeptonError
from ..demo.process import NodeProcess, stopping
from ..learning.data import Dataset
from ..learning.settings import TrainSettings
from ..learning.tasks import TrainResult
from ..learning.trainer import train_alone
from ..node import Node
from ..shapes import ModelSpec
from . import heating
from .activities import DAY_MIN, TRAINING_DAYS, Home, read_home, shared_out, whole
from .gathering import INTERFACE, gathered, until
from .heating import COMFORT, Heating
from .telling import Row, Tale, command, percent

_DEVICES: Final = TRAINING_DAYS
_QUICK_DEVICES: Final = 5
_ROUNDS: Final = 30
_QUICK_ROUNDS: Final = 15
_AGAIN_ROUNDS: Final = 60  # of the second training: enough that one is killed in its middle
_SETTINGS: Final = TrainSettings(local_steps=20, batch_size=32, learning_rate=0.1, schedule="cosine")
_KEEPER: Final = "boiler-room"  # the device that will be unplugged
_OTHER: Final = "hall"
_ASKER: Final = "room-1"  # it holds neither the model nor the rule
# Only two devices give memory: each holds the whole model, and the one that the second training makes.
_ROOM: Final = "100kB"
_NO_ROOM: Final = "1B"
_LABEL: Final = "heating"
_TOGETHER_MIN: Final = 5  # minutes that are asked for at once
_MEMORY_MIN: Final = 15  # minutes that the rule looks back on
_BEFORE: Final = 20  # times that the home asks before the second training begins
_IN_ROUND: Final = 3  # of it, the device is killed
_SHOWN: Final = 6
_RIGHT: Final = 0.95


@dataclass
class Day:
    """What the home did while it was watched."""

    asked: int = 0
    failed: int = 0
    after: int = 0  # asked after the device was unplugged
    waited_s: float = 0.0  # the longest for one answer and the rule's
    said: list[int] = field(default_factory=list)  # activities, minute by minute
    heating: list[str] = field(default_factory=list)


async def home(data: Path, folder: Path, quick: bool, tale: Tale) -> None:  # noqa: FBT001 - as `telling` calls it
    """Tell it."""
    found = read_home(data)
    devices, rounds = (_QUICK_DEVICES, _QUICK_ROUNDS) if quick else (_DEVICES, _ROUNDS)
    parts = shared_out(found, devices)
    tale.step("The home: twelve sensors at doors, beds and basins; nine activities (Ordonez A, UCI)")
    tale.say(f"One home, fourteen days. {devices} devices have {TRAINING_DAYS // devices} each: this division is ours.")
    tale.say("The last four days are the test.")
    spec = ModelSpec(
        architecture="mlp", inputs=parts[0].feature_shape, classes=len(found.names), hidden=32, hidden_activation="relu"
    )
    alone = [_accuracy_alone(spec, part, rounds) for part in parts]
    async with _devices(folder, parts) as (nodes, keeper):
        tale.step(f"{devices} nodes make a mesh; {_KEEPER} is a process of its own. They learn together")
        result = await _learn(nodes[_OTHER], spec, rounds, devices)
        tale.say(
            f"{result.rounds} rounds: alone they are right on {percent(float(np.mean(alone)))} of minutes on average,"
        )
        tale.say(f"in the mesh the worst on {percent(result.accuracy_worst)}.")
        await _deploy(nodes[_OTHER], folder, tale)
        tale.step(f"The test days, minute by minute; after a while {_KEEPER} is unplugged")
        day, again, killed_in = await _live(nodes, keeper, found, spec, tale, quick=quick)
    _conclude(tale, found, day, alone, result, again, killed_in)


@asynccontextmanager
async def _devices(folder: Path, parts: list[Dataset]) -> AsyncIterator[tuple[dict[str, Node], NodeProcess]]:
    """Run all devices, one in a process of its own that ends with the block."""
    *inside, last = parts
    names = [_OTHER, *(f"room-{index + 1}" for index in range(len(inside) - 1))]
    data = {name: {"home": part} for name, part in zip(names, inside, strict=True)}
    memory = dict.fromkeys(names, _NO_ROOM) | {_OTHER: _ROOM}
    services: dict[str, dict[str, Any]] = {name: {"host": False} for name in names} | {_OTHER: {"labels": [_LABEL]}}
    keeper = NodeProcess(folder / _KEEPER)
    keeper.home.mkdir()
    np.savez(keeper.home / "part.npz", **{name: getattr(last, name) for name in ("x", "y", "x_test", "y_test")})
    (keeper.home / "node.toml").write_text(
        f'name = "{_KEEPER}"\nlisten = ["{INTERFACE}:0"]\ninterfaces = ["{INTERFACE}"]\n'
        f'[web]\nlisten = "off"\n[serve]\nmemory = "{_ROOM}"\n[services]\nlabels = ["{_LABEL}"]\n'
        f'[data]\nhome = "part.npz"\n',
        "utf-8",
    )
    async with (
        stopping([keeper]),
        gathered(folder, data, memory=memory, services=services) as nodes,
    ):
        await keeper.command("join", nodes[_OTHER].invite())
        await keeper.up()
        await until(lambda: all(len(node.tasks.profiles()) == len(parts) for node in nodes.values()))
        yield nodes, keeper


def _accuracy_alone(spec: ModelSpec, part: Dataset, rounds: int) -> float:
    accuracy = train_alone(spec, part, _SETTINGS, rounds * _SETTINGS.local_steps).evaluate().accuracy
    assert accuracy is not None
    return accuracy


async def _learn(node: Node, spec: ModelSpec, rounds: int, devices: int) -> TrainResult:
    result = await node.train(
        "activity", data="home", model=spec, rounds=rounds, settings=_SETTINGS, members_min=devices
    )
    await node.wait_served("activity")
    return result


async def _deploy(node: Node, folder: Path, tale: Tale) -> None:
    """Ship the rule to the two devices that carry its label."""
    bundle = folder / "heating"
    bundle.mkdir()
    shutil.copy(heating.__file__, bundle / "heating.py")
    (bundle / "service.toml").write_text('entry = "heating:Heating"\n', "utf-8")
    await node.services.deploy(bundle, replicas=2, on=(_LABEL,))
    await until(lambda: sum(node.services.progress("heating").ready.values()) == 2)
    tale.say(f"The rule is a service of the mesh, signed and shipped to {_OTHER} and {_KEEPER}.")


async def _live(
    nodes: Mapping[str, Node], keeper: NodeProcess, found: Home, spec: ModelSpec, tale: Tale, *, quick: bool
) -> tuple[Day, TrainResult, int]:
    """Live through the test days while another training goes on, and unplug a device in its middle."""
    asker = nodes[_ASKER]
    day, killed_in = Day(), -1
    again: list[TrainResult] = []
    x = found.x[found.is_test]
    x = x[: DAY_MIN // 2] if quick else x

    async def train() -> None:
        again.append(await _learn_again(nodes[_OTHER], spec))

    async with trio.open_nursery() as nursery:
        for number, start in enumerate(range(0, len(x), _TOGETHER_MIN)):
            if number == _BEFORE:
                me = (await keeper.status())["me"]
                nursery.start_soon(train)
                killed_in = await _unplug(nodes[_OTHER], keeper, me)
                tale.say(
                    f"{_KEEPER} was killed after {day.asked} questions, in round {killed_in} of a second training."
                )
            await _ask(asker, x[start : start + _TOGETHER_MIN], found.names, day)
            day.after += killed_in >= 0
    return day, again[0], killed_in


async def _learn_again(node: Node, spec: ModelSpec) -> TrainResult:
    return await node.train("activity-again", data="home", model=spec, rounds=_AGAIN_ROUNDS, settings=_SETTINGS)


async def _unplug(node: Node, keeper: NodeProcess, me: str) -> int:
    """Kill a device once it is well in the second training; in which round of its own it was."""

    def round_() -> int:
        said = {str(peer): trainer for peer, trainer in node.trainers("activity-again", 1).items()}
        return said[me].round if me in said and said[me].state == "training" else -1

    await until(lambda: round_() >= _IN_ROUND)
    keeper.kill()
    return round_()


async def _ask(node: Node, x: npt.NDArray[np.float32], names: tuple[str, ...], day: Day) -> None:
    """Have some minutes recognised, and the rule say how to heat now."""
    day.asked += 1
    began = trio.current_time()
    try:
        answers = await node.predict("activity", x)
        day.said += [int(answer) for answer in answers.argmax(1)]
        recent = [names[said] for said in day.said[-_MEMORY_MIN:]]
        decided = await node.call("heating.decide", recent, day.heating[-1] if day.heating else COMFORT)
    except LeptonError:
        day.failed += 1
        return
    day.heating.append(str(decided))
    day.waited_s = max(day.waited_s, trio.current_time() - began)


def _conclude(
    tale: Tale, found: Home, day: Day, alone: list[float], result: TrainResult, again: TrainResult, killed_in: int
) -> None:
    truth = found.y[found.is_test][: len(day.said)]
    by_truth = _heated(found, truth)
    minutes = found.minute[found.is_test]
    for index in [at for at in range(1, len(day.heating)) if day.heating[at] != day.heating[at - 1]][:_SHOWN]:
        at = min((index + 1) * _TOGETHER_MIN, len(truth)) - 1
        clock = int(minutes[at]) % DAY_MIN
        tale.say(
            f"  {clock // 60:02d}:{clock % 60:02d} {found.names[day.said[at]]}: heating goes to {day.heating[index]}"
        )
    right = float(np.mean([a == b for a, b in zip(day.heating, by_truth, strict=False)]))
    recognised = float(np.mean(truth == np.array(day.said)))
    rows: list[Row] = [
        ("minutes recognised right", percent(recognised)),
        ("each alone, mean of the devices (the best)", f"{percent(float(np.mean(alone)))} ({percent(max(alone))})"),
        ("in the mesh, worst device", percent(result.accuracy_worst)),
        ("in the mesh after the second training, worst device that is left", percent(_left_worst(again))),
        ("logistic regression on all days in one place", percent(_linear(found))),
        ("heating as it would be if each activity were known", percent(right)),
        ("questions: all, after the device was unplugged, failed", f"{day.asked}, {day.after}, {day.failed}"),
        ("longest wait for an activity and the rule", f"{1000 * day.waited_s:.0f} ms"),
        ("rounds of the second training: when it was unplugged, in all", f"{killed_in}, {again.rounds}"),
    ]
    tale.table("What was measured", ("figure", "value"), rows)
    tale.figures |= {"mesh": result.accuracy_worst, "alone": float(np.mean(alone)), "heating": right}
    tale.figures |= {"failed": day.failed, "after": day.after, "killed_in": killed_in, "rounds": again.rounds}
    tale.claim("In the mesh the worst device recognises more than devices alone on average",
               holds=result.accuracy_worst > float(np.mean(alone)))  # fmt: skip
    tale.claim("Every question was answered, before and after the device was unplugged",
               holds=day.failed == 0 and day.after > 0)  # fmt: skip
    tale.claim(f"The rule heats as it should {percent(_RIGHT)} of the time or more", holds=right >= _RIGHT)
    tale.claim("The second training came to its end without the device",
               holds=0 <= killed_in < again.rounds == _AGAIN_ROUNDS)  # fmt: skip


def _left_worst(again: TrainResult) -> float:
    return min((said.accuracy or 0.0 for said in again.nodes.values() if said.state == "done"), default=0.0)


def _heated(found: Home, truth: npt.NDArray[np.int64]) -> list[str]:
    """Return what the rule would have done, had it known each activity."""
    rule, done = Heating(), [COMFORT]
    for end in range(_TOGETHER_MIN, len(truth) + _TOGETHER_MIN, _TOGETHER_MIN):
        recent = [found.names[label] for label in truth[:end][-_MEMORY_MIN:]]
        done.append(rule.decide(recent, done[-1]))
    return done[1:]


def _linear(found: Home) -> float:
    every = whole(found)
    assert every.x_test is not None
    return float(LogisticRegression(max_iter=500).fit(every.x, every.y).score(every.x_test, every.y_test))


main = command(home)

if __name__ == "__main__":
    main()
