"""Cameras that learn together what an empty road looks like, and raise an alarm for each car, and for nothing else.

The trap is the exposure, which follows the cars and lags behind them: a dark road without a car is out of the ordinary
for whoever has only seen it in even light. No picture leaves its camera, not to be learned from and not to be watched:
the detector is compressed and runs as a service on every camera, which answers that camera alone.

    python -m lepton.node.examples.surveillance
"""

import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
import trio

from ...mesh.errors import LeptonError
from ..blobs.layers import read_layer_blob
from ..compression import Compressed, quantise, save
from ..compression.contents import stored_bytes
from ..learning.data import Dataset
from ..learning.settings import TrainSettings
from ..learning.trainer import train_alone
from ..models import Chain, build, load_layer
from ..services.errors import NotHere
from ..shapes import ModelSpec, layer_schema
from . import lookout
from .gathering import Nodes, gathered
from .lookout import Lookout, Watch, errors, scaled
from .road import (
    Camera,
    Errors,
    Flags,
    Score,
    background,
    cameras,
    in_hindsight,
    judged,
    scored,
    spans,
    terms_for,
    worst_of,
)
from .telling import Tale, command, percent

OFFICE: Final = "office"

_HIDDEN: Final = 32
# Adam's steps are as long for any error: of the one camera that saw the dark nothing was left in the mean of four.
_SETTINGS: Final = TrainSettings(local_steps=20, batch_size=32, learning_rate=0.3, schedule="cosine")
_ROUNDS: Final = 60
_QUICK_ROUNDS: Final = 30
_BITS: Final = 4

_PATIENCE_S: Final = 120.0  # for instances to start, which takes seconds
_UNPLUGGED_AT: Final = 200  # while the second car passes


async def surveillance(data: Path, folder: Path, quick: bool, tale: Tale) -> None:  # noqa: FBT001 - as `telling` calls it
    """Tell it."""
    seen, car = cameras(data)
    _introduce(tale, seen, car)
    rows = _without_mesh(seen, car, quick)
    parts = {OFFICE: {}, **{camera.name: {"road": camera.data} for camera in seen}}
    beside = {"labels": ["camera"], "memory": "1GB", "cores": 0.25}  # room for its own alone
    services: dict[str, dict[str, Any]] = {OFFICE: {"host": False}, **{camera.name: beside for camera in seen}}
    tale.step("Five nodes make a mesh: four cameras learn one detector, an office has them do it")
    async with gathered(folder, parts, services=services) as nodes:
        detector = await _learn(nodes, seen[0], tale, _QUICK_ROUNDS if quick else _ROUNDS)
        compressed = _compress(detector, seen, car, rows, tale)
        _write_bundle(folder / "lookout", compressed, detector.spec, seen)
        await _deploy(nodes, folder / "lookout", seen, tale)
        rows["the service, live"] = await _watch(nodes, seen, car, tale)
    _conclude(tale, rows)


def _introduce(tale: Tale, seen: list[Camera], car: Flags) -> None:
    tale.step(f"A road: {len(car)} frames at 10 a second, {len(spans(car))} cars, and an exposure that follows them")
    tale.say("One clip: four views are cut from it, two of them mirrored, as if four cameras hung there. They overlap.")
    for camera in seen:
        light = np.median(camera.frames, (1, 2)) / np.median(camera.frames[~car])
        dark = float(light[camera.own].min())
        tale.say(
            f"{camera.name} was on watch for {camera.own.sum()} frames without a car; "
            f"the darkest was {percent(dark)} as bright as usual."
        )
    tale.say(f"{int((~car & (light < 0.95)).sum())} frames without a car are darker than usual: there are the traps.")


def _without_mesh(seen: list[Camera], car: Flags, quick: bool) -> dict[str, Score]:  # noqa: FBT001
    steps = (_QUICK_ROUNDS if quick else _ROUNDS) * _SETTINGS.local_steps
    alone = [_apart(camera.data, steps, [camera])[0] for camera in seen]
    own = [float(found[camera.own].max()) for found, camera in zip(alone, seen, strict=True)]
    together = _apart(_all_of(seen), steps, seen)
    plain, even = ([background(camera, evened=evened) for camera in seen] for evened in (False, True))
    best = Score(0, 0, 0)
    for found in plain:
        best += in_hindsight(found, car)
    return {
        "each camera alone": scored(alone, own, seen, car),
        "difference to the background": scored(plain, worst_of(plain, seen), seen, car),
        "the same, best threshold in hindsight": best,
        "the same, light evened out": scored(even, worst_of(even, seen), seen, car),
        "all pictures in one place": scored(together, worst_of(together, seen), seen, car),
    }


def _apart(data: Dataset, steps: int, seen: list[Camera]) -> list[Errors]:
    """Train without a mesh, and return the errors on what these cameras see."""
    chain = build(_spec(data))
    chain.load_state_dict(train_alone(chain.spec, data, _SETTINGS, steps).tensors())
    return [errors(chain, scaled(camera.frames)) for camera in seen]


def _all_of(seen: list[Camera]) -> Dataset:
    x = np.concatenate([camera.data.x for camera in seen])
    return Dataset(x=x, y=x, classes=x.shape[1], x_test=x, y_test=x)


def _spec(data: Dataset) -> ModelSpec:
    return ModelSpec(
        architecture="mlp", inputs=data.feature_shape, classes=data.classes, objective="mse", hidden=_HIDDEN,
        hidden_activation="relu",
    )  # fmt: skip


async def _learn(nodes: Nodes, small: Camera, tale: Tale, rounds: int) -> Chain:
    """Have all cameras learn, and return the model as one of them has it, which makes it small."""
    spec = _spec(small.data)
    result = await nodes[OFFICE].train(
        "empty-road", data="road", model=spec, objective="mse", rounds=rounds, settings=_SETTINGS, members_min=4
    )
    sent = max(said.bytes_sent for said in result.nodes.values())
    tale.say(f"{result.rounds} rounds; each camera sent {sent / 1e6:.1f} MB of models, and no picture.")
    _, layers = await nodes[small.name].weights.whole("empty-road")
    chain = build(spec)
    for index, layer in enumerate(layers):
        load_layer(chain, index, read_layer_blob(bytes(layer), layer_schema(spec, index)))
    return chain.eval()


def _compress(chain: Chain, seen: list[Camera], car: Flags, rows: dict[str, Score], tale: Tale) -> Compressed:
    tale.step(f"{seen[0].name} makes the detector small for the edge, with pictures of its own")
    small = quantise(chain, bits=_BITS, data=torch.from_numpy(seen[0].data.x))
    for name, module in (("mesh, float32", chain), (f"mesh, int{_BITS}", small.module)):
        found = [errors(module, scaled(camera.frames)) for camera in seen]
        rows[name] = scored(found, worst_of(found, seen), seen, car)
    before, now = stored_bytes(chain), stored_bytes(small.module)
    assert small.taken_s is not None
    assert small.taken_s_before is not None
    tale.say(
        f"{before / 1000:.0f} kB of float32 become {now / 1000:.0f} kB of int{_BITS}, {before / now:.1f} times less; "
        f"a frame takes {1e6 * small.taken_s:.0f} us, before {1e6 * small.taken_s_before:.0f}."
    )
    tale.figures |= {"bytes": now, "bytes_before": before, "us": 1e6 * small.taken_s}
    tale.figures |= {"us_before": 1e6 * small.taken_s_before}
    return small


def _write_bundle(folder: Path, small: Compressed, spec: ModelSpec, seen: list[Camera]) -> None:
    worst = worst_of([errors(small.module, scaled(camera.frames)) for camera in seen], seen)[0]
    folder.mkdir()
    shutil.copy(lookout.__file__, folder / "lookout.py")
    (folder / "service.toml").write_text('entry = "lookout:Lookout"\n', "utf-8")
    (folder / "terms.json").write_bytes(msgspec.json.encode(terms_for(worst, spec)))
    save(small, folder / "detector")


async def _deploy(nodes: Nodes, bundle: Path, seen: list[Camera], tale: Tale) -> None:
    """Have each camera run the service, and see that whoever does not run it cannot ask another."""
    tale.step("The office signs a bundle, and the cameras run it")
    services = nodes[OFFICE].services
    name = await services.deploy(bundle, replicas=len(seen), on=("camera",))
    with trio.move_on_after(_PATIENCE_S) as patience:
        await services.operating.watch(name, _say_nothing)
    if patience.cancelled_caught:
        raise LeptonError(f"The service did not come to run within {_PATIENCE_S:g} s; is the machine that busy?")
    by_peer = {node.mesh.me: each for each, node in nodes.items()}
    hosts = sorted(by_peer[peer] for peer, its in services.view.hosted()[name].items() if its.instances)
    tale.say(f"{len(hosts)} instances, each in a process of its own, on {', '.join(hosts)}.")
    try:
        await nodes[OFFICE].client(Lookout).look(seen[0].frames[0], Watch())
        kept = False
    except NotHere as error:
        tale.say(f"A frame is looked at where it is taken, or nowhere. The office tries: {error}")
        kept = True
    beside = kept and len(hosts) == len(seen)
    tale.claim("A service beside each camera, and none that looks at others' frames", holds=beside)


async def _say_nothing(_: object) -> None: ...


async def _watch(nodes: Nodes, seen: list[Camera], car: Flags, tale: Tale) -> Score:
    """Have each camera's own instance look at its frames; in the middle one camera is unplugged."""
    gone = seen[-1].name
    tale.step(f"They watch {len(car) / 10:.0f} s of road; {gone} is unplugged in the middle of it")
    stood = {camera.name: [Watch()] for camera in seen}
    took_s: list[float] = []
    begin = until = _sent(nodes, seen)

    async def look(camera: Camera, at: int) -> None:
        begun = time.perf_counter()
        said = await nodes[camera.name].client(Lookout).look(camera.frames[at], stood[camera.name][-1])
        took_s.append(time.perf_counter() - begun)
        stood[camera.name].append(said)
        if said.alarm != stood[camera.name][-2].alarm:
            tale.say(f"{at / 10:5.1f} s  {camera.name}: {'ALARM' if said.alarm else 'all clear'}")

    for at in range(len(car)):
        async with trio.open_nursery() as frame:
            for camera in seen:
                if camera.name in nodes and (at < _UNPLUGGED_AT or camera.name != gone):
                    frame.start_soon(look, camera, at)
            if at == _UNPLUGGED_AT:  # while the others ask
                until = _sent(nodes, seen)
                nodes.unplug(gone)
                tale.say(f"{at / 10:5.1f} s  {gone} is unplugged, with its instance: nobody sees its view now.")
    carried = ((until - begin) + (_sent(nodes, seen) - until)).total()
    _tell_of_calls(tale, took_s, carried, seen[0].frames[0].nbytes)
    total = Score(0, 0, 0)
    for said in stood.values():
        total += judged(np.array([watch.alarm for watch in said[1:]]), car)
    missed = len(seen) * len(spans(car)) - total.cars
    tale.say(f"{gone} had {len(car) - len(stood[gone]) + 1} frames to come, and {missed} car in them, that nobody saw.")
    return total


def _sent(nodes: Nodes, seen: list[Camera]) -> Counter[tuple[str, str]]:
    """Return what cameras sent over each link that they have now, in bytes."""
    there = [camera.name for camera in seen if camera.name in nodes]
    return Counter({(name, peer): sent for name in there for peer, (sent, _) in nodes[name].mesh.traffic.items()})


def _tell_of_calls(tale: Tale, took_s: list[float], carried: int, frame: int) -> None:
    tale.figures["call_ms_p50"], tale.figures["call_ms_p99"] = (1000 * np.quantile(took_s, q) for q in (0.5, 0.99))
    tale.figures |= {"frames_bytes": len(took_s) * frame, "sent_bytes": carried}
    tale.say(
        f"{len(took_s)} frames were looked at; the middle one took {tale.figures['call_ms_p50']:.1f} ms there and "
        f"back, one in a hundred more than {tale.figures['call_ms_p99']:.1f}."
    )
    tale.say(
        f"They are {len(took_s) * frame / 1e6:.1f} MB; all that cameras sent meanwhile is {carried / 1000:.0f} kB."
    )


def _conclude(tale: Tale, rows: dict[str, Score]) -> None:
    tale.table(
        "Four cameras", ("", "cars found", "false alarms", "AUC"),
        [(name, f"{it.found} of {it.cars}", str(it.false), "" if np.isnan(it.auc) else f"{it.auc:.3f}")
         for name, it in rows.items()],
        marked="the service, live",
    )  # fmt: skip
    tale.say("Who knows that cameras change their exposure, and evens it out, needs to learn nothing on this road.")
    live, small, whole = rows["the service, live"], rows[f"mesh, int{_BITS}"], rows["mesh, float32"]
    tale.figures |= {"cars": live.cars, "found": live.found, "false": live.false}
    tale.figures |= {"false_alone": rows["each camera alone"].false, "auc": small.auc, "auc_float": whole.auc}
    tale.figures["false_background"] = rows["the same, best threshold in hindsight"].false
    tale.claim("Every car that passed a camera raised its alarm", holds=live.found == live.cars)
    tale.claim("Nothing else did, and no jump of the exposure", holds=live.false == 0)
    still = tale.figures["sent_bytes"] * 10 < tale.figures["frames_bytes"]
    tale.claim("Frames stay: all that cameras sent is not a tenth of their bytes", holds=still)
    tale.claim("A camera that learns alone is caught by them", holds=rows["each camera alone"].false > 0)
    smaller = tale.figures["bytes"] * 4 < tale.figures["bytes_before"]
    tale.claim(
        "The detector is four times smaller, and finds the same cars",
        holds=smaller and small[:3] == whole[:3],
    )


main = command(surveillance)

if __name__ == "__main__":
    main()
