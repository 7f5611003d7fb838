"""Real nodes learn MNIST over loopback: a process each, beside the virtual run of the same task, bytes on the socket.

``python -m tests.bench.processes HOME`` is one process: a node with its shards of MNIST. It
obeys words on stdin (``train``, ``epidemic``), tells what came of it as a JSON object a line, and ends with its stdin.
Bytes are those that went over TCP on all of the node's connections, sealing, framing and whatever else nodes have to
say to each other included.
"""

import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import torch
import trio
from lepton.mesh.calls import Answer, Empty, Incoming, Method
from lepton.mesh.errors import LeptonError
from lepton.node import Node
from lepton.node.shapes import parameter_count
from rich.console import Console

from .members import LOOPBACK, Fleet, Member, enrol, say
from .silos import Setting, mnist
from .virtual import VirtualMesh

NODES, ROUNDS = 8, 12
SEEDS = 3  # of the virtual run: what luck alone changes
EPIDEMIC_NEIGHBOURS, EPIDEMIC_ROUNDS = 4, 3
TASK, MODEL = "bench", "bench.model"
PATIENCE_S = 300.0


def task(*, nodes: int, seed: int, rounds: int) -> Setting:
    """Return what all processes, and the virtual run, learn."""
    return mnist(seed=seed, nodes=nodes, rounds=rounds)


# -- one process ------------------------------------------------------------------------------------------------------


async def be_learner(home: str, number: int, changes: dict[str, Any], setting: Setting) -> None:
    """Run a node until stdin ends."""
    torch.set_num_threads(1)
    where: dict[str, Any] = {"interfaces": [LOOPBACK], "listen": [f"{LOOPBACK}:0"]}
    async with Node(home, data={TASK: setting.silos[number]}, **where) as node, trio.open_nursery() as nursery:
        node.mesh.calls.serve(Method(name=MODEL, needs="train", takes=Empty, handler=_take_model))
        say("up", me=node.mesh.me)
        nursery.start_soon(_watch, node)
        nursery.start_soon(_keep_diary, node)
        while word := (await trio.to_thread.run_sync(sys.stdin.readline)).strip():
            if word == "train":
                nursery.start_soon(_train, node, setting, changes)
            else:
                await _epidemic(node, setting, number)
        nursery.cancel_scope.cancel()


async def _take_model(_call: Incoming[Empty]) -> Answer[Empty]:
    return Answer(Empty())


async def _train(node: Node, setting: Setting, changes: dict[str, Any]) -> None:
    result = await node.train(
        TASK, data=TASK, model=setting.spec, rounds=setting.rounds, settings=setting.settings(**changes),
        members_min=len(setting.silos), copies=1,
    )  # fmt: skip
    say("trained", accuracies=[said.accuracy for said in result.nodes.values()])


async def _keep_diary(node: Node) -> None:
    while True:
        changed = node.mesh.changed
        say("sees", peers=sorted(peer for peer, profile in node.tasks.profiles().items() if TASK in profile.data))
        await changed.wait()


async def _watch(node: Node) -> None:
    """Say what the sockets have carried when this node begins with its first round and when it is done."""
    told = ""
    while True:
        changed, progress = node.mesh.changed, node.progress(TASK)
        if progress is not None and progress.state != told and progress.state in {"training", "done"}:
            told = progress.state
            say(told, sent_bytes=_sent_bytes(node), of_rounds=progress.bytes_sent, misses=progress.deadline_misses)
        await changed.wait()


def _sent_bytes(node: Node) -> int:
    return sum(connection.bytes_sent for connection in node.mesh._transport.connections.values())


async def _epidemic(node: Node, setting: Setting, number: int) -> None:
    """Send the whole model as float32 to other neighbours, round after round."""
    vector = setting.trainer(setting.silos[number]).vector()
    dice, before = random.Random(number), _sent_bytes(node)
    for _ in range(EPIDEMIC_ROUNDS):
        for peer in dice.sample(sorted(node.mesh.connected), EPIDEMIC_NEIGHBOURS):
            try:
                await node.mesh.calls.call(peer, MODEL, Empty(), Empty, scope=TASK, arrays=[vector], timeout_s=30.0)
            except LeptonError as error:
                say("failed", why=str(error))
    say("epidemic", sent_bytes=_sent_bytes(node) - before)


# -- the parent -------------------------------------------------------------------------------------------------------


def compare_with_real(console: Console, changes: dict[str, Any]) -> dict[str, float]:
    """Train over processes and on virtual time; print accuracies and bytes."""
    simulated = [_simulated(seed, changes) for seed in range(SEEDS)]
    with tempfile.TemporaryDirectory() as folder:
        accuracies, told = _real(Path(folder), changes)
    bytes_a_round = statistics.fmean(done["sent_bytes"] - begun["sent_bytes"] for begun, done, _ in told) / ROUNDS
    epidemic = statistics.fmean(one["sent_bytes"] for *_, one in told) / EPIDEMIC_ROUNDS
    model = 4 * parameter_count(mnist(seed=0).spec)
    misses = sum(done["misses"] for _, done, _ in told)
    worst = [min(run) for run in simulated]
    console.print(
        f"MNIST, first 6,000 images, {NODES} nodes x 2 label shards, {ROUNDS} rounds x 1 epoch, int8, chosen settings, "
        f"nothing lost.\n"
        f"  {NODES} processes on loopback, seed 0:    worst node {min(accuracies):.4f}, mean "
        f"{statistics.fmean(accuracies):.4f}, deadline misses {misses}\n"
        f"  virtual time, seed 0:              worst node {worst[0]:.4f}, mean {statistics.fmean(simulated[0]):.4f}\n"
        f"  virtual time, seeds 0 to {SEEDS - 1}:       worst node "
        f"{' '.join(f'{one:.4f}' for one in worst)}\n"
        f"Bytes a node sends in a round, counted on its TCP sockets (a model is {model:,} bytes of float32):\n"
        f"  int8, a group of {NODES}:                 {bytes_a_round:12,.0f}  = {bytes_a_round / model:.2f} models\n"
        f"  float32 to {EPIDEMIC_NEIGHBOURS} others:               {epidemic:12,.0f}  = {epidemic / model:.2f} models\n"
        f"  times as many:                    {epidemic / bytes_a_round:12.2f}"
    )
    return {
        "real_8_worst": min(accuracies),
        "virtual_8_worst": worst[0],
        "bytes_a_round": bytes_a_round,
        "bytes_vs_float32_epidemic": epidemic / bytes_a_round,
    }


def _simulated(seed: int, changes: dict[str, Any]) -> list[float]:
    setting = task(nodes=NODES, seed=seed, rounds=ROUNDS)
    trainers = setting.trainers(**changes)
    return VirtualMesh(trainers, rounds=ROUNDS, local_steps=setting.local_steps, seed=seed).run()


def _real(folder: Path, changes: dict[str, Any]) -> tuple[list[float], list[tuple[dict[str, Any], ...]]]:
    """Return all nodes' accuracies, and what each said when it began, when it was done, and of the epidemic."""
    homes = enrol(folder, NODES)
    for number, home in enumerate(homes):
        (home / "changes.json").write_bytes(msgspec.json.encode({"number": number, "changes": changes}))
    with Fleet([Member(home, module="tests.bench.processes") for home in homes]) as fleet:
        for member in fleet.members:
            fleet.start(member)
        _require(fleet, fleet.until(fleet.together), "did not come together")
        first = fleet.members[0]
        fleet.tell(first, "train")
        _require(fleet, fleet.until(lambda: "trained" in first.heard, PATIENCE_S), "did not learn")
        _require(fleet, fleet.until(lambda: all("done" in one.heard for one in fleet.members)), "did not finish")
        for member in fleet.members:
            fleet.tell(member, "epidemic")
        _require(fleet, fleet.until(lambda: all("epidemic" in one.heard for one in fleet.members)), "did not answer")
        told = [tuple(one.heard[kind] for kind in ("training", "done", "epidemic")) for one in fleet.members]
        return first.heard["trained"]["accuracies"], told


def _require(fleet: Fleet, so: bool, what: str) -> None:
    if not so:
        heard = "; ".join(f"{member.home.name}: {', '.join(member.heard)}" for member in fleet.members)
        message = f"the nodes {what}: {heard}"
        raise RuntimeError(message)


if __name__ == "__main__":
    said = msgspec.json.decode((Path(sys.argv[1]) / "changes.json").read_bytes())
    trio.run(be_learner, sys.argv[1], said["number"], said["changes"], task(nodes=NODES, seed=0, rounds=ROUNDS))
