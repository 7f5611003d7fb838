"""What the owner asks of a node that takes a while or tells how far it is: training, serving, text, a diagnosis."""

from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from ..mesh.errors import LeptonError
from .learning.task import task_from
from .seeing.seen import seen

if TYPE_CHECKING:  # the command line asks without loading what a node needs: seconds
    from .learning.telling import RoundSaid
    from .node import Node

# What a command of another release, or our own mistake, raises: it costs the command, never the node.
MISTAKES: Final = (KeyError, IndexError, TypeError, ValueError)
_ROUNDS_UNSEEN_MAX: Final = 10_000  # a terminal that stands still is shown the newest of these, 3 MB
_TELL_S: Final = 5.0
_PIECES_MAX: Final = 16  # of a text that wait for the owner's terminal

Arguments = dict[str, Any]
Tell = Callable[[object], Awaitable[None]]


async def train(node: "Node", arguments: Arguments, tell: Tell) -> object:
    """Run a task, telling every round and where everybody stands. It goes on if the owner leaves."""
    told, result = _Told(), list[object]()

    async def work() -> None:
        try:
            task = task_from(arguments["task"], "The task")
            trained = await node.train(task, on_progress=told.nodes, on_round=told.round)
        finally:
            told.end()
        nodes = {peer: msgspec.to_builtins(trainer) for peer, trainer in trained.nodes.items()}
        result.append({"task": trained.task, "version": trained.version, "rounds": trained.rounds, "nodes": nodes})

    await _while_telling(tell, told, work)
    return result[0]


async def serve(node: "Node", arguments: Arguments, tell: Tell) -> object:
    """Deploy a model and tell how it comes to be loaded. It goes on if the owner leaves."""
    dry_run = arguments.pop("dry_run")
    source = arguments.pop("source")
    node.seeing.audit.note("command", name="serve --dry-run" if dry_run else "serve", detail=str(source))
    await tell({"reading": source})
    offer = await node.deploying.offer(source, name=arguments.pop("name", ""), terms=arguments)
    await tell({"offer": node.described(offer.name, offer.record, offer.plan)})
    if not dry_run:
        node.deploying.accept(offer)
        while not node.is_served(offer.name):
            changed = node.mesh.changed
            await tell({"loading": node.deployment(offer.name)})
            with trio.move_on_after(_TELL_S):  # an owner who left is noticed when told something
                await changed.wait()
    url = node.web.url if node.web else ""
    return {"name": offer.name, "version": offer.record.version, "kind": offer.record.kind, "url": url}


async def generate(node: "Node", arguments: Arguments, tell: Tell) -> object:
    """Tell a text as it comes, and why it pauses."""
    name, prompt = arguments.pop("name"), arguments.pop("prompt")
    send, receive = trio.open_memory_channel[object](_PIECES_MAX)
    began = trio.current_time()
    result: list[object] = []

    def pause(reason: str) -> None:
        with suppress(trio.WouldBlock):  # the owner has more to read than such news
            send.send_nowait({"text": "", "pause": node.named(reason)})

    async def work() -> None:
        async with send, aclosing(node.model(name).generate(prompt, on_pause=pause, **arguments)) as parts:
            async for part in parts:
                await send.send({"text": part.text, "pause": ""})
        said = {"finish": part.finish, "prompt_tokens": part.prompt_tokens, "tokens": part.tokens}
        result.append({"name": name, **said, "seconds": round(trio.current_time() - began, 3)})

    await _while_telling(tell, receive, work)
    return result[0]


class _Told:
    """What an owner who watches has not been shown yet: every round, and of where all stand only the newest."""

    def __init__(self) -> None:
        self._rounds: deque[object] = deque(maxlen=_ROUNDS_UNSEEN_MAX)
        self._nodes: object = None
        self._over = False
        self._news = trio.Event()

    def round(self, said: "RoundSaid") -> None:
        self._rounds.append(msgspec.to_builtins(said))
        self._news.set()

    def nodes(self, nodes: Mapping[Any, Any]) -> None:
        self._nodes = {peer: msgspec.to_builtins(trainer) for peer, trainer in nodes.items()}
        self._news.set()

    def end(self) -> None:
        self._over = True
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[object]:
        while not self._over or self._rounds:
            await self._news.wait()
            self._news = trio.Event()
            while self._rounds:
                yield {"round": self._rounds.popleft()}
            if (nodes := self._nodes) is not None:
                self._nodes = None
                yield {"nodes": nodes}


async def doctor(node: "Node", arguments: Arguments, _tell: Tell) -> object:
    """Ask and try peers, for as long as that takes."""
    from .diagnosis.asking import examine, introduced

    return introduced(node) if arguments.pop("brief", False) else await examine(node, **arguments)


async def top(node: "Node", _arguments: Arguments, _tell: Tell) -> object:
    """Return the mesh as it is seen now."""
    return seen(node)


async def service(node: "Node", arguments: Arguments, tell: Tell) -> object:
    """Deploy, scale, remove or list services, or tell their logs."""
    from .services.controlling import perform

    return await perform(node, arguments, tell)


async def call(node: "Node", arguments: Arguments, tell: Tell) -> object:
    """Call a method of a service, telling what it streams."""
    from .services.asking import perform

    return await perform(node, tell, **arguments)


STREAMED: Final = {
    "train": train,
    "serve": serve,
    "generate": generate,
    "doctor": doctor,
    "top": top,
    "service": service,
    "call": call,
}


async def _while_telling(tell: Tell, items: AsyncIterable[object], work: Callable[[], Awaitable[None]]) -> None:
    """Do work and tell what comes of it. Raises the first that goes wrong."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            async for item in items:
                await tell(item)
    except* (LeptonError, trio.BrokenResourceError, trio.ClosedResourceError, *MISTAKES) as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
