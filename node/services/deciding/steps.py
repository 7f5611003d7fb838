"""What the host machine (`host.py`) is told, and what it wants done."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..records import HostedRecord, Release, State
from .outlook import Picture

Admitted = Mapping[tuple[str, str], str]  # service and digest to why it must not run here; empty: it may


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The records have changed."""

    picture: Picture
    refusals: Admitted = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """One instance as it is now."""

    id: str
    state: State
    reason: str = ""
    restarts: int = 0
    running: int = 0
    queue_ms: float = 0.0
    calls: int = 0


@dataclass(frozen=True, slots=True)
class Instances:
    """All that run here, whatever their state; what is not among them is gone. At a deadline this is told."""

    all: tuple[Ran, ...]


@dataclass(frozen=True, slots=True)
class Fetched:
    """A bundle is here, unpacked, and is what its release says."""

    digest: str


@dataclass(frozen=True, slots=True)
class Unfetched:
    """A bundle is not here; ``final``: it never will be, for it is not what its release says."""

    digest: str
    reason: str
    final: bool = False


@dataclass(frozen=True, slots=True)
class Woken:
    """Somebody wants to call a service."""

    service: str


Event = Seen | Instances | Fetched | Unfetched | Woken


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get a bundle and unpack it; answered by Fetched or Unfetched."""

    service: str
    release: Release


@dataclass(frozen=True, slots=True)
class Start:
    """Start an instance."""

    id: str
    service: str
    release: Release


@dataclass(frozen=True, slots=True)
class Stop:
    """End an instance when the calls under way are answered, or after so long."""

    id: str
    drain_s: float


@dataclass(frozen=True, slots=True)
class Say:
    """Publish what runs here of a service."""

    service: str
    record: HostedRecord


@dataclass(frozen=True, slots=True)
class Unsay:
    """Withdraw it: nothing runs here, and there is nothing to say."""

    service: str


Effect = Fetch | Start | Stop | Say | Unsay
