"""How members come together: 8 real nodes in this process, and 1,000 membership machines on virtual time.

Run ``python -m tests.bench.crowd``. The virtual figures depend on the seed alone, the real ones on the machine.
"""

import dataclasses
import logging
import statistics
from contextlib import AsyncExitStack
from unittest.mock import patch

import trio
from lepton.mesh import mesh as mesh_module
from lepton.mesh.pace import Config
from lepton.mesh.transport import Transport

from ..mesh.crowd import Crowd
from ..mesh.fakes import identity
from ..mesh.nodes import member, no_discovery

_REAL, _VIRTUAL, _CRASHED = 8, 1000, 300
_PACE = Config()


def _row(what: str, value: str) -> None:
    print(f"{what:<62}{value:>14}", flush=True)  # noqa: T201 - a bench prints


async def _real() -> None:
    """Eight nodes on 127.0.0.1 that know one address of one of them."""
    dials = [0]
    attempt = Transport._attempt

    async def counted(self: Transport, *args: object) -> object:
        dials[0] += 1
        return await attempt(self, *args)  # type: ignore[arg-type]

    async with AsyncExitStack() as running:
        running.enter_context(patch.object(mesh_module, "open_discovery", no_discovery))
        running.enter_context(patch.object(Transport, "_attempt", counted))  # every dial comes through it
        first = await running.enter_async_context(member(identity("bench 0")))
        start = trio.current_time()
        meshes = [first]
        for n in range(1, _REAL):
            node = member(identity(f"bench {n}"), bootstrap=first.addresses)
            meshes.append(await running.enter_async_context(node))
        while any(len(mesh.connected) < _REAL - 1 for mesh in meshes):
            changed = meshes[-1].changed
            with trio.move_on_after(0.01):
                await changed.wait()
        _row(f"{_REAL} nodes, from the first dial to all connected", f"{trio.current_time() - start:.2f} s")
        _row("  dials (28 connections are needed)", f"{dials[0]}")


def _virtual() -> None:
    crowd = Crowd(_VIRTUAL, 1, dataclasses.replace(_PACE))
    crowd.start_all(10.0)
    settled_s = crowd.run(60.0, until=crowd.settled)
    _row(f"{_VIRTUAL} machines that start within 10 s, until all see all", f"{settled_s:.1f} s")
    _row("  dials a node", f"{crowd.dials / _VIRTUAL:.1f}")
    _row("  connections of a node, at most ever", f"{crowd.most}")
    crowd.run(3 * _PACE.linger_s)
    degrees = sorted(crowd.degrees().values())
    spread = f"{degrees[0]} / {statistics.median(degrees):g} / {degrees[-1]}"
    _row("  connections of a node a while later, least / median / most", spread)
    before = crowd.dials
    for name in crowd.dice.sample(crowd.names, _CRASHED):
        crowd.crash(name)
    _row(f"{_CRASHED} crash at once: pieces left", f"{crowd.pieces()}")
    healed_s = crowd.run(60.0, until=crowd.settled)
    _row("  until the others see each other and nobody else", f"{healed_s:.1f} s")
    _row("  dials a survivor meanwhile", f"{(crowd.dials - before) / (_VIRTUAL - _CRASHED):.1f}")


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    trio.run(_real)
    _virtual()
