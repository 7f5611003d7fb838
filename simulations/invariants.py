"""What must hold at every moment of a run, and what must hold once it has ended, whatever went wrong in between.

During: nothing is in a store that its owner did not write, no store goes back to an older version, who is present has
an admitted connection and belongs. After: views are equal, plans are equal and followed, every accepted request ended
exactly once and rightly, and learning reached the optimum. Rounds and answers are checked as they come (`ledgers.py`).
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..gossip.codecs import Floats
from ..mesh.errors import PeerError
from ..mesh.identity import PeerId
from ..mesh.records import Key, Record, SignedRecord, Version, open_record
from .device import Device
from .generating import Generating
from .learner import Learner, Share
from .ledgers import Published, Requests, Revoked
from .serving import Serving
from .world import Violation, World


@dataclass(slots=True)
class Member:
    """A device of the mesh with all that runs on it."""

    device: Device
    serving: Serving
    learner: Learner | None
    generating: Generating | None = None


class Signatures:
    """Which records are truly signed; each is checked once, for all devices of a run and for the invariants."""

    def __init__(self) -> None:
        self._good: dict[SignedRecord, Record] = {}

    def open(self, signed: SignedRecord) -> Record:
        """Open a record. Raises PeerError when it is not signed by the owner that it names."""
        record = self._good.get(signed)
        if record is None:
            record = self._good[signed] = open_record(signed)
        return record


@dataclass(frozen=True, slots=True)
class Invariants:
    """The checks of one run."""

    world: World
    published: Published
    requests: Requests
    belongs: Collection[PeerId]  # who was given a grant
    signatures: Signatures
    newest: dict[tuple[PeerId, int, Key], Version] = field(default_factory=dict)  # by device, its life, and record

    # -- at every moment ----------------------------------------------------------------------------------------------

    def check_moment(self, devices: Sequence[Device]) -> None:
        """Raises Violation when a promise is broken now. ``devices``: all that live, liars too."""
        for device in devices:
            for record in device.records.store.all():
                self._check_genuine(device, record)
                self._check_not_back(device, record)
            self._check_presence(device)
            self._check_kept(device, device, "now")

    def _check_kept(self, device: Device, owner: Device, when: str) -> None:
        """See that a device has what another, or itself, stated for good: that or what took its place."""
        for record in self.published.lasting(owner.me):
            held = device.records.store.get(record.key)
            if held is None or held.version < record.version:
                what = f"{record.content.kind} record {record.name!r} of {owner.name}, version {tuple(record.version)}"
                raise Violation(f"{device.name} has lost a durable record {when}: the {what}")

    def _check_genuine(self, device: Device, record: Record) -> None:
        where = f"the store of {device.name} has a record {record.content.kind!r} of {self.world.called(record.owner)}"
        if record.owner not in self.belongs:
            raise Violation(f"{where}, who is not of this mesh")
        if record.signed.content not in self.published.contents:
            raise Violation(f"{where}, who never wrote it: it is forged")
        try:
            self.signatures.open(record.signed)
        except PeerError as error:
            raise Violation(f"{where} with a bad signature") from error

    def _check_not_back(self, device: Device, record: Record) -> None:
        life = (device.me, device.disk.life)
        before = self.newest.setdefault((*life, record.key), record.version)
        if record.version < before:
            what = f"{record.content.kind!r} of {self.world.called(record.owner)}, version {tuple(record.version)}"
            raise Violation(f"{device.name} has gone back to an older record: {what} after {tuple(before)}")
        self.newest[(*life, record.key)] = record.version

    def _check_presence(self, device: Device) -> None:
        for peer in sorted(device.present):
            if peer not in self.belongs:
                raise Violation(f"{device.name} holds {self.world.called(peer)} for a member, who has no grant")
            if not any(connection.open_at[device.me] for connection in device.connections.get(peer, [])):
                raise Violation(f"{device.name} holds {self.world.called(peer)} for present without a connection")

    # -- at the end ---------------------------------------------------------------------------------------------------

    def check_converged(self, members: Sequence[Member], clients: Collection[PeerId] = ()) -> None:
        """Raises Violation unless all live members see each other and nobody else, and the same whole picture."""
        everyone = {member.device.me for member in members}
        pictures = {member.device.name: _picture(member.device) for member in members}
        for member in members:
            device = member.device
            if missing := sorted(everyone - {device.me} - device.present):
                raise Violation(f"{device.name} does not see {self.world.called(missing[0])} at the end")
            if extra := sorted(device.present - everyone - {*clients}):
                raise Violation(f"{device.name} sees {self.world.called(extra[0])} at the end, who is gone")
            for other in members:
                self._check_kept(device, other.device, "at the end")
        self._all_equal("picture of the mesh", pictures)
        self._all_equal("fingerprint", {m.device.name: m.device.records.store.fingerprint for m in members})

    def check_out(self, members: Sequence[Member], outcasts: Collection[PeerId], revoked: Revoked) -> None:
        """Raises Violation unless all live members know who was thrown out, and hold nothing of theirs."""
        for subject in outcasts:
            name = self.world.called(subject)
            if unaware := revoked.unaware(subject, [member.device.me for member in members]):
                raise Violation(f"{self.world.called(unaware[0])} has not heard at the end that {name} was revoked")
            for member in members:
                if member.device.records.store.of(subject):
                    raise Violation(f"{member.device.name} holds records of {name} at the end, who was revoked")

    def check_plans(self, members: Sequence[Member]) -> None:
        """Raises Violation unless all live members compute the same plan and have loaded what it gives them."""
        plans = {}
        for member in members:
            model = member.serving.offered()
            if model is None:
                raise Violation(f"{member.device.name} knows no model at the end")
            plan = member.serving.plan(model)
            plans[member.device.name] = tuple(sorted(plan.assigned.items()))
            held = member.serving.stage.run if member.serving.stage else None
            if held != plan.assigned.get(member.device.me):
                raise Violation(
                    f"{member.device.name} serves {held}; its plan says {plan.assigned.get(member.device.me)}"
                )
        self._all_equal("plan", plans)

    def check_requests(self, failed_max: int) -> None:
        """Raises Violation unless every accepted request ended exactly once, and few enough failed."""
        failed = []
        for number, request in self.requests.all.items():
            if not request.outcomes and not request.abandoned:
                who = self.world.called(request.asker)
                raise Violation(f"request {number} of {who}, asked at {request.asked_s:.3f} s, never ended")
            failed += [f"request {number}: {reason}" for reason in request.outcomes if reason]
        if len(failed) > failed_max:
            raise Violation(
                f"{len(failed)} requests failed, at most {failed_max} may; {self.world.in_words(failed[0])}"
            )

    def check_learning(
        self, members: Sequence[Member], shares: Mapping[PeerId, Share], error_max: float
    ) -> list[float]:
        """Return each device's distance to the optimum. Raises Violation when one is large, or a device not done."""
        learners = {m.device: m.learner for m in members if m.learner is not None}
        taking_part = [shares[device.me] for device in learners]
        errors = []
        for device, learner in learners.items():
            if learner.state != "done":
                raise Violation(f"{device.name} is {learner.state} at the end, in round {learner.round}")
            errors.append(error := distance(learner.vector, taking_part))
            if error > error_max:
                raise Violation(f"{device.name} ended {error:.3f} from the optimum; at most {error_max:g} is asked")
        return errors

    def _all_equal(self, what: str, values: Mapping[str, object]) -> None:
        names = list(values)
        for name in names[1:]:
            if values[name] != values[names[0]]:
                difference = _difference(values[names[0]], values[name])
                said = f"{names[0]} and {name} have another {what} at the end: {difference}"
                raise Violation(self.world.in_words(said))


def optimum(shares: Sequence[Share]) -> Floats:
    """Return the point that all together are looking for: the weighted mean of their own optima."""
    total = sum(share.weight for share in shares)
    mean = sum((share.weight / total * share.optimum.astype(np.float64) for share in shares), start=np.float64(0))
    return np.asarray(mean, dtype=np.float32)


def distance(vector: Floats, shares: Sequence[Share]) -> float:
    """Return how far a vector is from the optimum, as a part of how far a device's own optimum is on average."""
    best = optimum(shares)
    spread = [_norm(share.optimum - best) for share in shares]
    scale = sum(spread) / len(spread)
    return _norm(vector - best) / (scale or 1.0)


def _norm(x: Floats) -> float:
    return math.sqrt(sum(float(value) ** 2 for value in x))  # in order: BLAS adds up in another on each machine


def _picture(device: Device) -> tuple[tuple[tuple[str, str, str], Version], ...]:
    return tuple(sorted((record.key, record.version) for record in device.records.store.all()))


def _difference(one: object, other: object) -> str:
    left, right = set(one), set(other)  # type: ignore[call-overload]
    parts = sorted(str(item) for item in left ^ right)
    return parts[0] if parts else f"{one} and {other}"
