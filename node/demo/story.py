"""The four steps of the demonstration, each of which measures whether it held."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Final

import numpy as np
import torch
import trio

from ...mesh.errors import LeptonError
from ..export import load_model
from ..learning.data import Dataset, digits
from ..learning.partition import partition_dirichlet
from ..learning.trainer import settings_for, train_alone
from ..shapes import ModelSpec, layer_sizes_bytes
from ..watch import table
from .process import NodeProcess, stopping
from .show import Show

_NAMES: Final = ("kitchen", "office", "garage", "attic")
_ALPHA: Final = 0.3  # Dirichlet: most nodes lack most of some digits
_ROUNDS: Final = {"mlp": 100, "cnn": 60}
_ROUNDS_AFTER: Final = 60
_KILL_AT_ROUND: Final = 10
_TOLERANCE: Final = 1e-5
_POINTS: Final = 0.02  # the worst node may be this far below the central model
_REQUESTS: Final = 240
_SAMPLES_PER_REQUEST: Final = 8
_CLIENTS: Final = 4
_KILL_AT_REQUEST: Final = 60
_WAIT_S: Final = 60.0
_POLL_S: Final = 0.1
_INTERFACE: Final = "127.0.0.1"
_STRANGER: Final = (sys.executable, "-m", "lepton.node.demo.stranger")


class Story:
    """Four nodes, their data, and the figures that come of them."""

    STEPS: ClassVar = ("Join", "Learn", "Answer", "Survive")

    def __init__(self, folder: Path, model: str, show: Show) -> None:
        self.figures: dict[str, Any] = {}
        self.held: dict[str, bool] = {}
        self._folder = folder
        self._model = model
        self._show = show
        self._data = digits()
        self._spec = ModelSpec(
            architecture=model,  # type: ignore[arg-type] # the command line allows only these
            inputs=self._data.feature_shape,
            classes=self._data.classes,
        )
        self._nodes = [NodeProcess(folder / name) for name in _NAMES]
        self._truth: np.ndarray[Any, Any]

    async def tell(self) -> None:
        started = time.monotonic()
        self._furnish()
        async with stopping(self._nodes):
            self._show.step("Join: one node makes a mesh, three join with an invite, all by mDNS on this machine")
            await self._join()
            self._show.step(f"Learn: a {self._model.upper()} on four private, uneven parts of the digits")
            await self._learn()
            self._show.step("Answer: no node may hold the whole model, every layer is on two")
            await self._answer()
            self._show.step("Survive: a shard holder is killed under requests, a trainer in a round")
            await self._survive()
        self.figures["seconds"] = round(time.monotonic() - started, 1)

    def _furnish(self) -> None:
        """Give each node its folder, its configuration and its own part of the data."""
        parts = partition_dirichlet(self._data.y, len(_NAMES), _ALPHA, np.random.default_rng(0))
        sizes = layer_sizes_bytes(self._spec)
        memory_bytes = sum(sizes) - 1  # the whole model is one byte too large for every node
        for node, part in zip(self._nodes, parts, strict=True):
            node.home.mkdir()
            np.savez(
                node.home / "part.npz",
                x=self._data.x[part],
                y=self._data.y[part],
                x_test=_given(self._data.x_test),
                y_test=_given(self._data.y_test),
            )
            _write_config(node.home, node.name, f"{memory_bytes} B", 'digits = "part.npz"')
        np.savez(self._folder / "test.npz", x=_given(self._data.x_test), y=_given(self._data.y_test))

    # -- join ---------------------------------------------------------------------------------------------------------

    async def _join(self) -> None:
        first, *others = self._nodes
        await first.command("mesh", "create", "demo")
        await first.up()
        self._show.say(f"{first.name} made the mesh and is up")
        codes = [(await first.command("invite")).strip() for _ in others]
        async with trio.open_nursery() as nursery:
            for node, code in zip(others, codes, strict=True):
                nursery.start_soon(self._join_one, node, code)
        for node in self._nodes:
            await _until(self._sees_all(node))
        self._show.say("all four are connected to each other; no address or port was typed")
        refused = await self._try_uninvited(first)
        self.figures["nodes"] = len(self._nodes)
        self.figures["refused_without_invite"] = refused
        self.held["Join: four nodes found each other, the fifth without an invite was refused"] = refused

    async def _join_one(self, node: NodeProcess, code: str) -> None:
        await node.command("join", code)
        await node.up()
        self._show.say(f"{node.name} joined with its invite and is up")

    def _sees_all(self, node: NodeProcess) -> Callable[[], Any]:
        async def seen() -> bool:
            return len((await node.status())["peers"]) == len(self._nodes)

        return seen

    async def _try_uninvited(self, member: NodeProcess) -> bool:
        """Let a fifth process try, which knows the mesh's public id and signed itself a grant."""
        before = await member.status()
        tried = await trio.run_process(
            [*_STRANGER, before["mesh_id"], _INTERFACE], capture_stdout=True, capture_stderr=True, check=False
        )
        self._show.say(f"a fifth process without an invite: {tried.stdout.decode().strip()}")
        after = await member.status()
        return tried.returncode == 0 and len(after["peers"]) == len(before["peers"])

    # -- learn --------------------------------------------------------------------------------------------------------

    async def _learn(self) -> None:
        rounds = _ROUNDS[self._model]
        result = await self._train(self._nodes[0], "digits", rounds, "--baseline")
        nodes = list(result["nodes"].values())
        settings = settings_for(self._spec)
        everything = await trio.to_thread.run_sync(
            train_alone, self._spec, self._data, settings, rounds * settings.local_steps
        )
        central = everything.evaluate().accuracy
        accuracies = [node["accuracy"] for node in nodes]
        alone = [node["accuracy_alone"] for node in nodes]
        self.figures |= {
            "accuracy_alone_mean": fmean(alone),
            "accuracy_mesh_worst": min(accuracies),
            "accuracy_mesh_mean": fmean(accuracies),
            "accuracy_central": central,
            "bytes_sent_per_node_mean": round(fmean(node["bytes_sent"] for node in nodes)),
        }
        shown = ", ".join(f"{value:.1%}" for value in alone)
        self._show.say(f"each alone: {shown}; in the mesh: worst {min(accuracies):.1%}; central: {central:.1%}")
        good = len(nodes) == len(_NAMES) and min(accuracies) >= central - _POINTS
        self.held["Learn: the worst node is within 2 points of a central model on all data"] = good

    async def _train(self, node: NodeProcess, name: str, rounds: int, *options: str) -> Mapping[str, Any]:
        words = ("train", name, "--data", "digits", "--model", self._model, "--rounds", str(rounds), "--json", *options)
        result: Mapping[str, Any] = {}
        async for result in node.stream(*words):
            if "nodes" not in result:
                continue  # a round of this node alone
            nodes = result["nodes"]
            done = min((said.get("round", 0) for said in nodes.values()), default=0)
            self._show.bar("rounds", done, rounds, table(nodes, "trusted"))
        return result

    # -- answer -------------------------------------------------------------------------------------------------------

    async def _answer(self) -> None:
        for node in self._nodes:
            await _until(_serves(node, "digits"))
        (model,) = (await self._nodes[0].status())["models"]
        holders = {layer: set() for layer in range(model["layers"])}  # type: dict[int, set[str]]
        for stage in model["stages"]:
            for layer in range(stage["first"], stage["end"]):
                holders[layer] |= set(stage["peers"])
        names = {(await node.status())["me"]: node.name for node in self._nodes}
        for layer, peers in holders.items():
            self._show.say(f"layer {layer} is on {' and '.join(sorted(names[peer] for peer in peers))}")
        twice = all(len(peers) >= 2 for peers in holders.values())
        nobody_whole = not set.intersection(*holders.values())
        gateway = self._nodes[-1]
        out, whole = self._folder / "answers.npy", self._folder / "model.safetensors"
        await gateway.command("predict", "digits", "--data", str(self._folder / "test.npz"), "--out", str(out))
        await gateway.command("export", "digits", "--out", str(whole))
        answers = np.load(out)
        self._truth = _probabilities(whole, self._data)
        difference = float(np.abs(answers - self._truth).max())
        equal = answers.shape == self._truth.shape and difference <= _TOLERANCE
        self._show.say(f"{len(answers)} samples answered through {gateway.name}; largest difference {difference:.1e}")
        self.figures["sharded_equals_unsharded"] = equal
        self.held["Answer: sharded predictions equal the unsharded model's"] = equal and twice and nobody_whole

    # -- survive ------------------------------------------------------------------------------------------------------

    async def _survive(self) -> None:
        victim, gateway, trainer = self._nodes[0], self._nodes[-1], self._nodes[1]  # the mesh's maker dies first
        failed, wrong = await self._kill_under_requests(victim, gateway)
        self.figures |= {"requests": _REQUESTS, "requests_failed": failed, "requests_wrong": wrong}
        rounds_after = await self._kill_in_a_round(trainer, gateway)
        self.figures["rounds_after_kill"] = rounds_after
        good = failed == wrong == 0 and rounds_after > 0
        self.held["Survive: every request was answered and right, training went on"] = good

    async def _kill_under_requests(self, victim: NodeProcess, gateway: NodeProcess) -> tuple[int, int]:
        """Ask and ask; kill a shard holder on the way. Returns how many requests failed, and how many were wrong."""
        x = _given(self._data.x_test)
        rng = np.random.default_rng(1)
        batches = [rng.choice(len(x), _SAMPLES_PER_REQUEST, replace=False) for _ in range(_REQUESTS)]
        done = failed = wrong = 0

        async def client(number: int) -> None:
            nonlocal done, failed, wrong
            for batch in batches[number::_CLIENTS]:
                try:
                    _, (answer,) = await gateway.control.ask("predict", {"model": "digits"}, [x[batch]])
                    wrong += not np.allclose(answer, self._truth[batch], rtol=0, atol=_TOLERANCE)
                except LeptonError as error:
                    failed += 1
                    self._show.say(f"a request failed: {error}")
                done += 1
                self._show.bar("requests", done, _REQUESTS)

        async with trio.open_nursery() as nursery:
            for number in range(_CLIENTS):
                nursery.start_soon(client, number)
            await _until(_true(lambda: done >= _KILL_AT_REQUEST))
            victim.kill()
            self._show.say(f"{victim.name}, which made the mesh and holds a shard, was killed after {done} requests")
        self._show.say(f"{done} requests: {failed} failed, {wrong} wrong")
        return failed, wrong

    async def _kill_in_a_round(self, victim: NodeProcess, starter: NodeProcess) -> int:
        """Train again with who is left; kill one in the middle. Returns the rounds that the others did after that.

        0 when they did not reach the task's end.
        """
        me = (await victim.status())["me"]
        killed_at = -1
        last = 0
        words = ("train", "digits-again", "--data", "digits", "--model", self._model, "--json")
        async for result in starter.stream(*words, "--rounds", str(_ROUNDS_AFTER), "--classes", "10"):
            if "nodes" not in result:
                continue
            nodes = {peer: said for peer, said in result["nodes"].items() if peer != me}
            last = min((said.get("round", 0) for said in nodes.values()), default=0)
            self._show.bar("rounds", last, _ROUNDS_AFTER, table(result["nodes"], "trusted"))
            if killed_at < 0 and last >= _KILL_AT_ROUND:
                victim.kill()
                killed_at = last
                self._show.say(f"{victim.name} was killed in round {last}")
        self._show.say(f"the others finished round {last}")
        return last - killed_at if killed_at >= 0 and last == _ROUNDS_AFTER else 0


def _write_config(home: Path, name: str, memory: str, data: str) -> None:
    (home / "node.toml").write_text(
        f'name = "{name}"\nlisten = ["{_INTERFACE}:0"]\ninterfaces = ["{_INTERFACE}"]\n'
        f'[serve]\nmemory = "{memory}"\n[data]\n{data}\n',
        "utf-8",
    )


def _probabilities(path: Path, data: Dataset) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        y: np.ndarray[Any, Any] = load_model(path).probabilities(torch.from_numpy(_given(data.x_test))).numpy()
    return y


def _given(array: np.ndarray[Any, Any] | None) -> np.ndarray[Any, Any]:
    assert array is not None, "the digits come with a test part"
    return array


def _serves(node: NodeProcess, model: str) -> Callable[[], Any]:
    async def served() -> bool:
        return any(item["name"] == model and item["served"] for item in (await node.status())["models"])

    return served


def _true(condition: Callable[[], bool]) -> Callable[[], Any]:
    async def check() -> bool:
        return condition()

    return check


async def _until(condition: Callable[[], Any]) -> None:
    with trio.fail_after(_WAIT_S):
        while not await condition():  # noqa: ASYNC110 - it is another process whose state is asked for
            await trio.sleep(_POLL_S)
