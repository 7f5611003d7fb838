"""Whole nodes in one process over loopback: members by a grant that the test signs, and parts of the digits."""

import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trio
from lepton.mesh.admission import Credentials
from lepton.mesh.grants import capabilities_of_role, issue
from lepton.mesh.identity import Identity
from lepton.node import Dataset, Node, digits
from lepton.node.home import Home
from lepton.node.learning.partition import partition_dirichlet
from lepton.node.models import Chain, build
from lepton.node.shapes import ModelSpec

DIGITS = digits()
MLP = ModelSpec(architecture="mlp", inputs=(64,), classes=10)
HALF = "18kB"  # the larger of the MLP's two layers, and not the whole of it
PATIENCE_S = 60.0  # for what takes a second here: a busy machine must not fail a test

Data = Mapping[str, Dataset | str | Path]


def parts(count: int) -> list[Dataset]:
    """Uneven parts of the digits; everybody is tested on the same samples."""
    shares = partition_dirichlet(DIGITS.y, count, 0.3, np.random.default_rng(0))
    return [
        Dataset(x=DIGITS.x[i], y=DIGITS.y[i], classes=10, x_test=DIGITS.x_test, y_test=DIGITS.y_test) for i in shares
    ]


def samples(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Test samples, again and again if need be: (count, 64)."""
    assert DIGITS.x_test is not None
    return np.resize(DIGITS.x_test, (count, 64))


def unsharded(chain: Chain, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        y: np.ndarray[Any, Any] = chain.probabilities(torch.from_numpy(x)).numpy()
    return y


async def until(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Wait for what will become true; fails the test when it does not."""
    with trio.fail_after(patience_s):
        while not condition():  # noqa: ASYNC110 - a condition may look at several nodes, each with its own event
            await trio.sleep(0.02)


@dataclass
class World:
    """A mesh whose root key the test holds, and its nodes that run now, by name."""

    folder: Path
    root: Identity = field(default_factory=Identity.generate)
    nodes: dict[str, Node] = field(default_factory=dict)
    services: Mapping[str, Any] = field(default_factory=lambda: {"host": False})  # as in node.toml

    def furnish(self, name: str, role: str = "admin") -> Path:
        """Make a member's folder, as joining would."""
        home = Home(self.folder / name)
        if not home.in_mesh:
            grant = issue(
                self.root,
                home.identity().peer_id,
                capabilities_of_role(role),
                expires=time.time() + 3600,
                serial=secrets.token_bytes(16),
            )
            home.save_credentials(Credentials(mesh_name="home", root=self.root.peer_id, chain=(grant,)))
        return home.path

    @asynccontextmanager
    async def node(
        self,
        name: str,
        *,
        role: str = "admin",
        data: Data | None = None,
        memory: str = HALF,
        models: Sequence[str] = (),
    ) -> AsyncIterator[Node]:
        home = self.furnish(name, role)
        settings: dict[str, Any] = {"name": name, "listen": ["127.0.0.1:0"], "interfaces": ["127.0.0.1"]}
        settings["services"] = self.services
        async with Node(home, data=data, models=models, serve={"memory": memory}, **settings) as node:
            self.nodes[name] = node
            try:
                yield node
            finally:
                del self.nodes[name]

    async def acquainted(self) -> None:
        """Wait until all know of each other what they offer."""
        await until(lambda: all(len(node.tasks.profiles()) == len(self.nodes) for node in self.nodes.values()))


@asynccontextmanager
async def running(
    folder: Path,
    *names: str,
    data: Mapping[str, Data] | None = None,
    roles: Mapping[str, str] | None = None,
    memory: str = HALF,
    models: Mapping[str, Sequence[str]] | None = None,
    services: Mapping[str, Any] | None = None,
) -> AsyncIterator[World]:
    """Run nodes that know each other."""
    world, stop = World(folder, services=services or {"host": False}), trio.Event()

    async def host(name: str, task_status: trio.TaskStatus[None]) -> None:
        role = (roles or {}).get(name, "admin")
        allowed = (models or {}).get(name, ())
        async with world.node(name, role=role, data=(data or {}).get(name), memory=memory, models=allowed):
            task_status.started()
            await stop.wait()

    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as starting:  # all at once: saying hello to the network takes its time
            for name in names:
                starting.start_soon(nursery.start, host, name)
        world.nodes = {name: world.nodes[name] for name in names}
        await world.acquainted()
        yield world
        stop.set()


def random_model(seed: int = 7) -> Chain:
    """A model that nobody has trained, for what does not depend on that."""
    return build(ModelSpec(architecture="mlp", inputs=(64,), classes=10, seed=seed))
