"""One run: builds the mesh that a scenario describes, lets its faults happen, checks, and returns the figures."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ..mesh.admission import Credentials
from ..mesh.errors import Refused
from ..mesh.identity import Identity, PeerId
from .answers import Answers, check_given_back, check_promises
from .device import Device, Disk, Machines, Watch
from .drawing import draw
from .founding import MESH_NAME, Founding
from .generating import Generating
from .invariants import Invariants, Member, Signatures
from .language import publish_language
from .learner import Learner, Share
from .ledgers import Crashes, Freezes, Published, Requests, Revoked, Rounds
from .network import Network
from .picture import MODEL, MODEL_NAME, MODULUS, PROFILE, ModelRecord, Profile, run_layers
from .progress import Progress
from .report import Figures
from .scenario import Scenario
from .serving import Serving
from .stating import Stating
from .strangers import Liar, Outsider
from .striking import Striking
from .world import Violation, World

D = TypeVar("D", bound=Device)


class Broken(Exception):
    """An invariant is broken; the message says which, when, and how to see it again."""

    def __init__(self, message: str, transcript: tuple[str, ...], what: str = "") -> None:
        """``what`` is the broken promise alone, with the names and numbers of this run."""
        super().__init__(message)
        self.transcript, self.what = transcript, what


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
        raise Broken(message, tuple(run.world.transcript), what) from error


class Run:
    """One world with all that is in it."""

    def __init__(self, scenario: Scenario, seed: int, machines: Machines) -> None:
        """Faults that the scenario leaves to the seed are drawn here."""
        self.scenario, self.world, self.machines = draw(scenario, seed), World(seed), machines
        self.network = Network(self.world, scenario.link)
        self.published, self.requests, self.crashes = Published(), Requests(self.world), Crashes()
        self.rounds, self.revoked = Rounds(self.world, scenario.task.codec), Revoked(self.world)
        self.answers = Answers(self.world, scenario.language)
        self.progress = Progress(self.world, self.network, self.answers)
        self.members: dict[str, Member] = {}  # by name, those that live
        self.outcasts: dict[PeerId, str] = {}  # who was thrown out
        self.strangers: list[Device] = []
        self.shares: dict[PeerId, Share] = {}
        quiet = not (scenario.link.loss or scenario.link.reordering or scenario.liars)
        others = [fault for fault in self.scenario.all_faults if fault not in self.scenario.freeze]
        self.freezes = Freezes(self.world, peaceful=quiet and not others)
        signatures = Signatures()
        self._watch = Watch(
            self.published.note, self._left, self.revoked.told, self.revoked.served, signatures.open
        )  # fmt: skip
        self._dice = self.world.dice("run")
        self.disks: dict[str, Disk] = {}
        self.founding = Founding(self.world, self._dice, scenario.names, self._liar_names())
        self.striking = Striking(self)
        self.invariants = Invariants(
            self.world, self.published, self.requests, self.founding.belonging, signatures
        )  # fmt: skip

    def to_the_end(self) -> Outcome:
        """Run. Raises Violation."""
        for name in self.scenario.names:
            self.start(name)
        self._let_strangers_in()
        for fault in self.scenario.all_faults:
            self.striking.schedule(fault)
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
            awake = {member.device.me: member for member in self.members.values() if not member.device.frozen}
            self.progress.check({me: one.generating for me, one in awake.items() if one.generating is not None})
        return Outcome(self._check_end(), tuple(self.world.transcript))

    def _check_end(self) -> Figures:
        members = list(self.members.values())
        self.invariants.check_converged(members, {stranger.me for stranger in self._liars()})
        self.invariants.check_out(members, self.outcasts, self.revoked)
        self.invariants.check_plans(members)
        self.invariants.check_requests(self.scenario.requests.failed_max)
        self.answers.check_end()
        check_given_back(self._generating())
        errors = [0.0]
        if self.scenario.task.rounds:
            errors = self.invariants.check_learning(members, self.shares, self.scenario.task.error_max)
        return Figures.of(self, errors)

    # -- strangers ----------------------------------------------------------------------------------------------------

    def _liar_names(self) -> list[str]:
        return [f"liar{index}" for index in range(self.scenario.liars)]

    def _liars(self) -> list[Device]:
        return [device for device in self.strangers if isinstance(device, Liar)]

    def _let_strangers_in(self) -> None:
        founding = self.founding
        foreign_root = founding.identity("foreign")
        outsiders = [founding.identity(f"outsider{index}") for index in range(max(self.scenario.outsiders, 1))]
        chains = [(founding.grant(foreign_root, identity.peer_id),) for identity in outsiders]
        for name in self._liar_names():
            liar = self._device(Liar, name, founding.identities[name], founding.credentials[name], Disk())
            liar.equip(founding.identities[name], outsiders[0], chains[0])
        stolen = founding.credentials[self.scenario.names[0]].chain
        for index in range(self.scenario.outsiders):
            credentials = Credentials(mesh_name=MESH_NAME, root=foreign_root.peer_id, chain=chains[index])
            intruder = self._device(Outsider, f"outsider{index}", outsiders[index], credentials, Disk())
            intruder.equip(outsiders[index], stolen)
        for stranger in self.strangers:
            stranger.start()

    def _device(self, kind: type[D], name: str, identity: Identity, credentials: Credentials, disk: Disk) -> D:
        device = kind(
            self.world, self.network, name, identity, credentials, disk,
            watch=self._watch, machines=self.machines, skew=self.striking.skew_of(name),
        )  # fmt: skip
        if isinstance(device, Liar | Outsider):
            self.strangers.append(device)
        return device

    # -- life and death -----------------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Start a member, for the first time or after a crash, with what is on its disk."""
        identity, disk = self.founding.identities[name], self.disks.setdefault(name, Disk())
        try:
            device = self._device(Device, name, identity, self.founding.credentials[name], disk)
        except Refused as error:  # it was thrown out, and has heard of it
            self.world.tell(name, f"does not start: {self.world.in_words(str(error))}")
            return
        member = self._equipped(device)
        if device.me not in self.outcasts:
            self.members[name] = member
        self.crashes.returned(device.me)
        device.start()
        self._publish(device)
        if member.generating is not None:
            deploys = name == self.scenario.names[0] and disk.incarnation == 1
            publish_language(device, self.scenario.language, deploys=deploys)
        if member.learner is not None:
            member.learner.start()

    def _equipped(self, device: Device) -> Member:
        scenario = self.scenario
        serving = Serving(device, scenario.model, self.requests)
        learner = None
        if scenario.task.rounds:
            share = self.shares.setdefault(device.me, self._share(device.name))
            learner = Learner(device, scenario.task, share, members_min=len(scenario.names), watch=self.rounds)
        generating = Generating(device, scenario.language, self.answers) if scenario.language.requests else None
        return Member(device, serving, learner, generating)

    def _publish(self, device: Device) -> None:
        scenario = self.scenario
        device.records.publish(PROFILE, "self", Profile(memory_bytes=scenario.model.memory_bytes))
        if device.name == scenario.names[0] and device.disk.incarnation == 1:
            layers = (scenario.model.layer_bytes,) * scenario.model.layers
            model = ModelRecord(version=1, layer_bytes=layers, copies=scenario.model.copies)
            device.records.publish(MODEL, MODEL_NAME, model, durable=True)
        if scenario.statements.interval_s:
            until_s = scenario.duration_s - scenario.settle_s / 2
            Stating(device, scenario.statements.interval_s, until_s=until_s).start()

    def _share(self, name: str) -> Share:
        numbers = self.world.numbers(f"data/{name}")
        optimum = numbers.uniform(-1, 1, self.scenario.task.dimension).astype(np.float32)
        return Share(optimum, float(numbers.integers(50, 200)))

    def life(self, name: str) -> int:
        """Return how often the devices of this name have started."""
        return self.disks[name].life if name in self.disks else 0

    def lose_records(self, name: str) -> None:
        """Empty the disk of a device, but for its key and its grant."""
        me = self.founding.identities[name].peer_id
        self.disks[name] = Disk(life=self.life(name))
        self.revoked.forgets(me)
        self.published.forgets(me)

    def throw_out(self, name: str, subject: PeerId) -> None:
        """Count a device no more among the members; it runs on, and finds out."""
        self.outcasts[subject] = name
        self.answers.abandon(subject)
        if name in self.members and self.members[name].device.me == subject:
            del self.members[name]

    def _left(self, who: PeerId, whom: PeerId) -> None:
        self.crashes.noticed(whom, self.world.now)
        self.freezes.left(who, whom)

    def _ask(self, number: int) -> None:
        """Let a live member send a request; one that knows no model yet refuses to take it on."""
        names = sorted(name for name, member in self.members.items() if not member.device.frozen)
        if not names:
            return
        member, x = self.members[self._dice.choice(names)], self._dice.randrange(MODULUS)
        if member.serving.offered() is not None:
            self.requests.accepted(number, member.device.me, run_layers(0, self.scenario.model.layers, x))
            member.serving.ask(number, x)

    def _ask_language(self) -> None:
        """Let a live member begin a session with the language model."""
        names = sorted(name for name, member in self.members.items() if not member.device.frozen)
        if names:
            member = self.members[self._dice.choice(names)]
            if member.generating is not None:
                self.answers.ask(member.device.me, member.generating)

    def _generating(self) -> list[tuple[str, Generating]]:
        return [(name, member.generating) for name, member in self.members.items() if member.generating is not None]
