"""The calls of one method inside an instance: their turns, their batches, and the running of the author's code."""

import traceback
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Final

import trio

from ....mesh.errors import LeptonError
from ..writing.declaring import DeclaredMethod
from .batching import Batching
from .inside import Current, current

_TRACE_CHARACTERS_MAX: Final = 16 * 1024  # in the log: a deep one, and none with an array of a million numbers
_TEXT_CHARACTERS_MAX: Final = 500  # of an error, for its caller
_ON_THE_WAY: Final = frozenset(
    {"lepton", "trio", "outcome", "importlib"}
)  # packages whose frames stand above the author's


class Failed(LeptonError):
    """The author's code raised an error; the text is what its caller is told."""


def told(error: BaseException, request: str) -> Failed:
    """Print the traceback where the log is, and return what the caller hears of it."""
    try:
        trace = "".join(traceback.format_exception(type(error), error, authors(error.__traceback__)))
        text = str(error)
    except Exception as worse:  # noqa: BLE001 - it cannot even be put into words
        trace, text = "", f"it cannot be shown: {type(worse).__name__}"
    print(f"request {request}:", trace[-_TRACE_CHARACTERS_MAX:], sep="\n", flush=True)  # noqa: T201
    kind, text = type(error).__name__, text[:_TEXT_CHARACTERS_MAX]
    return Failed(f"{kind}{': ' if text else ''}{text} (request {request})")


def authors(trace: TracebackType | None) -> TracebackType | None:
    """Leave out what of a trace is ours and trio's on the way to the author's code; all of it is ours if all is."""
    left = trace
    while left is not None and left.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _ON_THE_WAY:
        left = left.tb_next
    return left or trace


class _Turn:
    """One call that waits for its turn or has it."""

    __slots__ = ("arguments", "batch", "current", "error", "left", "over", "result")

    def __init__(self, arguments: Mapping[str, Any], asked: Current) -> None:
        self.arguments = arguments
        self.current = asked
        self.over = trio.Event()
        self.batch: _Batch | None = None
        self.left = False
        self.result: Any = None
        self.error: LeptonError | None = None


class _Batch:
    __slots__ = ("scope", "turns")

    def __init__(self, turns: list[_Turn]) -> None:
        self.turns = turns
        self.scope = trio.CancelScope()


class Lane:
    """One method."""

    def __init__(self, method: DeclaredMethod, function: Callable[..., Any], nursery: trio.Nursery) -> None:
        options = method.options
        self.method: Final = method
        self.function: Final = function
        self._nursery = nursery
        self._machine = Batching[_Turn](
            size_max=options.max_batch_size, wait_s=options.max_wait_ms / 1000, concurrency=options.concurrency
        )
        self._limiter = trio.CapacityLimiter(options.concurrency)
        self._sooner = trio.Event()
        if method.batched and options.max_wait_ms:
            nursery.start_soon(self._ring)

    async def run(self, arguments: Mapping[str, Any], asked: Current) -> Any:  # noqa: ANN401 - the author's
        """Run a unary call when it is its turn. Raises Failed."""
        if self.method.batched:
            return await self._run_in_batch(_Turn(arguments, asked))
        return await self.with_turn(partial(self._invoke, arguments, asked), asked)

    async def with_turn(self, work: Callable[[], Awaitable[Any]], asked: Current) -> Any:  # noqa: ANN401
        """Do some work of a call when it is its turn; ends only when the work has."""
        turn = _Turn({}, asked)
        self._begin(self._machine.add(turn, trio.current_time()))
        try:
            if turn.batch is None:
                await turn.over.wait()
            current.set(asked)
            return await work()
        finally:
            if turn.batch is not None:
                self._begin(self._machine.done(trio.current_time()))
            else:
                self._machine.drop(turn)

    async def in_thread(self, function: Callable[..., Any], *args: Any) -> Any:  # noqa: ANN401
        """Run plain code in a thread. A cancellation waits until the thread has ended: it holds its turn till then."""
        return await trio.to_thread.run_sync(function, *args, limiter=self._limiter)

    async def _invoke(self, arguments: Mapping[str, Any], asked: Current) -> Any:  # noqa: ANN401
        try:
            if self.method.is_async:
                return await self.function(**arguments)
            return await self.in_thread(partial(self.function, **arguments))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the author's
            raise told(error, asked.request) from None

    def _begin(self, batches: list[list[_Turn]]) -> None:
        for turns in batches:
            batch = _Batch(turns)
            for turn in turns:
                turn.batch = batch
            if self.method.batched:
                self._nursery.start_soon(self._run_batch, batch)
            else:
                turns[0].over.set()
        self._sooner.set()

    async def _ring(self) -> None:
        """Let batches go that have waited long enough to fill."""
        while True:
            self._sooner = trio.Event()
            with trio.move_on_at(self._machine.deadline):
                await self._sooner.wait()
            self._begin(self._machine.tick(trio.current_time()))

    # -- batches ------------------------------------------------------------------------------------------------------

    async def _run_in_batch(self, turn: _Turn) -> Any:  # noqa: ANN401
        self._begin(self._machine.add(turn, trio.current_time()))
        try:
            await turn.over.wait()
        except trio.Cancelled:
            turn.left = True
            if turn.batch is not None:
                if all(each.left for each in turn.batch.turns):
                    turn.batch.scope.cancel()
                with trio.CancelScope(shield=True):  # it counts as work as long as there is work
                    await turn.over.wait()
            else:
                self._machine.drop(turn)
            raise
        if turn.error is not None:
            raise turn.error
        return turn.result

    async def _run_batch(self, batch: _Batch) -> None:
        try:
            with batch.scope:
                await self._answer(batch.turns)
        finally:
            for turn in batch.turns:
                turn.over.set()
            self._begin(self._machine.done(trio.current_time()))

    async def _answer(self, turns: list[_Turn]) -> None:
        """Run a batch; if it fails each call is run by itself, so that a bad one spoils no other."""
        try:
            results = await self._together(turns)
        except Failed as error:
            if len(turns) == 1:
                turns[0].error = error
                return
            for turn in turns:
                if not turn.left:
                    await self._answer([turn])
            return
        for turn, result in zip(turns, results, strict=True):
            turn.result = result

    async def _together(self, turns: list[_Turn]) -> list[Any]:
        first = turns[0].current
        asked = Current(first.request, min(turn.current.deadline for turn in turns))
        current.set(asked)
        arguments = {name: [turn.arguments[name] for turn in turns] for name in turns[0].arguments}
        results = await self._invoke(arguments, asked)
        if not isinstance(results, list | tuple) or len(results) != len(turns):
            found = f"{len(results)}" if isinstance(results, list | tuple) else type(results).__name__
            said = f"{self.method.owner} was given {len(turns)} items and has to return as many, not {found}"
            raise told(ValueError(said), asked.request)
        return list(results)
