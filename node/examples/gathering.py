"""Several real nodes in one process: one makes a mesh, the others join with its invites, over loopback alone."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import torch
import trio

from ...mesh.errors import LeptonError
from ..learning.data import Dataset
from ..node import Node
from ..setup import create_mesh, join_mesh

INTERFACE: Final = "127.0.0.1"
_PATIENCE_S: Final = 60.0  # for what takes a second on a machine with nothing else to do
_POLL_S: Final = 0.05

Data = Mapping[str, Dataset]  # one node's data sets by name


class Nodes(dict[str, Node]):
    """Nodes by name, while they run."""

    def __init__(self) -> None:
        super().__init__()
        self._scopes: dict[str, trio.CancelScope] = {}

    async def run(self, name: str, node: Node, stop: trio.Event, task_status: trio.TaskStatus[None]) -> None:
        """Run a node until all stop, or until it is unplugged."""
        with trio.CancelScope() as self._scopes[name]:
            async with node:
                self[name] = node
                task_status.started()
                await stop.wait()

    def unplug(self, name: str) -> None:
        """End a node at once, in the middle of whatever it does."""
        del self[name]
        self._scopes[name].cancel()


@asynccontextmanager
async def gathered(
    folder: Path,
    data: Mapping[str, Data],
    *,
    memory: Mapping[str, str] | None = None,
    services: Mapping[str, Mapping[str, Any]] | None = None,
) -> AsyncIterator[Nodes]:
    """Run a node in a folder of its own for each name, until the block ends; all know each other when it begins.

    ``memory`` says what some of them give to serving models ("20kB"), ``services`` what some give to services, as in
    node.toml. Raises what a node raises.
    """
    nodes = Nodes()
    stop = trio.Event()

    async def run(name: str, task_status: trio.TaskStatus[None]) -> None:
        said: dict[str, Any] = {"serve": {"memory": memory[name]}} if memory and name in memory else {}
        said |= {"web": {"listen": "off"}, "interfaces": [INTERFACE], "listen": [f"{INTERFACE}:0"], "name": name}
        said |= {"services": services[name]} if services and name in services else {}
        await nodes.run(name, Node(folder / name, data=data[name], **said), stop, task_status)

    async def join(name: str, code: str) -> None:
        await join_mesh(folder / name, code, interfaces=(INTERFACE,), timeout_s=_PATIENCE_S)
        await nursery.start(run, name)

    first, *others = data
    create_mesh(folder / first, "example")
    async with trio.open_nursery() as nursery:
        with _one_thread():
            await nursery.start(run, first)
            async with trio.open_nursery() as joining:
                for name in others:
                    joining.start_soon(join, name, nodes[first].invite())
            await until(lambda: all(len(node.tasks.profiles()) >= len(data) for node in nodes.values()))
            yield nodes
            stop.set()


async def until(condition: Callable[[], object], *, timeout_s: float = _PATIENCE_S) -> None:
    """Wait for what will become true. Raises LeptonError when it does not in time."""
    with trio.move_on_after(timeout_s):
        while not condition():  # noqa: ASYNC110 - it may look at several nodes, each with an event of its own
            await trio.sleep(_POLL_S)
        return
    raise LeptonError(
        f"The nodes of this example did not come so far within {timeout_s:g} s; is the machine that busy?"
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let all nodes share the cores: with a thread for each core they would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
