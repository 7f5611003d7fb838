"""One process of the bench of sharded text: a real node with the stages that it is told to have, and an asker.

``python -m tests.bench.stages HOME``. The folder above HOME says in `shard.json` which model there is and which runs of
its layers each home has, by deployment. It obeys a JSON object a line on stdin and ends with it.
"""

import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
import trio
from lepton.mesh.errors import LeptonError
from lepton.mesh.identity import PeerId
from lepton.mesh.mesh import Mesh
from lepton.node import Node
from lepton.node.deployments import BlobRef, DeploymentRecord
from lepton.node.generation.engine import Engine
from lepton.node.generation.route import Run
from lepton.node.generation.sampling import Sampling
from lepton.node.generation.sessions import Sessions
from lepton.node.inference.view import View
from lepton.node.language.engine import load_engine
from lepton.node.language.folder import read_config, read_layers

from .members import LOOPBACK, keep_diary, say


class Setting(msgspec.Struct, frozen=True):
    """Which model, and who has which of its layers: deployment to home's name to run."""

    model: str
    layers: int
    stages: dict[str, dict[str, tuple[int, int]]]
    positions: int = 512
    sessions: int = 9


@dataclass
class Planned:
    assigned: Mapping[PeerId, Run]
    missing_bytes: int = 0
    fits_at: str = ""


@dataclass
class Pictured:
    """A plan that the bench made."""

    mesh: Mesh
    setting: Setting
    home: str

    def deployments(self) -> dict[str, DeploymentRecord]:
        record = DeploymentRecord(
            version=1,
            kind="causal_lm",
            manifest=BlobRef(digest="0" * 64, size_bytes=1),
            weights_bytes=(1,) * self.setting.layers,
            sessions=self.setting.sessions,
            positions=self.setting.positions,
        )
        return dict.fromkeys(self.setting.stages, record)

    def plans(self) -> Mapping[str, Planned]:
        mine = {name: runs[self.home] for name, runs in self.setting.stages.items() if self.home in runs}
        return {name: Planned({self.mesh.me: mine[name]} if name in mine else {}) for name in self.setting.stages}

    def serving(self, name: str, version: int) -> dict[Run, list[PeerId]]:
        return View(self.mesh).serving(name, version)

    def arithmetics(self, name: str, version: int) -> dict[PeerId, str]:
        return View(self.mesh).arithmetics(name, version)


async def be_stage(home: Path) -> None:
    """Run a node until stdin ends."""
    torch.set_num_threads(1)
    setting = msgspec.json.decode((home.parent / "shard.json").read_bytes(), type=Setting)
    folder = Path(setting.model)
    config = read_config(folder)

    async def load(_name: str, _record: DeploymentRecord, run: Run) -> Engine:
        tensors = read_layers(folder, config)
        return await trio.to_thread.run_sync(lambda: load_engine(config, *run, tensors))

    where: dict[str, Any] = {"interfaces": [LOOPBACK], "listen": [f"{LOOPBACK}:0"]}
    async with Node(home, **where) as node, trio.open_nursery() as nursery:
        say("up", me=node.mesh.me)
        nursery.start_soon(keep_diary, node)
        pictured = Pictured(node.mesh, setting, home.name)
        sessions = Sessions(node.mesh, pictured, load)
        nursery.start_soon(sessions.run)
        nursery.start_soon(_tell_what_is_served, node, pictured)
        while word := (await trio.to_thread.run_sync(sys.stdin.readline)).strip():
            nursery.start_soon(_obey, sessions, msgspec.json.decode(word))
        nursery.cancel_scope.cancel()


async def _tell_what_is_served(node: Node, pictured: Pictured) -> None:
    while True:
        changed = node.mesh.changed
        say("served", counts={n: sum(map(len, pictured.serving(n, 1).values())) for n in pictured.setting.stages})
        await changed.wait()


async def _obey(sessions: Sessions, word: dict[str, Any]) -> None:
    if word["do"] == "counts":
        _tell_counts(sessions)
        return
    answers: list[dict[str, Any]] = []
    began = time.monotonic()
    async with trio.open_nursery() as nursery:
        for number in range(word.get("sessions", 1)):
            nursery.start_soon(_generate, sessions, word, number, answers)
    answers.sort(key=lambda answer: int(answer["number"]))
    say("generated", tag=word["tag"], answers=answers, took_s=time.monotonic() - began)


async def _generate(sessions: Sessions, word: dict[str, Any], number: int, answers: list[dict[str, Any]]) -> None:
    sampling = Sampling(tokens_max=word["count"], seed=number, temperature=word.get("temperature", 0.0))
    prompt = [*word["prompt"][: len(word["prompt"]) - number], *range(5, 5 + number)]
    ids, times, failed = list[int](), list[float](), ""
    generation = sessions.generator.generate(word["name"], prompt, sampling)
    try:
        async for token in generation:
            ids.append(token.id)
            times.append(time.monotonic())
            if len(ids) == word.get("halfway"):
                say("halfway", tag=word["tag"], route=generation.route.peers)
    except LeptonError as error:
        failed = str(error)
    tally = generation.tally
    answers.append({
        "number": number, "ids": ids, "times": times, "failed": failed, "pauses": tally.pauses,
        "noticed": tally.noticed, "first_s": tally.first_token_s, "attempts": tally.attempts,
    })  # fmt: skip


def _tell_counts(sessions: Sessions) -> None:
    traffic = sessions.links.traffic
    say(
        "counts",
        sent_frames=traffic.sent_frames,
        sent_bytes=traffic.sent_bytes,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        weights={one.name: one.engine.weights_bytes for one in sessions.host.loaded},
        steps={one.name: one.stage.counts.steps for one in sessions.host.loaded},
        positions={one.name: one.stage.counts.positions for one in sessions.host.loaded},
        step_s={one.name: one.stage.step_s for one in sessions.host.loaded},
        largest={one.name: one.stage.counts.largest_batch for one in sessions.host.loaded},
    )


if __name__ == "__main__":
    trio.run(be_stage, Path(sys.argv[1]))
