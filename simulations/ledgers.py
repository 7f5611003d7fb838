"""What truly happened, noted beside the devices: what each published, offered to a round, asked, and was answered.

The invariants compare what devices believe with these. A device cannot write here except by doing the thing.
"""

import itertools
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from ..gossip.codecs import Floats
from ..gossip.events import Report, Run
from ..mesh.errors import PeerError
from ..mesh.identity import PeerId
from ..mesh.records import Key, Record, open_record
from .world import Violation, World

# Of the largest |x| of a part: what goes in is rounded once, what comes out once more (the bounds of gossip/codecs.py).
CODEC_ERROR = {"float32": 1e-6, "float16": 2**-9, "bfloat16": 2**-6, "int8": 2 * 1.02 / 127, "int4": 2 * 1.02 / 7}


@dataclass(slots=True)
class Published:
    """All records that their owners ever made, in the order in which they made them."""

    by_owner: dict[PeerId, list[Record]] = field(default_factory=dict)
    contents: set[bytes] = field(default_factory=set)
    _lasting: dict[PeerId, dict[Key, Record]] = field(default_factory=dict)

    def lasting(self, owner: PeerId) -> list[Record]:
        """Return what an owner has stated for good and has not lost by itself, the newest of each key."""
        return list(self._lasting.get(owner, {}).values())

    def forgets(self, owner: PeerId) -> None:
        """Note that an owner's disk is lost: what nobody else had heard is gone."""
        self._lasting.pop(owner, None)

    def note(self, record: Record) -> None:
        """Note a record that its owner holds for its own, if it has truly signed it."""
        if record.signed.content in self.contents:
            return
        with suppress(PeerError):
            open_record(record.signed)
            self.by_owner.setdefault(record.owner, []).append(record)
            self.contents.add(record.signed.content)
            if record.content.durable:
                self._lasting.setdefault(record.owner, {})[record.key] = record


@dataclass(slots=True)
class Request:
    """One request, from its asking to its end."""

    asker: PeerId
    asked_s: float
    expected: int
    attempts: int = 0
    outcomes: list[str] = field(default_factory=list)  # '' for an answer, else the reason
    waited_s: float = 0.0
    abandoned: bool = False  # its asker crashed

    @property
    def answered(self) -> bool:
        return self.outcomes == [""]


class Requests:
    """All requests that devices accepted."""

    def __init__(self, world: World) -> None:
        self.all: dict[int, Request] = {}
        self._world = world

    def accepted(self, number: int, asker: PeerId, expected: int) -> None:
        self.all[number] = Request(asker, self._world.now, expected)

    def asked(self, number: int, attempt: int) -> None:
        request = self.all[number]
        request.attempts = attempt
        if attempt > 1:
            self._tell(number, f"goes another way, attempt {attempt}")

    def answered(self, number: int, y: int | None) -> None:
        """Note an answer. Raises Violation when it is a wrong one."""
        request = self.all[number]
        if y != request.expected:
            raise Violation(f"request {number} was answered with {y}; right is {request.expected}")
        self._end(number, "")
        self._tell(number, f"is answered after {request.waited_s:.3f} s")

    def failed(self, number: int, reason: str) -> None:
        """Note a failure. Raises Violation when no reason is given."""
        if not reason:
            raise Violation(f"request {number} failed without a reason")
        self._end(number, reason)
        self._tell(number, f"failed: {self._world.in_words(reason)}")

    def abandon(self, asker: PeerId) -> None:
        """Note that an asker is dead, with all that it waited for."""
        for request in self.all.values():
            request.abandoned |= request.asker == asker and not request.outcomes

    def _end(self, number: int, outcome: str) -> None:
        request = self.all[number]
        request.outcomes.append(outcome)
        request.waited_s = self._world.now - request.asked_s
        if len(request.outcomes) > 1:
            raise Violation(f"request {number} ended {len(request.outcomes)} times")

    def _tell(self, number: int, what: str) -> None:
        self._world.tell(self._world.called(self.all[number].asker), f"request {number} {what}")


class Rounds:
    """What devices put into rounds, and what came out. Invariant: a result is the mean of those that it names."""

    def __init__(self, world: World, codec: str) -> None:
        self.finished_count = 0
        self.complete_count = 0
        self.missing_count = 0
        self.agreed_count = 0
        self._world, self._error = world, CODEC_ERROR[codec]
        self._offers: dict[tuple[PeerId, int], list[tuple[Floats, float]]] = {}  # several after a crash
        self._models: dict[bytes, Floats] = {}  # by the names that rounds, or the beginning, gave them

    def known(self, name: bytes, vector: Floats) -> None:
        """Note a model that goes by a name. Raises Violation when another one does."""
        if not np.array_equal(self._models.setdefault(name, vector.copy()), vector):
            raise Violation(f"two different models are called {name.hex()}: those who agreed hold different numbers")

    def offered(self, me: PeerId, round_: int, vector: Floats, weight: float) -> None:
        self._offers.setdefault((me, round_), []).append((vector.copy(), weight))

    def finished(self, me: PeerId, report: Report, vector: Floats) -> None:
        """Check a result. Raises Violation when a run of it is not the mean of those that the report names."""
        self.finished_count += 1
        self.complete_count += report.complete
        self.missing_count += len(report.missing)
        self.agreed_count += report.agreed
        if report.agreed:
            self.known(report.reference, vector)
        for run in itertools.chain(*report.parts) if any(report.parts) else [Run(0, vector.size, ())]:
            place = slice(run.start, run.stop)
            if run.contributors or not report.agreed:
                right = self._is_mean(me, report.round, place, run.contributors, vector)
            else:
                right = bool(np.array_equal(vector[place], self._models[report.base][place]))
            if not right:
                names = ", ".join(self._world.called(peer) for peer, _ in run.contributors) or "nobody"
                who, values = self._world.called(me), f"values {run.start} to {run.stop}"
                raise Violation(f"{who}, round {report.round}: {values}: is not the mean of {names}, as reported")

    def _is_mean(
        self, me: PeerId, round_: int, part: slice, named: tuple[tuple[str, float], ...], vector: Floats
    ) -> bool:
        if not named:  # it kept its own
            return bool(np.array_equal(vector[part], self._offers[me, round_][-1][0][part]))
        choices = [self._offers.get((PeerId(peer), round_), []) for peer, _ in named]
        weights = [weight for _, weight in named]
        for offers in itertools.product(*choices):  # one, but for who crashed in this round and came back to it
            if any(weight > offer[1] for weight, offer in zip(weights, offers, strict=True)):
                continue
            mean = np.zeros(vector[part].size)
            for weight, (offer, _) in zip(weights, offers, strict=True):
                mean += weight / sum(weights) * offer[part].astype(np.float64)
            # Differences to a model are no larger than twice the largest number.
            largest = 2 * max(float(np.abs(offer[part]).max(initial=0.0)) for offer, _ in offers)
            if np.allclose(vector[part], mean, rtol=0, atol=self._error * largest + 1e-9):
                return True
        return False


@dataclass(slots=True)
class Crashed:
    """One crash, and when the others noticed."""

    peer: PeerId
    at_s: float
    noticed_s: list[float] = field(default_factory=list)
    back: bool = False


class Freezes:
    """All processes that were stopped, and who dropped whom: those who were stopped, and in peace nobody else."""

    def __init__(self, world: World, *, peaceful: bool) -> None:
        """``peaceful`` when nothing is lost and nobody crashes or is cut off: then nobody is dropped for nothing."""
        self.dropped_by: dict[PeerId, set[PeerId]] = {}  # since it was last stopped
        self.noticed_s: list[float] = []
        self._world, self._peaceful = world, peaceful
        self._since: dict[PeerId, float] = {}

    def stopped(self, peer: PeerId) -> None:
        self.dropped_by[peer] = set()
        self._since[peer] = self._world.now

    def left(self, who: PeerId, whom: PeerId) -> None:
        """Note that one member finds another gone. Raises Violation when neither of the two was ever away."""
        if whom in self.dropped_by:
            self.dropped_by[whom].add(who)
            self.noticed_s.append(self._world.now - self._since[whom])
        elif self._peaceful and who not in self.dropped_by:
            raise Violation(f"{self._world.called(who)} drops {self._world.called(whom)}, which was never away")

    def goes_on(self, peer: PeerId, others: Iterable[PeerId]) -> None:
        """Raises Violation unless all others have dropped it; amid other faults it may have been away before."""
        for other in others if self._peaceful else ():
            if other not in self.dropped_by[peer]:
                raise Violation(f"{self._world.called(other)} never noticed that {self._world.called(peer)} was frozen")


@dataclass(slots=True)
class Crashes:
    """All crashes of a run."""

    all: list[Crashed] = field(default_factory=list)

    def noticed(self, left: PeerId, now: float) -> None:
        for crash in self.all:
            if crash.peer == left and not crash.back:
                crash.noticed_s.append(now - crash.at_s)

    def returned(self, peer: PeerId) -> None:
        for crash in self.all:
            crash.back |= crash.peer == peer


class Revoked:
    """Who heard when of whose revocation. Invariant: nobody answers a call of a peer that it knows to be revoked."""

    def __init__(self, world: World) -> None:
        self.heard_s: dict[tuple[PeerId, PeerId], float] = {}  # (who, of whom)
        self._world = world

    def told(self, who: PeerId, subject: PeerId) -> None:
        self.heard_s.setdefault((who, subject), self._world.now)

    def served(self, who: PeerId, caller: PeerId) -> None:
        """Raise Violation when somebody is about to answer a peer of whose revocation it has heard."""
        if (who, caller) in self.heard_s:
            called = self._world.called
            raise Violation(f"{called(who)} answers {called(caller)}, of whose revocation it has heard")

    def forgets(self, who: PeerId) -> None:
        """Note that somebody's disk is lost, and with it all of whom it had heard."""
        for known in [pair for pair in self.heard_s if pair[0] == who]:
            del self.heard_s[known]

    def unaware(self, subject: PeerId, members: Iterable[PeerId]) -> list[PeerId]:
        """Return who of these has not heard of a revocation."""
        return [who for who in members if (who, subject) not in self.heard_s]
