"""Keys of calls that may be repeated and run at most once: the caller's key, and the shell of ``Remembered``.

A call with a key runs to its end or its deadline, even when its caller's connection breaks: its repetition, over
another connection, waits for it or gets its answer.
"""

import hashlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio

from ..errors import LeptonError, Uncertain
from ..identity import PeerId
from ..tensors import Array, buffer_of, describe
from .headers import KEY_BYTES, InternalError, Once
from .remembered import FRESH, Ended, Remembered

log = logging.getLogger(__name__)

Spawn = Callable[..., None]
Work = Callable[[], Awaitable[tuple[object, int]]]  # what came of it, and what it takes to keep that, in bytes


@dataclass(slots=True)
class IdempotencyKey:
    """Stands for one logical call, however often it is sent: make one, and give it to each attempt.

    ``epoch`` is the callee's life to which the first attempt went. A later one that meets another raises Uncertain.
    A ``brief`` one is for many calls: it is repeated only after its connection broke, and forgotten once the caller has
    had an answer or an error of the callee's; to give up the call stops it.
    """

    key: bytes = field(default_factory=lambda: secrets.token_bytes(KEY_BYTES))
    epoch: bytes = b""
    brief: bool = False

    def shown_to(self, epoch: bytes) -> Once:
        """What goes with the next attempt, to a callee in this life."""
        self.epoch = self.epoch or epoch
        return Once(key=self.key, epoch=self.epoch, brief=self.brief)


def hash_of(method: str, scope: str, payload: bytes | memoryview, arrays: Sequence[Array]) -> bytes:
    """A hash of all that is asked."""
    hashed = hashlib.sha256(f"{method}\n{scope}\n{len(payload)}\n".encode())
    hashed.update(payload)
    for array in arrays:
        hashed.update(f"{describe(array)}\n".encode())
        hashed.update(buffer_of(array))
    return hashed.digest()


@dataclass(slots=True, eq=False)
class _Run:
    done: trio.Event = field(default_factory=trio.Event)
    outcome: object = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class OnlyOnce:
    """Runs calls with a key."""

    def __init__(self, remembered: Remembered, spawn: Spawn | None) -> None:
        """``spawn`` starts a task of the node. Without it a call ends with its caller's connection, its end unknown."""
        self._remembered = remembered
        self._spawn = spawn
        self._running: dict[tuple[PeerId, bytes], _Run] = {}

    @property
    def epoch(self) -> bytes:
        return self._remembered.epoch

    async def run(
        self,
        caller: PeerId,
        once: Once,
        request: bytes,
        work: Work,
        timeout_s: float,
        *,
        queued: bool = False,
    ) -> object:
        """The outcome of ``work``, which runs if this key has not run yet. Raises what it raised, Uncertain, Busy."""
        state = self._remembered.begin(caller, once, request, trio.current_time(), queued=queued)
        if isinstance(state, Ended):
            return _given(state.outcome)
        if state == FRESH:
            self._running[caller, once.key] = _Run()
        run = self._running[caller, once.key]
        if state == FRESH and self._spawn is None:
            await self._work(caller, once.key, work, timeout_s)
        elif state == FRESH and self._spawn is not None:
            self._spawn(self._work, caller, once.key, work, timeout_s)
        await run.done.wait()
        return _given(run.outcome)

    def stop(self, caller: PeerId, key: bytes) -> None:
        """Its caller has given up a call with a brief key, and will not repeat it."""
        run = self._running.get((caller, key))
        if run is not None:
            run.scope.cancel()

    def settle(self, caller: PeerId, keys: Sequence[bytes]) -> None:
        """Forget brief keys that their caller will not repeat."""
        for key in keys:
            self._remembered.settle(caller, key)

    async def _work(self, caller: PeerId, key: bytes, work: Work, timeout_s: float) -> None:
        size = 0
        outcome: object = Uncertain("The call was stopped before its end; it is not known how far it came.")
        try:
            with self._running[caller, key].scope, trio.move_on_after(timeout_s):
                outcome, size = await work()
        except LeptonError as error:
            outcome = error
        except Exception as error:
            log.exception("The handler of a call with a key failed")
            outcome = InternalError(f"its handler raised {type(error).__name__}.")
        finally:
            self._remembered.end(caller, key, outcome, size, trio.current_time())
            run = self._running.pop((caller, key))
            run.outcome = outcome  # whole, also when it is too large to be kept
            run.done.set()


def _given(outcome: object) -> object:
    if isinstance(outcome, LeptonError):
        raise outcome
    return outcome
