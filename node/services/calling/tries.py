"""What may be done after an attempt of a call has failed. Pure.

Invariants, tested with any history of errors:

- A method that is not idempotent is asked of a second replica only when it certainly did not run at the first.
- An idempotent one is asked again after a loss, but no more than ``LOST_MAX`` replicas are lost to one call: a request
  that kills whoever works on it must not kill them all.
- What a service itself said is the last word.
"""

from dataclasses import dataclass, field
from typing import Final, Literal

from ....mesh.errors import Busy, LeptonError, LinkError, PeerError, Uncertain
from ..errors import InstanceLost, NotHere, TooLate
from .balancer import REST_S, Outcome, Replica

LOST_MAX: Final = 2

Fate = Literal["not_run", "unknown", "final"]


def fate(error: LeptonError) -> Fate:
    """Say what is known of a call that failed so: whether it ran, or that it was answered."""
    if isinstance(error, NotHere | Busy) or error.unsent:
        return "not_run"
    return "unknown" if isinstance(error, LinkError | PeerError) else "final"


def outcome_of(error: LeptonError) -> tuple[Outcome, float]:
    """Return what an error says of the replica, and for how long it is to be left alone."""
    match error:
        case Busy():
            return "busy", error.retry_after_s
        case NotHere():
            return "turned_away", REST_S
        case LinkError() | PeerError():
            return "failed", 0.0
    return "answered", 0.0  # and so it works


@dataclass(slots=True)
class Tries:
    """The attempts of one call."""

    what: str  # for errors: service.method
    idempotent: bool
    lost: list[Replica] = field(default_factory=list)
    last: LeptonError | None = None

    def again(self, error: LeptonError, replicas: list[Replica]) -> bool:
        """Whether the call may be asked again, after all of these replicas failed it."""
        self.last = error
        match fate(error):
            case "not_run":
                return True
            case "unknown":
                self.lost += replicas
                return self.idempotent and len(self.lost) < LOST_MAX and not isinstance(error, TooLate)
        return False

    def final(self) -> LeptonError:
        """Return what the caller is told."""
        error = self.last
        assert error is not None
        if fate(error) != "unknown" or isinstance(error, InstanceLost | TooLate | Uncertain):
            return error
        said = Uncertain(f"It is not known whether {self.what} ran: {error}")
        said.__cause__ = error
        return said
