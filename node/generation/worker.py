"""Carries out steps on an engine: the caches behind the keys, one thread's work. Knows neither sessions nor peers."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ...mesh.errors import LeptonError, UsageError
from ...mesh.tensors import Array
from ..deployments import Activations
from .activations import position_bytes, read, write
from .engine import Cache, Engine, Piece
from .sampling import Sampling, sample
from .steps import CacheOp, Draw, Drop, Fork, New, Result, Step, Truncate, Work

log = logging.getLogger(__name__)

# Logits, the tokens before, settings, the position: the token.
Drawer = Callable[[npt.NDArray[np.float32], Sequence[int], Sampling, int], int]


class Worker:
    """One engine and the caches on it."""

    def __init__(self, engine: Engine, draw: Drawer = sample, activations: Activations = "float32") -> None:
        self._engine = engine
        self._activations = activations
        self._draw = draw
        self._caches: dict[int, Cache] = {}

    @property
    def input_bytes(self) -> int | None:
        """What travels for one position to here; None on the first stage, where token ids do."""
        return position_bytes(self._engine.width, self._activations) if self._engine.first else None

    @property
    def caches(self) -> int:
        """How many there are."""
        return len(self._caches)

    @property
    def cache_bytes(self) -> int:
        """What they take now."""
        return sum(cache.size_bytes for cache in self._caches.values())

    def execute(self, step: Step) -> tuple[Result, ...]:
        """Do all of a step. Work that the engine cannot do fails alone, with a reason for people."""
        for op in step.ops:
            self._apply(op)
        if not step.work:
            return ()
        return self._run(step.work)

    def close(self) -> None:
        """Give back what all caches take."""
        while self._caches:
            self._caches.popitem()[1].close()

    def _apply(self, op: CacheOp) -> None:
        match op:
            case New(key):
                self._caches[key] = self._engine.new_cache()
            case Fork(key, of, length):
                self._caches[key] = self._caches[of].fork(length)
            case Truncate(key, length):
                self._caches[key].truncate(length)
            case Drop(key):
                self._caches.pop(key).close()

    def _run(self, work: Sequence[Work]) -> tuple[Result, ...]:
        try:
            outputs = self._engine.run([self._piece(one) for one in work])
        except Exception as error:  # noqa: BLE001  no cache has changed; nobody else's session may fail with it
            return tuple(self._run((one,))[0] for one in work) if len(work) > 1 else (_failed(error),)
        return tuple(self._result(one, output) for one, output in zip(work, outputs, strict=True))

    def _piece(self, work: Work) -> Piece:
        if work.x is None:
            x: Array = np.array(work.ids, dtype=np.int32)
        else:
            x = read(work.x, self._engine.width, self._activations)
        return Piece(cache=self._caches[work.key], x=x, wants_logits=work.draw is not None)

    def _result(self, work: Work, output: Array | None) -> Result:
        try:
            return self._told(work, output)
        except Exception as error:  # noqa: BLE001  the caches of all have changed: nothing of the batch runs again
            return _failed(error)

    def _told(self, work: Work, output: Array | None) -> Result:
        if work.draw is not None:
            assert output is not None, "logits were asked for"
            return Result(token=self._drawn(output, work.draw))
        if output is None or self._engine.end == self._engine.layers:
            return Result()
        return Result(x=write(output, self._activations))

    def _drawn(self, logits: Array, draw: Draw) -> int:
        return self._draw(np.asarray(logits, dtype=np.float32), draw.history, draw.sampling, draw.position)


def _failed(error: Exception) -> Result:
    if not isinstance(error, LeptonError):
        log.error("A step of a stage failed", exc_info=error)
    return Result(error=str(error) or type(error).__name__, asked_wrongly=isinstance(error, UsageError))
