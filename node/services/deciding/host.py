"""What one device does about services: a machine without I/O. Pictures, instances and time in, effects out.

Invariants: nothing starts whose bundle this device does not admit, or that does not fit in what it offers; nothing
ends but what `rollout.ending` allows, what is not admitted (any more), or what nobody deploys (any more). What this
node says in its records is what it does: each decision and the word about it leave together.
"""

import math
import random
from collections.abc import Iterable
from typing import Final

from ....mesh.identity import PeerId, short
from ..records import INSTANCES_MAX, HostedRecord, InstanceSaid, Offering, Release, ServiceRecord
from .outlook import Outlook, Picture, outlook
from .own import REASON_BYTES_MAX, Bar, Bundle, Mine, Wait, cut, plain, said_of
from .rollout import RESTARTS_MAX, current, ending, holding_up, is_under_way, may_start
from .scaling import Scaling, leader
from .steps import (
    Admitted,
    Effect,
    Event,
    Fetch,
    Fetched,
    Instances,
    Ran,
    Say,
    Seen,
    Start,
    Stop,
    Unfetched,
    Unsay,
    Woken,
)
from .view import Deployed

LOOK_S: Final = 0.5  # between two looks at the load of what runs here
SAY_S: Final = 1.0  # load alone is said no more often: it changes all the time, and each answer carries it exactly
FETCHES_MAX: Final = 5  # of one bundle that failed, before another device is to run it
FETCH_AGAIN_S: Final = 2.0  # doubled each time
TRY_AGAIN_S: Final = 60.0  # what does not run here, doubled each time
TRY_AGAIN_S_MAX: Final = 3600.0
# For others whose turn it is, or who have not said that they follow: a device that installs requirements for 15 minutes
# and sets a service up three times in vain is through by then.
PATIENCE_S: Final = 1800.0
ROOM_S: Final = 30.0  # for room to come free where the placement says that there is some
_ID_BITS: Final = 48


class Host:
    """One device's part in hosting all services."""

    def __init__(self, me: PeerId, offering: Offering, rng: random.Random) -> None:
        self.me = me
        self.deadline = math.inf
        self.outlook: Outlook | None = None  # as of the last event, for people
        self._offering = offering
        self._rng = rng
        self._told = Picture()
        self._picture = Picture()  # the same without those who are left out of account
        self._waits: dict[tuple[str, PeerId], Wait] = {}
        self._planned_from: Picture | None = None
        self._refusals: Admitted = {}
        self._mine: dict[str, Mine] = {}
        self._bundles: dict[str, Bundle] = {}
        self._bars: dict[tuple[str, str], Bar] = {}
        self._failed: dict[str, dict[str, str]] = {}  # by service: what we say that failed, and why
        self._follows: dict[str, tuple[int, PeerId]] = {}
        self._scaling: dict[str, Scaling] = {}
        self._short_since: dict[tuple[str, str], float] = {}
        self._said: dict[str, HostedRecord] = {}
        self._said_at: dict[str, float] = {}
        self._now = 0.0

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in what happened and return what is to be done."""
        self._now = now
        match event:
            case Seen():
                self._told, self._refusals = event.picture, event.refusals
                self._picture = self._told.without(self._ignored())
                self._follow()
            case Instances(found):
                self._note_instances(found, now)
            case Fetched(digest):
                self._bundles[digest] = Bundle(here=True)
            case Unfetched():
                self._note_unfetched(event, now)
            case Woken(service):
                if service in self._scaling:  # else another device's number counts
                    self._scaling[service].wake()
        effects = self._decide(now)
        self.deadline = self._next(now)
        return effects

    # -- what happened ------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Forget what was said of bundles under a deployment that counts no more: it may be tried anew."""
        for name, service in self._picture.services.items():
            now_followed = (service.record.revision, service.owner)
            if self._follows.get(name) != now_followed:
                self._follows[name] = now_followed
                self._failed.pop(name, None)
                for key in [key for key in self._bars if key[0] == name]:
                    del self._bars[key]
                self._forget_waits(name)
        for name in self._follows.keys() - self._picture.services.keys():
            del self._follows[name]
            self._failed.pop(name, None)
            self._scaling.pop(name, None)
            self._forget_waits(name)
        wanted = {release.bundle.digest for _, release in self._releases()}
        known = self._bundles.items()
        self._bundles = {digest: its for digest, its in known if digest in wanted or its.fetching}

    def _forget_waits(self, name: str) -> None:
        for key in [key for key in self._waits if key[0] == name]:
            del self._waits[key]
        self._picture = self._told.without(self._ignored())

    def _note_instances(self, found: Iterable[Ran], now: float) -> None:
        ran = {its.id: its for its in found}
        self._mine = {name: mine for name, mine in self._mine.items() if name in ran}
        for name, mine in self._mine.items():
            if ran[name].calls != mine.ran.calls or ran[name].running or ran[name].state != "ready":
                mine.called_at = now
            mine.ran = ran[name]

    def _note_unfetched(self, event: Unfetched, now: float) -> None:
        bundle = self._bundles.setdefault(event.digest, Bundle())
        bundle.fetching, bundle.tries = False, bundle.tries + 1
        bundle.after = now + FETCH_AGAIN_S * 2**bundle.tries
        if event.final or bundle.tries >= FETCHES_MAX:
            bundle.tries = 0
            for name, release in self._releases():
                if release.bundle.digest == event.digest:
                    self._does_not_run(name, release.bundle.digest, event.reason, now)

    def _releases(self) -> list[tuple[str, Release]]:
        services = self._picture.services.items()
        return [(name, release) for name, service in services for release in service.record.releases]

    def _does_not_run(self, name: str, digest: str, reason: str, now: float) -> None:
        """Have another device run it; or, in the midst of an update, have everybody go back."""
        key, reason = (name, digest), cut(reason, REASON_BYTES_MAX)
        tries = self._bars[key].tries + 1 if key in self._bars else 0
        self._bars[key] = Bar(reason, now + min(TRY_AGAIN_S * 2**tries, TRY_AGAIN_S_MAX), tries)
        service = self._picture.services.get(name)
        if service is not None and self._is_new(service, digest) and is_under_way(service.record, self._hosted(name)):
            self._failed.setdefault(name, {})[digest] = f"{short(self.me)}: {reason}"

    def _is_new(self, service: Deployed, digest: str) -> bool:
        return service.record.replaces is not None and service.record.releases[-1].bundle.digest == digest

    # -- what is to be done -------------------------------------------------------------------------------------------

    def _decide(self, now: float) -> list[Effect]:
        self._lose_patience(now)
        effects: list[Effect] = [*self._sweep(now)]
        self._hear_failures()
        self._scale(now)
        seen = self._picture.with_word_of(self.me, self._words())
        if seen != self._planned_from:  # most looks see nothing new
            self._planned_from, self.outlook = seen, outlook(seen)
        effects += self._end()
        effects += self._begin(now)
        return effects + self._speak(now)

    def _lose_patience(self, now: float) -> None:
        """Note for whom this device waits; whom it has waited for too long it leaves out of account."""
        holding = set[tuple[str, PeerId]]()
        for name, wanted in ({} if self.outlook is None else self.outlook.goals).items():
            if name in self._picture.services and self.outlook is not None:
                found = holding_up(name, wanted, self.outlook.placement, self._hosted(name), self.me)
                holding |= {(name, peer) for peer in found}
        before = self._ignored()
        for key in {*holding, *self._waits}:
            self._waits.setdefault(key, Wait()).note(now, waits=key in holding)
        if self._ignored() != before:
            self._picture = self._told.without(self._ignored())

    def _ignored(self) -> dict[str, frozenset[PeerId]]:
        found: dict[str, frozenset[PeerId]] = {}
        for (name, peer), wait in self._waits.items():
            if wait.before_s >= PATIENCE_S:
                found[name] = found.get(name, frozenset()) | {peer}
        return found

    def _sweep(self, now: float) -> list[Effect]:
        """End what failed, what must not run here, and what nobody deploys."""
        effects: list[Effect] = []
        for name, mine in self._mine.items():
            if mine.stopping:
                continue
            service = self._picture.services.get(mine.service)
            digest = mine.release.bundle.digest
            failing = service is not None and self._is_new(service, digest) and mine.ran.restarts >= RESTARTS_MAX
            if mine.ran.state == "failed" or failing:
                self._does_not_run(mine.service, digest, mine.ran.reason or "It did not start.", now)
                effects.append(self._stop(name, 0.0))
            elif service is None or self._refusals.get((mine.service, digest)):
                effects.append(self._stop(name))
        return effects

    def _hear_failures(self) -> None:
        """Say on what others say of an update that failed, where we run the service: so that it is not forgotten."""
        for name, service in self._picture.services.items():
            if not any(mine.service == name for mine in self._mine.values()):
                continue
            newest = service.record.releases[-1].bundle.digest
            for _, its in sorted(self._picture.hosted.get(name, {}).items()):
                if service.record.replaces is not None and current(service.record, its) and newest in its.failed:
                    self._failed.setdefault(name, {}).setdefault(newest, cut(its.failed[newest], REASON_BYTES_MAX))

    def _scale(self, now: float) -> None:
        for name, service in self._picture.services.items():
            if service.record.replicas_max is None or leader(self._picture.hosts(name)) != self.me:
                self._scaling.pop(name, None)
                continue
            hosted = self._hosted(name)
            instances = [instance for its in hosted.values() for instance in its.instances]
            if name not in self._scaling:
                self._scaling[name] = Scaling(sum(1 for its in instances if its.state in {"starting", "ready"}))
            self._scaling[name].look(service.record, instances, now)

    def _end(self) -> list[Effect]:
        assert self.outlook is not None
        effects: list[Effect] = []
        for name, wanted in self.outlook.goals.items():
            hosted = self._hosted(name)
            if self.me in hosted:
                effects += map(self._stop, ending(name, wanted, self.outlook.placement, hosted, self.me))
        return effects

    def _stop(self, name: str, drain_s: float | None = None) -> Stop:
        mine = self._mine[name]
        mine.stopping = True
        longest_s = max(method.timeout_s for method in mine.release.methods)
        return Stop(name, longest_s if drain_s is None else drain_s)

    def _begin(self, now: float) -> list[Effect]:
        assert self.outlook is not None
        effects: list[Effect] = []
        for name, release in self._releases():
            key = (name, release.bundle.digest)
            have = sum(1 for its in self._mine.values() if self._counts(its, key))
            for _ in range(self.outlook.placement.count(key, self.me) - have):
                effects += self._one_more(name, release, now)
        return effects

    def _counts(self, mine: Mine, key: tuple[str, str]) -> bool:
        return (mine.service, mine.release.bundle.digest) == key and mine.state in {"starting", "ready"}

    def _one_more(self, name: str, release: Release, now: float) -> list[Effect]:
        """Start an instance, or get what it takes."""
        assert self.outlook is not None
        digest = release.bundle.digest
        if self._refusals.get((name, digest)):  # nothing of it is even unpacked
            return []
        bundle = self._bundles.setdefault(digest, Bundle())
        if not bundle.here:
            if bundle.fetching or now < bundle.after:
                return []
            bundle.fetching = True
            return [Fetch(name, release)]
        if sum(1 for its in self._mine.values() if its.service == name) >= INSTANCES_MAX or not self._has_room(
            name, release, now
        ):
            return []
        wanted, placement = self.outlook.goals[name], self.outlook.placement
        if not may_start(name, wanted, placement, self._hosted(name), self.me, digest):
            return []
        instance = f"{self._rng.getrandbits(_ID_BITS):012x}"
        self._mine[instance] = Mine(name, release, Ran(id=instance, state="starting"), now)
        return [Start(instance, name, release)]

    def _has_room(self, name: str, release: Release, now: float) -> bool:
        key = (name, release.bundle.digest)
        taken = sum(mine.release.needs.memory_bytes for mine in self._mine.values())
        if taken + release.needs.memory_bytes <= self._offering.memory_bytes:
            self._short_since.pop(key, None)
            return True
        since = self._short_since.setdefault(key, now)
        if now - since >= ROOM_S:
            del self._short_since[key]
            self._bars[key] = Bar("What runs here leaves no room for it.", now + TRY_AGAIN_S, 0)
        return False

    # -- what is said -------------------------------------------------------------------------------------------------

    def _hosted(self, name: str) -> dict[PeerId, HostedRecord]:
        """Return everybody's word on a service, and our own as it is this moment."""
        found = {peer: its for peer, its in self._picture.hosted.get(name, {}).items() if peer != self.me}
        if (mine := self._word(name)) is not None:
            found[self.me] = mine
        return found

    def _words(self) -> dict[str, HostedRecord]:
        names = {*self._picture.services, *(mine.service for mine in self._mine.values())}
        return {name: word for name in sorted(names) if (word := self._word(name)) is not None}

    def _word(self, name: str) -> HostedRecord | None:
        """Return what there is to say of a service; None: nothing."""
        service = self._picture.services.get(name)
        running = {i: mine for i, mine in sorted(self._mine.items()) if mine.service == name}
        if service is None and not running:
            return None
        revision, by = self._follows.get(name, (0, None))
        word = HostedRecord(
            revision=revision,
            by=by,
            instances=tuple(self._instance(i, mine) for i, mine in running.items())[:INSTANCES_MAX],
            failed=dict(self._failed.get(name, {})),
            refused={} if service is None else self._refused(name, service.record),
            wanted=self._scaling[name].wanted if name in self._scaling else None,
        )
        return word if word.instances or word.failed or word.refused or word.wanted is not None else None

    def _refused(self, name: str, record: ServiceRecord) -> dict[str, str]:
        """Say which bundles do not run here now, and why."""
        found = {}
        for release in record.releases:
            digest = release.bundle.digest
            bar = self._bars.get((name, digest))
            why = self._refusals.get((name, digest)) or (bar.reason if bar and bar.until > self._now else "")
            if why:
                found[digest] = cut(why, REASON_BYTES_MAX)
        return found

    def _instance(self, name: str, mine: Mine) -> InstanceSaid:
        service = self._picture.services.get(mine.service)
        quiet = service is not None and self._now - mine.called_at >= service.record.idle_s
        return said_of(name, mine, quiet=quiet)

    def _speak(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        names = {*self._picture.services, *self._said, *(mine.service for mine in self._mine.values())}
        for name in sorted(names):
            word, before = self._word(name), self._said.get(name)
            if word == before:
                continue
            if word is None:
                del self._said[name]
                effects.append(Unsay(name))
            elif before is None or plain(word) != plain(before) or now - self._said_at.get(name, 0.0) >= SAY_S:
                self._said[name], self._said_at[name] = word, now
                effects.append(Say(name, word))
        return effects

    def _next(self, now: float) -> float:
        """When to look again: soon while anything runs or is scaled here, else when something may be tried again."""
        waits = any(wait.since is not None for wait in self._waits.values())
        if waits or self._mine or self._scaling or any(not bundle.here for bundle in self._bundles.values()):
            return now + LOOK_S
        return min((bar.until for bar in self._bars.values() if bar.until > now), default=math.inf)
