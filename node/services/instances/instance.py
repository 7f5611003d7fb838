"""The process of one instance: ``python -P -m lepton.node.services.instances.instance``, given file descriptors.

Its node talks to it over two sockets, one for each side that asks. The third descriptor is a pipe that ends when the
node does, however it ends: then the instance and all that it started are killed.
"""

import contextlib
import os
import resource
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Final

import trio

from .answerer import Answerer
from .asker import Asker
from .hosted import Hosted
from .inside import MeshInside
from .local import ASKED_MAX, CALLS_MAX

_NICE: Final = 5  # a node that answers its peers goes first
_OOM_SCORE: Final = "500"  # when the system runs out of memory the kernel takes an instance and not its node
_PR_SET_PDEATHSIG: Final = 1
_ADDRESS_SPARE_BYTES: Final = 2 * 1024**3  # what an interpreter with torch reserves and never touches


def main() -> None:
    """Host one service until the node ends it."""
    work, mesh, life, memory_bytes = map(int, sys.argv[1:5])
    _die_with_the_node(life)
    _bound(memory_bytes)
    sys.path.insert(0, str(Path.cwd()))  # only now: nothing in the bundle stands in for a module that the above needs
    trio.run(_serve, socket.socket(fileno=work), socket.socket(fileno=mesh))


async def _serve(work: socket.socket, mesh: socket.socket) -> None:
    asker = Asker(mesh, "the node", in_flight_max=ASKED_MAX)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asker.run)
        hosted = Hosted(lambda devices: MeshInside(asker, devices), nursery)
        await Answerer(work, hosted.handlers, in_flight_max=CALLS_MAX).run()
        nursery.cancel_scope.cancel()


def _die_with_the_node(life: int) -> None:
    """See to it that nothing of this outlives the node, even if the node is killed and this code never ends."""
    if sys.platform == "linux":  # also where a loop in C holds the interpreter
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        with contextlib.suppress(OSError):
            os.read(life, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="lepton-life", daemon=True).start()


def _bound(memory_bytes: int) -> None:
    """Bound what this process may take: a single huge allocation fails here, slow growth is watched by the node."""
    os.nice(_NICE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        most = max(2 * memory_bytes, memory_bytes + _ADDRESS_SPARE_BYTES)
        with contextlib.suppress(ValueError, OSError):  # a lower limit holds already
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, "ascii")


if __name__ == "__main__":
    main()
