"""What the owner asks of a node that tells how far it is: training, serving, text as it comes."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from ..mesh.errors import LeptonError
from .learning.task import task_from

if TYPE_CHECKING:  # the command line asks without loading what a node needs: seconds
    from .node import Node

# What a command of another release, or our own mistake, raises: it costs the command, never the node.
MISTAKES: Final = (KeyError, IndexError, TypeError, ValueError)
_PIECES_MAX: Final = 16  # of a text that wait for the owner's terminal

Arguments = dict[str, Any]
Tell = Callable[[object], Awaitable[None]]


async def train(node: "Node", arguments: Arguments, tell: Tell) -> object:
    """Run a task, telling where everybody stands whenever that changes. It goes on if the owner leaves."""
    send, receive = trio.open_memory_channel[object](1)
    result: list[object] = []

    def progress(nodes: Mapping[Any, Any]) -> None:
        with suppress(trio.WouldBlock):  # the owner is shown the next one
            send.send_nowait({peer: msgspec.to_builtins(trainer) for peer, trainer in nodes.items()})

    async def work() -> None:
        async with send:
            task = task_from(arguments["task"], "The task")
            trained = await node.train(task, on_progress=progress)
        nodes = {peer: msgspec.to_builtins(trainer) for peer, trainer in trained.nodes.items()}
        result.append({"task": trained.task, "version": trained.version, "rounds": trained.rounds, "nodes": nodes})

    await _while_telling(tell, receive, work)
    return result[0]


async def serve(node: "Node", arguments: Arguments, tell: Tell) -> object:
    """Deploy a model and tell how it comes to be loaded. It goes on if the owner leaves."""
    dry_run = arguments.pop("dry_run")
    offer = await node.deploying.offer(arguments.pop("source"), name=arguments.pop("name", ""), terms=arguments)
    await tell({"offer": node.described(offer.name, offer.record, offer.plan)})
    if not dry_run:
        node.deploying.accept(offer)
        while not node.is_served(offer.name):
            changed = node.mesh.changed
            await tell({"loading": node.deployment(offer.name)})
            await changed.wait()
    return {"name": offer.name, "version": offer.record.version, "url": node.web.url if node.web else ""}


async def generate(node: "Node", arguments: Arguments, tell: Tell) -> object:
    """Tell a text as it comes, and why it pauses."""
    name, prompt = arguments.pop("name"), arguments.pop("prompt")
    send, receive = trio.open_memory_channel[object](_PIECES_MAX)
    began = trio.current_time()
    result: list[object] = []

    def pause(reason: str) -> None:
        with suppress(trio.WouldBlock):  # the owner has more to read than such news
            send.send_nowait({"text": "", "pause": reason})

    async def work() -> None:
        async with send, aclosing(node.model(name).generate(prompt, on_pause=pause, **arguments)) as parts:
            async for part in parts:
                await send.send({"text": part.text, "pause": ""})
        said = {"finish": part.finish, "prompt_tokens": part.prompt_tokens, "tokens": part.tokens}
        result.append({"name": name, **said, "seconds": round(trio.current_time() - began, 3)})

    await _while_telling(tell, receive, work)
    return result[0]


STREAMED: Final = {"train": train, "serve": serve, "generate": generate}


async def _while_telling(
    tell: Tell, receive: trio.MemoryReceiveChannel[object], work: Callable[[], Awaitable[None]]
) -> None:
    """Do work and tell what comes of it. Raises the first that goes wrong."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            async for item in receive:
                await tell(item)
    except* (LeptonError, trio.BrokenResourceError, trio.ClosedResourceError, *MISTAKES) as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
