"""Nodes that host services in a fake pool: no processes, everything else as it is."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import trio
from lepton.node import Node
from lepton.node.blobs.naming import Naming
from lepton.node.config import ServicesConfig
from lepton.node.services.bundling.reflecting import describe
from lepton.node.services.hosting import Instances, Wanted
from lepton.node.services.messages import Load
from lepton.node.services.services import Services

CODE = """
from lepton.node.services import method, service


@service("eyes", version="{version}", memory="64MB", cores=0.5{needs})
class Eyes:
    @method(timeout_s=1)
    def see(self, what: str) -> str:
        return what
"""


def write(folder: Path, version: str, *, needs: str = "", **files: str) -> Path:
    """Make the folder of a version of a service; ``broken`` among the files: it does not start."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "service.toml").write_text('entry = "eyes:Eyes"\n')
    (folder / "eyes.py").write_text(CODE.format(version=version, needs=needs))
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


@dataclass
class Fake:
    """An instance."""

    wanted: Wanted
    state: Any = "starting"
    reason: str = ""
    restarts: int = 0
    calls: int = 0
    queue_ms: float = 0.0

    @property
    def load(self) -> Load:
        return Load(instance=self.wanted.id)


@dataclass
class Pool:
    """All of one node."""

    running: dict[str, Fake] = field(default_factory=dict)
    changed: trio.Event = field(default_factory=trio.Event)
    ended: list[str] = field(default_factory=list)  # the logs of those that are gone

    def start(self, wanted: Wanted) -> None:
        fails = (wanted.folder / "broken").exists()
        self.running[wanted.id] = Fake(wanted, "failed" if fails else "ready", "No module named 'x'" if fails else "")
        self.tell()

    def stop(self, instance: str, *, drain_s: float) -> None:
        del drain_s
        if (its := self.running.pop(instance, None)) is not None:
            self.ended.append(f"{its.wanted.id} {its.wanted.spec.version}: it ended")
        self.tell()

    def logs(self, service: str, *, lines: int) -> list[str]:
        of = [f"{its.wanted.id}: {service} line {line}" for its in self.running.values() for line in range(lines)]
        return self.ended + of

    def tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    @property
    def versions(self) -> list[str]:
        return [its.wanted.spec.version for its in self.running.values() if its.state == "ready"]


@asynccontextmanager
async def hosting(
    nodes: Mapping[str, Node], folder: Path, **configs: Mapping[str, Any]
) -> AsyncIterator[tuple[dict[str, Services], dict[str, Pool]]]:
    """Have nodes host services, each with a configuration of its own, in pools that the test sees."""
    found, pools = {}, {}
    async with trio.open_nursery() as nursery:
        for name, node in nodes.items():
            config = {"memory": "1GB", "cores": 4.0, **configs.get(name, {})}
            pools[name] = Pool()
            services = Services(
                node.mesh,
                msgspec.convert(config, ServicesConfig),
                folder / name / "services",
                node.blobs.store,
                Naming(node.view, node.blobs.store),
                describe,
                pool=_opened(pools[name]),
            )
            node.services = found[name] = services
            nursery.start_soon(services.run)
        yield found, pools
        nursery.cancel_scope.cancel()


def _opened(pool: Pool) -> Callable[[Path], Any]:
    @asynccontextmanager
    async def opened(_logs: Path) -> AsyncIterator[Instances]:
        yield pool  # type: ignore[misc]

    return opened
