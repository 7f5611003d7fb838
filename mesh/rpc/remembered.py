"""What the callee remembers of calls with a key, so that each runs at most once. A machine without I/O.

Invariants, tested with any history:

- Of one caller's key ``begin`` says ``FRESH`` at most once while it is remembered, and it is forgotten only
  ``limits.REMEMBERED_S`` after its call ended: longer than any call with this key is repeated. A brief one is forgotten
  once its caller has said that it is settled, and its call has ended.
- A key stands for one request. With another one it is refused.
- A key that was first shown to an earlier life of this node is never fresh: what that life did is not known here.
- Each caller's keys and answers are bounded. When there are as many keys as may be, new ones are ``Busy``; none is
  forgotten early, for then its call could run again.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from .. import limits
from ..errors import Busy, Uncertain, UsageError
from ..identity import PeerId
from .headers import Once

FRESH: Final = "fresh"
RUNNING: Final = "running"


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of it: what it gave, or why it gave nothing."""

    outcome: object


@dataclass(slots=True)
class _Entry:
    request: bytes
    ended: Ended | None = None
    size_bytes: int = 0
    until: float = float("inf")
    brief: bool = False
    settled: bool = False
    queued: bool = False


class Remembered:
    """The calls with a key that one life of a node has begun."""

    def __init__(self, epoch: bytes) -> None:
        self.epoch: Final = epoch
        self._callers: dict[PeerId, OrderedDict[bytes, _Entry]] = {}

    def begin(self, caller: PeerId, once: Once, request: bytes, now: float, *, queued: bool = False) -> str | Ended:
        """Whether to run it (``FRESH``), to wait for it (``RUNNING``), or what came of it.

        ``request`` is the hash of all that was asked. Raises Uncertain, UsageError, Busy.
        """
        if once.epoch != self.epoch:
            msg = "This node was restarted since; it is not known whether the call ran before that. Look, then decide."
            raise Uncertain(msg)
        known = self._callers.setdefault(caller, OrderedDict())
        self._forget(caller, now)
        if (entry := known.get(once.key)) is None:
            if len(known) >= limits.KEYS_PER_PEER_MAX:
                msg = (
                    f"This node remembers {len(known)} keys of yours, all that it does; some are forgotten in a while."
                )
                raise Busy(msg, max(limits.BUSY_RETRY_S, next(iter(known.values())).until - now))
            most = limits.CALLS_QUEUED_PER_PEER_MAX if queued else limits.CALLS_PER_PEER_MAX
            if sum(entry.ended is None and entry.queued == queued for entry in known.values()) >= most:
                msg = "Calls of yours that outlived their connections still run here, as many as may be at once."
                raise Busy(msg, limits.BUSY_RETRY_S)
            known[once.key] = _Entry(request, brief=once.brief, queued=queued)
            self._callers[caller] = known
            return FRESH
        if entry.request != request:
            msg = "This idempotency key was used for another request; make a new key for each."
            raise UsageError(msg)
        return RUNNING if entry.ended is None else entry.ended

    def end(self, caller: PeerId, key: bytes, outcome: object, size_bytes: int, now: float) -> Ended:
        """Keep what came of a call, or, when it is too large to be kept, that it ran."""
        known = self._callers[caller]
        if size_bytes + sum(entry.size_bytes for entry in known.values()) > limits.REMEMBERED_BYTES_PER_PEER_MAX:
            size_bytes = 0
            outcome = Uncertain("The call ran, but its answer was too large to be kept for a repetition.")
        entry = known[key]
        entry.ended, entry.size_bytes, entry.until = Ended(outcome), size_bytes, now + limits.REMEMBERED_S
        if entry.settled:
            del known[key]
            return entry.ended
        known.move_to_end(key)  # so that they lie in the order in which they are forgotten, running ones aside
        return entry.ended

    def settle(self, caller: PeerId, key: bytes) -> None:
        """Forget a brief key, at the end of its call. Another, or one that is not known, is none of this."""
        known = self._callers.get(caller)
        entry = None if known is None else known.get(key)
        if known is None or entry is None or not entry.brief:
            return
        entry.settled = True
        if entry.ended is not None:
            del known[key]

    def _forget(self, caller: PeerId, now: float) -> None:
        known = self._callers[caller]
        for key in [key for key, entry in known.items() if entry.until <= now]:
            del known[key]
        if not known:
            del self._callers[caller]
