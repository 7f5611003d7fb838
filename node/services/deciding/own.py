"""What a host keeps of its own instances, bundles and waits, and how it says that to others: coarsely, and cut."""

import math
from dataclasses import dataclass
from typing import Final

import msgspec

from ..records import HostedRecord, InstanceSaid, Release, State
from .steps import Ran

REASON_BYTES_MAX: Final = 300  # so that a record with the most instances still fits
_LAST_BYTES_MAX: Final = 100  # of each instance's own


@dataclass(slots=True)
class Mine:
    """One instance that runs here."""

    service: str
    release: Release
    ran: Ran
    called_at: float
    stopping: bool = False

    @property
    def state(self) -> State:
        return "draining" if self.stopping else self.ran.state


@dataclass(slots=True)
class Bar:
    """Why a bundle does not run here for now."""

    reason: str
    until: float
    tries: int


@dataclass(slots=True)
class Wait:
    """How long this device has waited for another's word on a service's deployment, in all."""

    before_s: float = 0.0
    since: float | None = None

    def note(self, now: float, *, waits: bool) -> None:
        if self.since is not None:
            self.before_s += now - self.since
        self.since = now if waits else None


@dataclass(slots=True)
class Bundle:
    """How far a bundle has come to be here."""

    here: bool = False
    fetching: bool = False
    tries: int = 0
    after: float = -math.inf


def said_of(name: str, mine: Mine, *, quiet: bool) -> InstanceSaid:
    """Return what is said of one instance; ``quiet``: nobody has called it for long."""
    ran = mine.ran
    return InstanceSaid(
        id=name,
        bundle=mine.release.bundle.digest,
        version=mine.release.version,
        state=mine.state,
        reason=cut(ran.reason, _LAST_BYTES_MAX),
        running=_coarse(ran.running),
        queue_ms=float(_coarse(round(ran.queue_ms))),
        restarts=ran.restarts,
        quiet=quiet,
    )


def _coarse(number: int) -> int:
    """Round up to a power of two, so that a busy host does not speak all the time."""
    return 1 << (number - 1).bit_length() if number > 0 else 0


def cut(text: str, size_bytes_max: int) -> str:
    """Return as much of a text as fits."""
    return text.encode()[:size_bytes_max].decode(errors="ignore")


def plain(word: HostedRecord) -> HostedRecord:
    """Return a word without the load in it."""
    instances = tuple(msgspec.structs.replace(its, running=0, queue_ms=0.0) for its in word.instances)
    return msgspec.structs.replace(word, instances=instances)
