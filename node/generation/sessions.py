"""What a node has of generation: its links, its stages, its askers, and the one clock that wakes them."""

import math

import trio

from ...mesh.identity import PeerId
from ...mesh.mesh import Mesh
from ..seeing.measures import Measures
from .asker import AskerConfig
from .generator import Generator
from .host import GenerationHost, Load
from .links import Links
from .messages import Said
from .outlook import Pictured


class Sessions:
    """One node's part in sessions of language models, as asker and as stage."""

    def __init__(
        self,
        mesh: Mesh,
        view: Pictured,
        load: Load,
        config: AskerConfig | None = None,
        *,
        memory_bytes: int | None = None,
        measures: Measures | None = None,
    ) -> None:
        """``memory_bytes`` may be held for serving; None: as much as plans say."""
        self._mesh = mesh
        self._wake_at = math.inf
        self._sooner = trio.Event()
        self.links = Links(mesh, self._received, self._lost, self._uses, self._together)
        send, together = self.links.send, self.links.send_together
        self.host = GenerationHost(mesh, view, load, send, together, self._soon, memory_bytes=memory_bytes)
        self.generator = Generator(mesh, view, self.links.send, self._soon, config, measures)
        mesh.on_absent.append(self._left)
        mesh.on_expelled.append(self._expelled)

    async def run(self) -> None:
        """Serve and ask, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.links.run)
            nursery.start_soon(self.host.run)
            nursery.start_soon(self._look)
            nursery.start_soon(self._tick)

    async def _look(self) -> None:
        while True:
            changed = self._mesh.changed
            self.generator.look()
            await changed.wait()

    async def _tick(self) -> None:
        """Most deadlines move on before they come: the clock is set when it rings, or for a sooner one."""
        while True:
            self._wake_at = min(self.host.deadline, self.generator.deadline)
            self._sooner = trio.Event()
            with trio.move_on_at(self._wake_at):
                await self._sooner.wait()
            now = trio.current_time()
            self.host.tick(now)
            self.generator.tick(now)

    def _soon(self, deadline: float) -> None:
        if deadline < self._wake_at:
            self._sooner.set()

    def _received(self, peer: PeerId, said: Said) -> None:
        self.generator.receive(peer, said)
        self.host.receive(peer, said)

    def _together(self, begins: bool) -> None:  # noqa: FBT001  one of two moments
        if begins:
            self.host.more_comes = True
        else:
            self.host.settle()

    def _lost(self, peer: PeerId, reason: str) -> None:
        self.generator.lost(peer, reason, left=False)
        self.host.lost(peer, reason, left=False)

    def _left(self, peer: PeerId) -> None:
        self.generator.lost(peer, "left the mesh", left=True)
        self.host.lost(peer, "left the mesh", left=True)

    def _expelled(self, peer: PeerId) -> None:
        """End what there is with a peer that was thrown out: it hears of that first, and is hung up on later."""
        self.links.drop(peer)
        self.generator.lost(peer, "was thrown out", left=True)
        self.host.lost(peer, "was thrown out", left=True)

    def _uses(self, peer: PeerId) -> bool:
        return self.generator.uses(peer) or self.host.uses(peer)
