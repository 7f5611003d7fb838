"""Deployed machines of any policy with what trains beside them, on virtual time: rounds in step, nobody away."""

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from lepton.gossip.averager import Averager, name_of
from lepton.gossip.events import Expired, Finished, Ready, Received, Report, Send
from lepton.gossip.graph_gossip import GraphGossip
from lepton.gossip.graphs import Circulant
from lepton.gossip.part import Reference
from lepton.gossip.private import messages as private_messages
from lepton.gossip.private.averager import PrivateAverager
from lepton.gossip.pull import Puller
from lepton.gossip.robust import nearest_clipped
from lepton.simulations.fleet.exchanges.ranks import names_of
from lepton.simulations.world import World

MESH, TASK = b"bench", "bench"
Make = Callable[[str, int, np.ndarray], Any]
"""Makes a machine from its node's name and number, and the model that all begin with."""


def averager(codec: str, size: int = 8) -> Make:
    def make(name: str, number: int, first: np.ndarray) -> Averager:
        machine = Averager(
            name, TASK, mesh=MESH, dimension=first.size, codec_name=codec, group_size=size, rng_seed=number
        )
        machine.refer_to(Reference(name_of(first), first))
        return machine

    return make


def private(size: int = 8) -> Make:
    def make(name: str, number: int, first: np.ndarray) -> PrivateAverager:
        dice = np.random.default_rng(number)
        return PrivateAverager(
            name, TASK, mesh=MESH, dimension=first.size, group_size=size, secret=lambda: dice.bytes(32),
            sign=lambda payload: _signed(name, payload), verify=lambda who, what, sign: sign == _signed(who, what),
        )  # fmt: skip

    return make


def robust(peers: int, codec: str = "float32") -> Make:
    def make(name: str, number: int, first: np.ndarray) -> Puller:
        return Puller(
            name, TASK, dimension=first.size, mix=nearest_clipped, codec_name=codec, peers=peers, rng_seed=number
        )

    return make


def on_a_ring(codec: str = "float32") -> Make:
    def make(name: str, number: int, first: np.ndarray) -> GraphGossip:
        graph = Circulant()
        return GraphGossip(name, TASK, dimension=first.size, graph=graph, codec_name=codec, rng_seed=number)

    return make


def _signed(name: str, payload: bytes) -> bytes:
    return hashlib.blake2b(payload, key=name.encode(), digest_size=64).digest()


class Machines:
    """Plays rounds; ``models`` are those after the last, ``bytes_sent`` those of private messages with headers."""

    def __init__(self, trainers: Sequence[Any], make: Make, *, rounds: int, local_steps: int, loss: float = 0) -> None:
        self._world, self._rounds, self._steps, self._loss = World(0), rounds, local_steps, loss
        self._dice = self._world.dice("network")
        first = trainers[0].vector()
        self._names = names_of(len(trainers))
        self._trainers = dict(zip(self._names, trainers, strict=True))
        self._made = {name: make(name, number, first) for number, name in enumerate(self._names)}
        self.bytes_sent, self.reports = 0, list[Report]()
        for name in self._names:
            self._train(name, 0)
        self._world.run(1e6)
        self.models = np.stack([trainer.vector() for trainer in trainers])

    def _train(self, name: str, round_: int) -> None:
        if round_ < self._rounds:
            trainer = self._trainers[name]
            trainer.run_steps(self._steps)
            self._do(name, Ready(round_, trainer.vector(), float(trainer.samples), self._names))

    def _do(self, name: str, event: Any) -> None:
        machine = self._made[name]
        for effect in machine.handle(event, self._world.now):
            match effect:
                case Send(peer, message):
                    self._send(name, peer, message)
                case Finished(round_, vector, report):
                    self.reports.append(report)
                    self._trainers[name].adopt(vector, averaged=True)
                    self._world.after(0.5, partial(self._train, name, round_ + 1))
        if math.isfinite(machine.deadline):
            wait_s = max(0.0, machine.deadline - self._world.now)
            self._world.after(wait_s + 1e-6, partial(self._wake, name, machine.deadline))

    def _wake(self, name: str, due_s: float) -> None:
        if self._made[name].deadline == due_s:
            self._do(name, Expired())

    def _send(self, name: str, peer: str, message: Any) -> None:
        if isinstance(message, private_messages.Message):
            header, payload = private_messages.pack(message)
            self.bytes_sent += len(header) + len(payload)
        if self._dice.random() >= self._loss:
            delay_s = self._dice.uniform(0.001, 0.02)
            self._world.after(delay_s, lambda: self._do(peer, Received(name, message)))
