"""Deployed averaging machines with deployed trainers, on virtual time over a network in memory that loses messages.

Wired as `node/learning/learner.py` is: nothing of a machine or a trainer is replaced, only what lies between them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lepton.gossip.averager import Averager, Effect, Event, name_of
from lepton.gossip.config import Config
from lepton.gossip.events import Behind, Expired, Finished, PeerDown, Ready, Received, Report, Send
from lepton.gossip.messages import Message, pack
from lepton.gossip.part import Reference
from lepton.node.learning.trainer import Trainer
from lepton.node.shapes import Vector
from lepton.simulations.world import World

DELAY_S = (0.001, 0.02)  # of a message: a LAN with Wi-Fi in it
STEPS_S = (0.4, 0.6)  # of a round's training
# A node's own setting waits long before it repeats itself, since TCP loses nothing; here single messages are lost.
CONFIG = Config(resend_s=0.5)
PATIENCE_S = 4.0 * 3600  # virtual; a run takes minutes
KNOWN_S = 1.0  # until others know that a node is gone
PASSED_S, ROUNDS_AHEAD_MAX = 1.0, 2  # as in node/learning/learner.py


@dataclass(slots=True, eq=False)
class Node:
    """One node: where it stands, and what it would give to who asks for a model."""

    name: str
    trainer: Trainer
    averager: Averager
    shared: Vector
    reference: bytes
    round: int = 0
    first_round: int = 0
    here: bool = True
    seen: bool = True  # by the others
    killed: bool = False
    life: int = 0  # actions of an earlier life are void
    wake_s: float = math.inf
    reports: list[Report] = field(default_factory=list)


class VirtualMesh:
    """So many nodes learn one task until its rounds are used up."""

    def __init__(
        self,
        trainers: Sequence[Trainer],
        *,
        rounds: int,
        local_steps: int,
        codec: str = "int8",
        group_size: int = 8,
        loss: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.world = World(seed)
        self.bytes_sent = 0
        self.finished_s = 0.0
        self._rounds, self._local_steps, self._loss = rounds, local_steps, loss
        self._dice = self.world.dice("network")
        self.nodes = {}
        first = trainers[0].vector()
        for number, trainer in enumerate(trainers):
            name = f"{number:02}"
            averager = Averager(
                name, "bench", mesh=b"bench", dimension=first.size, codec_name=codec, group_size=group_size,
                rng_seed=seed, config=CONFIG,
            )  # fmt: skip
            averager.refer_to(Reference(name_of(first), first))
            self.nodes[name] = Node(name, trainer, averager, first, name_of(first))

    def begin_without(self, node: Node) -> None:
        """Let a node be absent from the start; it may `come_back`."""
        node.here = node.seen = False

    def run(self) -> list[float]:
        """Train to the end; the accuracies of the nodes that are here then."""
        for node in self.nodes.values():
            self._notice_passed(node, set())
            if node.here:
                self._soon(node)
        self.world.run(PATIENCE_S)
        return [node.trainer.evaluate().accuracy for node in self.nodes.values() if node.here]

    # -- one node -----------------------------------------------------------------------------------------------------

    def _soon(self, node: Node) -> None:
        life = node.life
        self.world.after(self._dice.uniform(*STEPS_S), lambda: self._train(node) if node.life == life else None)

    def _train(self, node: Node) -> None:
        if node.round >= self._rounds:
            return
        node.trainer.run_steps(self._local_steps)
        members = tuple(other.name for other in self.nodes.values() if self._takes_part(other, node.round))
        self._handle(node, Ready(node.round, node.trainer.vector(), float(node.trainer.samples), members))

    def _takes_part(self, node: Node, round_: int) -> bool:
        return node.seen and node.round < self._rounds and node.first_round <= round_

    def _notice_passed(self, node: Node, before: set[tuple[int, str]]) -> None:
        """See that others have left this node behind; who does not count it in sends it nothing."""
        passed = {
            (node.round, other.name)
            for other in self.nodes.values()
            if other.seen and (other.round >= self._rounds or other.round > node.round + ROUNDS_AHEAD_MAX)
        }
        if node.here:
            for _, peer in sorted(passed & before):
                self.adopt(node, self.nodes[peer])
        if node.round < self._rounds and not node.killed:
            self.world.after(PASSED_S, lambda: self._notice_passed(node, passed))

    def _handle(self, node: Node, event: Event) -> None:
        if node.here:
            self._apply(node, node.averager.handle(event, self.world.now))
            self._wake(node)

    def _wake(self, node: Node) -> None:
        deadline = node.averager.deadline
        if math.isfinite(deadline) and deadline != node.wake_s:
            node.wake_s = deadline
            life = node.life
            delay = deadline - self.world.now
            self.world.after(delay, lambda: self._handle(node, Expired()) if node.life == life else None)

    def _apply(self, node: Node, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(peer, message):
                    self._send(node, self.nodes[peer], message)
                case Finished(round_, vector, report):
                    node.trainer.adopt(vector, averaged=True)
                    node.shared, node.reference, node.round = vector, report.reference, round_ + 1
                    node.reports.append(report)
                    self.finished_s = self.world.now
                    self._soon(node)
                case Behind(_, peer):
                    self.adopt(node, self.nodes[peer])

    def _send(self, node: Node, peer: Node, message: Message) -> None:
        header, payload = pack(message)
        self.bytes_sent += len(header) + memoryview(payload).nbytes
        if self._dice.random() >= self._loss:
            delay_s = self._dice.uniform(*DELAY_S)
            self.world.after(delay_s, lambda: self._handle(peer, Received(node.name, message)))

    # -- coming and going ---------------------------------------------------------------------------------------------

    def adopt(self, node: Node, other: Node) -> bool:
        """Take another node's model, and part in the round that it is in; false when it is no further."""
        if other.round <= node.round or not other.here:
            return False
        node.trainer.adopt(other.shared)
        node.shared, node.reference = other.shared, other.reference
        node.round = node.first_round = other.round
        node.averager.refer_to(Reference(other.reference, other.shared) if other.reference else None)
        node.averager.skip_to(node.round)
        node.life += 1
        self._soon(node)
        return True

    @property
    def learning(self) -> bool:
        """Whether somebody who is here is not done."""
        return any(node.here and node.round < self._rounds for node in self.nodes.values())

    def leave(self, node: Node) -> None:
        """Cut a node off, in the middle of whatever it does; the others hear of it a while later."""
        node.here = False
        node.life += 1
        life = node.life

        def noticed() -> None:
            if node.life == life:
                node.seen = False
                for other in self.nodes.values():
                    self._handle(other, PeerDown(node.name))

        self.world.after(KNOWN_S, noticed)

    def kill(self, node: Node) -> None:
        """Let a node be gone for good."""
        node.killed = True
        if node.here:
            self.leave(node)

    def come_back(self, node: Node) -> None:
        """Go on with the model of whoever is furthest, or where it stood; nothing, if it was killed meanwhile."""
        if node.killed:
            return
        node.here = node.seen = True
        node.life += 1
        node.wake_s = math.inf
        furthest = max((other for other in self.nodes.values() if other.here), key=lambda one: one.round)
        if self.adopt(node, furthest):
            return
        if node.averager.running:
            self._handle(node, Expired())
        else:
            self._soon(node)

    def shuffle(self, share: float, *, every_s: float) -> None:
        """Let another share of the nodes be away from now on, and others again every so often, to the end."""
        away: list[Node] = []

        def turn() -> None:
            for node in away:
                self.come_back(node)
            away.clear()
            if self.learning:
                here = [node for node in self.nodes.values() if node.here]
                away.extend(self._dice.sample(here, round(share * len(here))))
                for node in away:
                    self.leave(node)
                self.world.after(every_s, turn)

        turn()
