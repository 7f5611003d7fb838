"""What goes wrong with a call, as data on its way and as an exception at both ends."""

from typing import Final

from ....mesh import limits
from ....mesh.errors import Busy, LeptonError, LinkError, UsageError
from ....mesh.rpc.headers import reason_of
from ..errors import InstanceLost, NotHere, ServiceError, TooLate
from ..messages import Trouble, TroubleKind

_KINDS: Final[tuple[tuple[TroubleKind, type[LeptonError]], ...]] = (
    ("service", ServiceError),
    ("not_here", NotHere),
    ("lost", InstanceLost),
    ("usage", UsageError),
    ("late", TooLate),
    ("link", LinkError),
)


def trouble_of(error: LeptonError) -> Trouble:
    """Put into words what a call came to. What is no kind of its own is the service's business."""
    text = reason_of(error)
    if isinstance(error, Busy):
        retry = min(max(error.retry_after_s, 0.0), limits.CALL_TIMEOUT_S_MAX)
        return Trouble(kind="busy", text=text, retry_after_s=retry)
    return Trouble(kind=next((kind for kind, cls in _KINDS if isinstance(error, cls)), "service"), text=text)


def raised(trouble: Trouble) -> LeptonError:
    """Return what the caller raises for it."""
    if trouble.kind == "busy":
        return Busy(trouble.text, trouble.retry_after_s)
    error = dict(_KINDS)[trouble.kind](trouble.text)
    error.told = True
    return error
