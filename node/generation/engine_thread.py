"""The one thread that an engine has: steps go in, results come back into the event loop. It never holds up the loop."""

import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from .steps import Result, Step
from .worker import Worker

_CLOSE_TIMEOUT_S: Final = 10.0  # for the step that is under way; a thread that computes cannot be stopped

log = logging.getLogger(__name__)


class EngineThread:
    """Runs the steps of one worker. ``done`` is called in the event loop with the results of each."""

    def __init__(self, name: str, worker: Worker, done: Callable[[tuple[Result, ...]], None]) -> None:
        self.worker = worker
        self._done = done
        self._token = trio.lowlevel.current_trio_token()
        self._steps: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, step: Step) -> None:
        """Have a step done; the next may be given only when its results have come."""
        self._steps.put(step)

    async def aclose(self) -> None:
        """End the thread after the step that is under way."""
        self._steps.put(None)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._thread.join, _CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            log.warning(
                "A step of %s goes on for more than %g s; it is left alone", self._thread.name, _CLOSE_TIMEOUT_S
            )

    def _work(self) -> None:
        while (step := self._steps.get()) is not None:
            try:
                results = self.worker.execute(step)
            except Exception as error:
                log.exception("A step of %s failed", self._thread.name)
                results = tuple(Result(error=f"its engine failed: {error}") for _ in step.work)
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._report, results)
        self.worker.close()

    def _report(self, results: tuple[Result, ...]) -> None:
        try:
            self._done(results)
        except Exception:  # it would end the whole event loop
            log.exception("Results of %s could not be passed on", self._thread.name)
