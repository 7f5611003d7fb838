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


@asynccontextmanager
async def gathered(
    folder: Path, data: Mapping[str, Data], *, memory: Mapping[str, str] | None = None
) -> AsyncIterator[dict[str, Node]]:
    """Run a node in a folder of its own for each name, until the block ends; all know each other when it begins.

    ``memory`` says what some of them give to serving models ("20kB"). Raises what a node raises.
    """
    nodes: dict[str, Node] = {}
    stop = trio.Event()

    async def run(name: str, task_status: trio.TaskStatus[None]) -> None:
        said: dict[str, Any] = {"serve": {"memory": memory[name]}} if memory and name in memory else {}
        said |= {"web": {"listen": "off"}, "interfaces": [INTERFACE], "listen": [f"{INTERFACE}:0"], "name": name}
        async with Node(folder / name, data=data[name], **said) as node:
            nodes[name] = node
            task_status.started()
            await stop.wait()

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
            yield {name: nodes[name] for name in data}
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
