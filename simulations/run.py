"""One run: builds the mesh that a scenario describes, lets its faults happen, checks, and returns the figures.

The first device makes the mesh and invites all others with real invites; who has no invite stays outside.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ..mesh.admission import Credentials
from ..mesh.applicant import Applicant, Joined
from ..mesh.codes import ENTROPY_BYTES, Code, read_code
from ..mesh.grants import GRANT_LIFETIME_S, ROLES, Grant, issue
from ..mesh.identity import Identity, PeerId
from ..mesh.invites import Host, InviteBook
from ..mesh.revocations import Revocations
from .answers import Answers, check_given_back, check_promises
from .device import Device, Disk, Machines, Watch
from .generating import Generating
from .invariants import Invariants, Member, Signatures
from .language import publish_language
from .learner import Learner, Share
from .ledgers import Crashed, Crashes, Freezes, Published, Requests, Rounds
from .network import Network
from .picture import MODEL, MODEL_NAME, MODULUS, PROFILE, ModelRecord, Profile, run_layers
from .report import Figures
from .scenario import Crash, Freeze, Partition, Scenario
from .serving import Serving
from .strangers import Liar, Outsider
from .world import Violation, World

_LOOK_INTERVAL_S = 0.005  # how often a crash that waits for its moment looks for it: under a stage's computing time
_MESH_NAME = "simulated"

D = TypeVar("D", bound=Device)


class Broken(Exception):
    """An invariant is broken; the message says which, when, and how to see it again."""

    def __init__(self, message: str, transcript: tuple[str, ...]) -> None:
        super().__init__(message)
        self.transcript = transcript


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run in which all held."""

    figures: Figures
    transcript: tuple[str, ...]


def simulate(
    scenario: Scenario, *, seed: int | None = None, name: str = "FILE", machines: Machines | None = None
) -> Outcome:
    """Run a scenario to its end. Raises Broken when an invariant is, or when a machine raises what it must not.

    ``name`` is what the command line calls the scenario: it goes into the command that replays a broken run.
    """
    run = Run(scenario, scenario.seed if seed is None else seed, machines or Machines())
    try:
        return run.to_the_end()
    except Exception as error:
        what = str(error) if isinstance(error, Violation) else f"a machine raised {type(error).__name__}: {error}"
        again = f"lepton-sim run {name} --seed {run.world.seed}"
        message = f"At {run.world.now:.3f} s: {what}. Seed {run.world.seed}; replay it with: {again}"
        raise Broken(message, tuple(run.world.transcript)) from error


class Run:
    """One world with all that is in it."""

    def __init__(self, scenario: Scenario, seed: int, machines: Machines) -> None:
        self.scenario, self.world, self.machines = scenario, World(seed), machines
        self.network = Network(self.world, scenario.link)
        self.published, self.requests, self.crashes = Published(), Requests(self.world), Crashes()
        self.rounds = Rounds(self.world, scenario.task.codec)
        self.answers = Answers(self.world, scenario.language)
        self.members: dict[str, Member] = {}  # by name, those that live
        self.strangers: list[Device] = []
        self.shares: dict[PeerId, Share] = {}
        peaceful = not (scenario.link.loss or scenario.crash or scenario.partition or scenario.liars)
        self.freezes = Freezes(self.world, peaceful=peaceful)
        self._watch = Watch(self.published.note, self._left)
        self._dice = self.world.dice("run")
        self._disks = {name: Disk() for name in scenario.names}
        self._identities: dict[str, Identity] = {}
        self._credentials: dict[str, Credentials] = {}
        self._invite_all()
        self.invariants = Invariants(
            self.world, self.published, self.requests, self._belonging(), Signatures()
        )  # fmt: skip

    def to_the_end(self) -> Outcome:
        """Run. Raises Violation."""
        for name in self.scenario.names:
            self._start(name)
        self._let_strangers_in()
        for crash in self.scenario.crash:
            self.world.after(crash.at_s, lambda due=crash: self._crash(due))  # type: ignore[misc]
        for freeze in self.scenario.freeze:
            self._schedule_freeze(freeze)
        for partition in self.scenario.partition:
            self._schedule_partition(partition)
        for number in range(self.scenario.requests.count):
            due_s = self.scenario.requests.first_s + number * self.scenario.requests.interval_s
            self.world.after(due_s, lambda asked=number: self._ask(asked))  # type: ignore[misc]
        for number in range(self.scenario.language.requests):
            due_s = self.scenario.language.first_s + number * self.scenario.language.interval_s
            self.world.after(due_s, self._ask_language)
        self.world.after(self.scenario.duration_s - self.scenario.settle_s, self.network.mend)
        moment_s = 0.0
        while moment_s < self.scenario.duration_s:
            moment_s = min(moment_s + self.scenario.check_interval_s, self.scenario.duration_s)
            self.world.run(moment_s)
            self.invariants.check_moment([member.device for member in self.members.values()] + self._liars())
            check_promises(self._generating())
        return Outcome(self._check_end(), tuple(self.world.transcript))

    def _check_end(self) -> Figures:
        members = list(self.members.values())
        self.invariants.check_converged(members)
        self.invariants.check_plans(members)
        self.invariants.check_requests(self.scenario.requests.failed_max)
        self.answers.check_end()
        check_given_back(self._generating())
        errors = [0.0]
        if self.scenario.task.rounds:
            errors = self.invariants.check_learning(members, self.shares, self.scenario.task.error_max)
        return Figures.of(self, errors)

    # -- who belongs --------------------------------------------------------------------------------------------------

    def _identity(self, name: str) -> Identity:
        identity = Identity(self.world.secret(f"identity/{name}"))
        self.world.name(identity.peer_id, name)
        return identity

    def _invite_all(self) -> None:
        """Make the mesh on the first device, and let it invite every other with an invite of its own."""
        first, *others = self.scenario.names
        root, creator = self._identity("root"), self._identity(first)
        chain = (self._grant(root, creator.peer_id),)
        book = InviteBook()
        host = Host(
            mesh_name=_MESH_NAME,
            root=root.peer_id,
            identity=creator,
            chain=chain,
            revocations=Revocations(root.peer_id),
        )
        self._identities[first] = creator
        self._credentials[first] = Credentials(mesh_name=_MESH_NAME, root=root.peer_id, chain=chain)
        for name in [*others, *self._liar_names()]:
            role = "client" if name in self._liar_names() else "member"
            now, identity = self.world.unix_s, self._identity(name)
            entropy = self._dice.randbytes(ENTROPY_BYTES)
            code = read_code(str(book.give(held=ROLES["admin"], role=role, now=now, entropy=entropy)))
            self._identities[name] = identity
            self._credentials[name] = self._join(book, host, code, identity)

    def _join(self, book: InviteBook, host: Host, code: Code, joiner: Identity) -> Credentials:
        """Both sides of a join, as they go in the node, over no wire at all."""
        issuer, now, entropy = host.identity.peer_id, self.world.unix_s, self._dice.randbytes
        applicant = Applicant(code, me=joiner.peer_id, issuer=issuer, entropy=entropy)
        held, side = book.receive(applicant.ask(), joiner=joiner.peer_id, issuer=issuer, entropy=entropy)
        proof = applicant.prove(held)
        assert proof is not None
        assert side is not None
        serial = self._dice.randbytes(16)
        answer = book.conclude(side, proof, joiner=joiner.peer_id, host=host, now=now, serial=serial)
        joined = applicant.conclude(answer.message, now)
        assert isinstance(joined, Joined)
        return joined.credentials

    def _grant(self, issuer: Identity, subject: PeerId) -> Grant:
        expires = self.world.unix_s + GRANT_LIFETIME_S
        return issue(issuer, subject, ROLES["admin"], expires=expires, serial=self._dice.randbytes(16))

    def _belonging(self) -> frozenset[PeerId]:
        return frozenset(identity.peer_id for identity in self._identities.values())

    def _liar_names(self) -> list[str]:
        return [f"liar{index}" for index in range(self.scenario.liars)]

    def _liars(self) -> list[Device]:
        return [device for device in self.strangers if isinstance(device, Liar)]

    def _let_strangers_in(self) -> None:
        foreign_root = self._identity("foreign")
        outsiders = [self._identity(f"outsider{index}") for index in range(max(self.scenario.outsiders, 1))]
        chains = [(self._grant(foreign_root, identity.peer_id),) for identity in outsiders]
        for name in self._liar_names():
            liar = self._device(Liar, name, self._identities[name], self._credentials[name], Disk())
            liar.equip(self._identities[name], outsiders[0], chains[0])
        stolen = self._credentials[self.scenario.names[0]].chain
        for index in range(self.scenario.outsiders):
            credentials = Credentials(mesh_name=_MESH_NAME, root=foreign_root.peer_id, chain=chains[index])
            intruder = self._device(Outsider, f"outsider{index}", outsiders[index], credentials, Disk())
            intruder.equip(outsiders[index], stolen)
        for stranger in self.strangers:
            stranger.start()

    def _device(self, kind: type[D], name: str, identity: Identity, credentials: Credentials, disk: Disk) -> D:
        device = kind(
            self.world, self.network, name, identity, credentials, disk, watch=self._watch, machines=self.machines
        )
        if isinstance(device, Liar | Outsider):
            self.strangers.append(device)
        return device

    # -- life and death -----------------------------------------------------------------------------------------------

    def _start(self, name: str) -> None:
        """Start a member, for the first time or after a crash, with what is on its disk."""
        scenario, disk, me = self.scenario, self._disks[name], self._identities[name].peer_id
        device = self._device(Device, name, self._identities[name], self._credentials[name], disk)
        serving = Serving(device, scenario.model, self.requests)
        learner = None
        if scenario.task.rounds:
            self.shares.setdefault(me, self._share(name))
            learner = Learner(
                device, scenario.task, self.shares[me], members_min=len(scenario.names), watch=self.rounds
            )  # fmt: skip
        generating = Generating(device, scenario.language, self.answers) if scenario.language.requests else None
        self.members[name] = Member(device, serving, learner, generating)
        self.crashes.returned(me)
        device.start()
        device.records.publish(PROFILE, "self", Profile(memory_bytes=scenario.model.memory_bytes))
        if name == scenario.names[0] and disk.incarnation == 1:
            layers = (scenario.model.layer_bytes,) * scenario.model.layers
            model = ModelRecord(version=1, layer_bytes=layers, copies=scenario.model.copies)
            device.records.publish(MODEL, MODEL_NAME, model, durable=True)
        if generating is not None:
            publish_language(device, scenario.language, deploys=name == scenario.names[0] and disk.incarnation == 1)
        if learner is not None:
            learner.start()

    def _share(self, name: str) -> Share:
        numbers = self.world.numbers(f"data/{name}")
        optimum = numbers.uniform(-1, 1, self.scenario.task.dimension).astype(np.float32)
        return Share(optimum, float(numbers.integers(50, 200)))

    def _crash(self, crash: Crash) -> None:
        """Strike; if the moment for it has not come, look again soon."""
        name = self._victim(crash)
        if name is None:
            self.world.after(_LOOK_INTERVAL_S, lambda: self._crash(crash))
            return
        device = self.members.pop(name).device
        device.crash()
        self.requests.abandon(device.me)
        self.answers.abandon(device.me)
        self.crashes.all.append(Crashed(device.me, self.world.now))
        if crash.restart_after_s:
            self.world.after(crash.restart_after_s, lambda: self._start(name))

    def _victim(self, crash: Crash) -> str | None:
        for name, member in self.members.items():
            computing = member.serving.computing not in {None, member.device.me}
            exchanging = member.learner is not None and member.learner.in_round
            answering = member.generating is not None and bool(member.generating.host.computing)
            moment = {"": True, "request": computing, "round": exchanging, "answer": answering}[crash.during]
            if moment and crash.node in {"", name}:
                return name
        return None

    def _left(self, who: PeerId, whom: PeerId) -> None:
        self.crashes.noticed(whom, self.world.now)
        self.freezes.left(who, whom)

    def _schedule_freeze(self, freeze: Freeze) -> None:
        def stop() -> None:
            device = self.members[freeze.node].device
            self.freezes.stopped(device.me)
            device.freeze()

        def go_on() -> None:
            device = self.members[freeze.node].device
            awake = [member.device.me for member in self.members.values() if not member.device.frozen]
            self.freezes.goes_on(device.me, awake)
            device.thaw()

        self.world.after(freeze.at_s, stop)
        self.world.after(freeze.at_s + freeze.thaw_after_s, go_on)

    def _schedule_partition(self, partition: Partition) -> None:
        islands = {
            self._identities[name].peer_id: island for island, group in enumerate(partition.groups) for name in group
        }

        bridges = frozenset(self._identities[name].peer_id for name in partition.bridges)

        def cut() -> None:
            self.network.part(islands, bridges)
            self.world.tell("network", "is cut: " + " | ".join(" ".join(group) for group in partition.groups))

        def heal() -> None:
            self.network.part({})
            self.world.tell("network", "is whole again")

        self.world.after(partition.at_s, cut)
        self.world.after(partition.heal_s, heal)

    def _ask(self, number: int) -> None:
        """Let a live member send a request; one that knows no model yet refuses to take it on."""
        name = self._dice.choice(sorted(name for name, member in self.members.items() if not member.device.frozen))
        member, x = self.members[name], self._dice.randrange(MODULUS)
        if member.serving.offered() is not None:
            self.requests.accepted(number, member.device.me, run_layers(0, self.scenario.model.layers, x))
            member.serving.ask(number, x)

    def _ask_language(self) -> None:
        """Let a live member begin a session with the language model."""
        name = self._dice.choice(sorted(name for name, member in self.members.items() if not member.device.frozen))
        generating = self.members[name].generating
        if generating is not None:
            self.answers.ask(self.members[name].device.me, generating)

    def _generating(self) -> list[tuple[str, Generating]]:
        return [(name, member.generating) for name, member in self.members.items() if member.generating is not None]
