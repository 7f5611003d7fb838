"""A node beside a program that is not asynchronous: in a thread of its own, and calls into it from other threads."""

import inspect
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from threading import Thread
from typing import Any, ParamSpec, TypeVar, overload

import trio

from ..mesh.errors import LeptonError, UsageError

N = TypeVar("N", bound=AbstractAsyncContextManager[Any])
P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def in_background(node: N) -> Iterator[N]:
    """Run a node in a thread until the block ends. Raises what its start, or its run meanwhile, raised."""
    begun: Future[tuple[trio.lowlevel.TrioToken, trio.CancelScope, trio.Event]] = Future()
    started: Future[None] = Future()

    async def hold() -> None:
        stop = trio.Event()
        with trio.CancelScope() as scope:
            begun.set_result((trio.lowlevel.current_trio_token(), scope, stop))
            async with node:
                started.set_result(None)
                await stop.wait()

    failed: list[BaseException] = []

    def run() -> None:
        try:
            trio.run(hold)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread of the block
            failed.append(error)
        finally:
            if not started.done():
                started.set_exception(failed[0] if failed else LeptonError("The node was stopped before it was up."))

    thread = Thread(target=run, name="lepton-node")
    thread.start()
    token, scope, stop = begun.result()
    try:
        started.result()
        yield node
    finally:
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(stop.set if started.done() else scope.cancel)
        thread.join()
        if failed:
            raise failed[0]


@overload
def call(
    token: trio.lowlevel.TrioToken | None, function: Callable[P, Awaitable[T]], *args: P.args, **options: P.kwargs
) -> T: ...
@overload
def call(token: trio.lowlevel.TrioToken | None, function: Callable[P, T], *args: P.args, **options: P.kwargs) -> T: ...
def call(token: trio.lowlevel.TrioToken | None, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Run a function, asynchronous or not, in the thread of ``token`` and wait for what it returns or raises.

    Raises UsageError from the wrong thread, LeptonError when what runs there has ended or ends meanwhile.
    """
    if token is None:
        raise UsageError("The node is not running: enter it first, as in `with Node.in_background(folder) as node:`.")
    if trio.lowlevel.in_trio_run():
        raise UsageError(
            "This waits, and would hold up the node's own thread: run the training loop with "
            "`await node.run_loop(function)`."
        )
    with suppress(RuntimeError):  # not a thread of trio's: nobody can cancel what runs here
        trio.from_thread.check_cancelled()

    async def run() -> Any:  # noqa: ANN401
        result = function(*args, **options)
        return await result if inspect.isawaitable(result) else result

    try:
        return trio.from_thread.run(run, trio_token=token)
    except (trio.RunFinishedError, trio.Cancelled) as error:
        raise LeptonError("The node is closed, so it cannot be asked anything.") from error
