"""Private rounds one after another: groups, early messages, and no second signature, however often members restart."""

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lepton.gossip.config import Config
from lepton.gossip.errors import BadContribution, BadSetup
from lepton.gossip.events import Behind, Expired, Finished, PeerDown, Ready, Received, Send
from lepton.gossip.private import messages
from lepton.gossip.private.averager import TOO_FEW, PrivateAverager
from lepton.gossip.private.messages import Hello

DIMENSION = 9


def names(count: int) -> tuple[str, ...]:
    return tuple(f"p{index:02}" for index in range(count))


def signature(peer: str, payload: bytes) -> bytes:
    return (peer.encode() + payload).ljust(64, b"\0")[:64]


@dataclass
class Group:
    """Members on virtual time that train one after another and exchange, round by round."""

    count: int
    seed: int
    rounds: int = 4
    forgetful: bool = False
    machines: dict[str, PrivateAverager] = field(default_factory=dict)
    begun: dict[str, int] = field(default_factory=dict)
    signed: dict[tuple[str, int], set[bytes]] = field(default_factory=dict)
    ends: list[tuple[str, Finished]] = field(default_factory=list)
    vectors: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    queue: list[tuple[str, Send]] = field(default_factory=list)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        for name in names(self.count):
            self.begun[name] = -1
            self.start(name)

    def start(self, name: str) -> None:
        """A new process: nothing but the round that is on disk is left of the old one."""
        first = self.begun[name] if self.forgetful and self.begun[name] >= 0 else self.begun[name] + 1

        def sign(payload: bytes) -> bytes:
            self.signed.setdefault((name, self.machines[name].round), set()).add(payload)
            return signature(name, payload)

        self.machines[name] = PrivateAverager(
            name, "t", mesh=b"m", dimension=DIMENSION, secret=lambda: self.dice.randbytes(32), sign=sign,
            verify=lambda peer, payload, signed: signed == signature(peer, payload), first_round=first,
            config=Config.test(),
        )  # fmt: skip

    def begin(self, name: str) -> None:
        machine = self.machines[name]
        self.begun[name] = round_ = machine.round  # on disk first
        vector = np.array([self.dice.uniform(-5, 5) for _ in range(DIMENSION)], dtype=np.float32)
        self.vectors[name, round_] = vector
        self.do(name, machine.handle(Ready(round_, vector, 1.0, names(self.count)), self.now))

    def do(self, name: str, effects: list[Send | Finished | Behind]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self.queue.append((name, effect))
            elif isinstance(effect, Finished):
                self.ends.append((name, effect))

    def deliver(self) -> None:
        pairs = sorted({(sender, send.peer) for sender, send in self.queue})
        pair = self.dice.choice(pairs)  # what one sends to another arrives in order, as on a stream
        at = next(i for i, (sender, send) in enumerate(self.queue) if (sender, send.peer) == pair)
        sender, send = self.queue.pop(at)
        if send.peer not in self.machines:
            return
        message = messages.unpack(*messages.pack(send.message))  # type: ignore[arg-type]
        self.do(send.peer, self.machines[send.peer].handle(Received(sender, message), self.now))  # type: ignore[arg-type]

    def run(self, *, restarts: float = 0.0) -> "Group":
        for _ in range(3000):
            idle = [
                name for name, machine in self.machines.items() if not machine.running and machine.round < self.rounds
            ]
            if self.dice.random() < restarts:
                name = self.dice.choice(names(self.count))
                self.start(name)
                for other in names(self.count):
                    if other != name and self.dice.random() < 0.5:  # the others may hear of it or not
                        self.do(other, self.machines[other].handle(PeerDown(name), self.now))
            elif self.queue and (not idle or self.dice.random() < 0.8):
                self.deliver()
            elif idle:
                self.begin(self.dice.choice(idle))
            elif any(machine.running for machine in self.machines.values()):
                self.now = min(machine.deadline for machine in self.machines.values())
                for name, machine in self.machines.items():
                    self.do(name, machine.handle(Expired(), self.now))
            else:
                return self
        return self


@pytest.mark.parametrize("count", [3, 5, 8, 9, 20])
def test_every_group_gets_its_exact_mean_round_after_round(count: int) -> None:
    group = Group(count, seed=count).run()
    assert len(group.ends) == 4 * count
    for _, end in group.ends:
        assert end.report.complete
        exact = np.mean([group.vectors[member, end.round] for member in end.report.members], axis=0)
        np.testing.assert_allclose(end.vector, exact, atol=2**-15)
        assert 3 <= len(end.report.members) <= 8


@pytest.mark.parametrize("count", [1, 2])
def test_a_group_too_small_keeps_its_own_and_says_so(count: int) -> None:
    group = Group(count, seed=0).run()
    assert len(group.ends) == 4 * count
    for name, end in group.ends:
        np.testing.assert_array_equal(end.vector, group.vectors[name, end.round])
        assert end.report.parts == ()
        assert TOO_FEW in end.report.missing[0].why
    assert group.queue == []


def twice(group: Group) -> list[tuple[str, int]]:
    return [key for key, payloads in group.signed.items() if len(payloads) > 1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 8), st.floats(0, 0.05))
def test_nobody_signs_twice_in_a_round_however_often_members_restart(seed: int, count: int, restarts: float) -> None:
    group = Group(count, seed).run(restarts=restarts)
    assert twice(group) == []
    for _, end in group.ends:
        if end.report.complete:
            exact = np.mean([group.vectors[member, end.round] for member in end.report.members], axis=0)
            np.testing.assert_allclose(end.vector, exact, atol=2**-15)


@pytest.mark.parametrize("forgetful", [False, True])
def test_a_power_cut_after_the_signatures_repeats_no_round(forgetful: bool) -> None:
    """Members that forget what they had begun sign twice, once without who stays away: so this test can fail."""
    group = Group(5, seed=1, forgetful=forgetful)
    for name in names(5):
        group.begin(name)
    while len(group.signed) < 5:
        group.deliver()
    group.queue.clear()
    for name in names(4):
        group.start(name)
    del group.machines["p04"]
    group.run()
    assert bool(twice(group)) is forgetful
    assert {end.round for _, end in group.ends} == ({0, 1, 2, 3} if forgetful else {1, 2, 3})


def hello(peer: str, round_: int, attempt: int = 0) -> Received:
    message = Hello(task="t", round=round_, context=bytes(32), attempt=attempt, key=bytes(range(32)), reference=b"")
    return Received(peer, message)  # type: ignore[arg-type]


def test_early_messages_are_few_and_small_and_far_ones_are_told_once() -> None:
    machine = Group(5, seed=1).machines["p00"]
    for peer in range(500):
        assert machine.handle(hello(f"x{peer}", 1), 0.0) == []
    assert len(machine._early) == Config.test().buffered_count_max
    (behind,) = machine.handle(hello("p01", 9), 0.0)
    assert isinstance(behind, Behind)
    assert (behind.by, behind.peer) == (9, "p01")
    assert machine.handle(hello("p01", 10), 0.0) == []
    machine.skip_to(5)
    assert machine._early == {}
    assert machine.handle(hello("p01", 3), 0.0) == []
    assert machine._early == {}


def test_a_round_given_up_is_not_begun_again() -> None:
    group = Group(3, seed=1)
    machine = group.machines["p00"]
    group.begin("p00")
    with pytest.raises(BadSetup, match="round 0 is running"):
        group.begin("p00")
    machine.skip_to(0)
    assert machine.round == 1
    with pytest.raises(BadSetup, match="round 1 comes next"):
        machine.handle(Ready(0, np.zeros(DIMENSION, np.float32), 1.0, names(3)), 0.0)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(BadSetup, match="8 or 16 members, got 4"):
        PrivateAverager(
            "a", "t", mesh=b"", dimension=1, secret=bytes, sign=bytes, verify=lambda *_: True, group_size=4
        )  # fmt: skip
    machine = Group(2, seed=1).machines["p00"]
    for vector in (np.full(DIMENSION, np.nan, np.float32), np.zeros(3, np.float32)):
        with pytest.raises(BadContribution):
            machine.handle(Ready(0, vector, 1.0, names(2)), 0.0)
    assert machine.round == 0
