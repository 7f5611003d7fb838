"""What the picture takes: bytes, time until all know of a change, and processor time, at 8 and 1,000 simulated nodes.

Run ``python -m tests.bench.picture`` from the root of the project (JSON=FILE writes the figures as flat JSON; LARGE=300
makes the large mesh smaller; CALM_S and BUSY_S change how long is measured). The machines and messages are the deployed
ones, the links virtual: 5 to 15 ms each way, nothing lost. Each node has a profile of 200 B that never changes and a
status of 200 B that changes every 30 s on average: 33 changes a second in the large mesh. Eight nodes are all
connected; a thousand have the links of five rings, as `mesh/neighbours.py` keeps them. Bytes are those that a node
sends, messages whole, with 48 B for what carries each; signatures are checked once for all nodes and not by each.

``heal_s`` is the time from a partition's end, 500 and 500 nodes for ten minutes, until all hold the same records; the
links between the halves come back one by one within 15 s. Of the ten minutes only the last is simulated: a status that
has changed twenty times counts as its last.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from ..mesh.fakes import Note
from ..mesh.talkers import Node, Talkers

LARGE = int(os.environ.get("LARGE", "1000"))
CALM_S = float(os.environ.get("CALM_S", "10"))
BUSY_S = float(os.environ.get("BUSY_S", "10"))
CHANGE_EVERY_S = 30.0
WARM_S = 10.0  # of changes before anything is measured: by then as much is under way as ever
APART_S = 60.0
REDIAL_S = 15.0  # within which the links come back, as dials with pauses that have grown (redial_most_s) bring them
RINGS = 5
VALUE = "x" * 190  # with its name and a number, 200 B

Figures = dict[str, float]


class Bench:
    """One mesh in which all know all at the start."""

    def __init__(self, size: int) -> None:
        self.world = world = Talkers(size, 1)
        self.nodes = list(world.nodes.values())
        self.changing = False
        for node in self.nodes:
            world.publish(node, "profile", "self", Note(text=VALUE))
            world.publish(node, "status", "self", Note(text=VALUE))
        everything = [record.signed for node in self.nodes for record in node.store.all()]
        for node in self.nodes:
            node.store.merge(everything, known=lambda _: True)
        names = [node.id for node in self.nodes]
        whole = [(one, other) for n, one in enumerate(names) for other in names[:n]]
        self.links = whole if size <= 50 else world.rings(RINGS)
        for one, other in self.links:
            world.join(one, other)
        world.run(3.0)

    def change_all(self) -> None:
        """Let every node change its status now and then, from now on."""
        self.changing = True
        for node in self.nodes:
            self.world.after(CHANGE_EVERY_S * self.world.dice.random(), lambda node=node: self._change(node))  # type: ignore[misc]

    def _change(self, node: Node) -> None:
        if self.changing:
            text = f"{self.world.dice.random():.8f}{VALUE}"[: len(VALUE)]
            self.world.publish(node, "status", "self", Note(text=text))
            self.world.after(CHANGE_EVERY_S * self.world.dice.uniform(0.8, 1.2), lambda: self._change(node))

    def measure(self, seconds: float) -> tuple[float, float]:
        """Return the bytes that a node sends a second, and the processor seconds of one node's hour."""
        before, begun = self._sent(), time.process_time()
        self.world.run(seconds)
        used_s = time.process_time() - begun
        count = len(self.nodes)
        return (self._sent() - before) / count / seconds, used_s / count / seconds * 3600

    def reach_periods(self, name: str) -> float:
        """Return after how many periods of exchange one change is known to all."""
        said = self.world.publish(self.nodes[0], "mark", name, Note())

        def everywhere() -> bool:
            return all(node.store.with_id(said.id) is not None for node in self.nodes)

        return self.world.until(everywhere, within_s=120.0, look_s=0.1) / self.world.config.interval_s

    def _sent(self) -> int:
        return sum(node.sent_bytes for node in self.nodes)


def bytes_sent(size: int) -> Figures:
    """Bytes while all change and while nobody does, and the time that a change takes."""
    bench = Bench(size)
    calm_bytes, calm_s = bench.measure(CALM_S)
    bench.change_all()
    bench.world.run(WARM_S)
    busy_bytes, busy_s = bench.measure(BUSY_S)
    return {
        f"record_bytes_per_node_s_{size}": busy_bytes,
        f"record_bytes_per_node_s_{size}_calm": calm_bytes,
        f"record_cpu_s_per_node_hour_{size}": busy_s,
        f"record_cpu_s_per_node_hour_{size}_calm": calm_s,
        f"record_reach_periods_{size}": bench.reach_periods("m"),
    }


def heal(size: int) -> Figures:
    """The time until two halves agree once they are joined again."""
    bench = Bench(size)
    half = {node.id for node in bench.nodes[: size // 2]}
    across = [link for link in bench.links if len(half & set(link)) == 1]
    for one, other in across:
        bench.world.cut(one, other)
    bench.change_all()
    bench.world.run(APART_S)
    bench.changing = False  # else there is no moment at which all are equal
    bench.world.run(2.0)
    for link in across:
        bench.world.after(REDIAL_S * bench.world.dice.random(), lambda link=link: bench.world.join(*link))  # type: ignore[misc]
    return {f"heal_s_sim{size}": bench.world.until(bench.world.agree, within_s=300.0)}


PARTS: dict[str, Callable[[], Figures]] = {
    "small": lambda: bytes_sent(8),
    "large": lambda: bytes_sent(LARGE),
    "heal": lambda: heal(LARGE),
}


def measure_picture() -> Figures:
    """Return all figures of the picture, by name: for ``make bench-mesh``."""
    figures: Figures = {}
    for part in PARTS.values():
        figures |= part()
    return figures


def main() -> None:
    figures = {key: round(value, 3) for key, value in measure_picture().items()}
    print(json.dumps(figures, indent=1))  # noqa: T201
    if path := os.environ.get("JSON"):
        Path(path).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
