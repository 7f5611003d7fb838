"""What placement is told and what it answers: whole numbers, so that a plan is the same on every processor."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Run = tuple[int, int]  # layers [first, end)
Objective = Literal["latency", "throughput"]
NS: Final = 1_000_000_000  # nanoseconds in a second

# What is worth a move: a plan that is better by 1 ms for each token may move 1 GB over a gigabit. A day's chat.
TOKENS_EXPECTED: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A model that is to be placed. A layer costs ``units``; devices say what so many units take them.

    ``units`` is empty where nobody has measured: then a hop is all that costs, and the fewest stages are the best.
    """

    weights_bytes: tuple[int, ...]  # of each layer, in memory
    tied_bytes: int = 0  # of these, what the first and the last layer share: a device that holds all has it once
    cache_bytes: tuple[int, ...] = ()  # of each layer, for all positions of all sessions that are promised
    units: tuple[int, ...] = ()  # what each layer takes in a step, under 2^31 in all: the LM head counts as some layers
    width_bytes: int = 0  # of what travels between stages, for one position
    batch: int = 1  # positions in one step: what the devices' tables were measured with
    copies: int = 1  # of each stage
    spare: bool = False  # devices that are left hold one more copy of something
    objective: Objective = "latency"

    @property
    def layers(self) -> int:
        return len(self.weights_bytes)

    def resident_bytes(self, layer: int) -> int:
        """Return what one layer takes in memory, with its caches."""
        return self.weights_bytes[layer] + (self.cache_bytes[layer] if self.cache_bytes else 0)

    def run_bytes(self, run: Run) -> int:
        """Return what a run of layers takes in the memory of one device, with its caches."""
        return sum(map(self.resident_bytes, range(*run))) - self.tied_bytes * (run == (0, self.layers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What one device offers: memory for serving, its measured speed, and what of this model it holds now.

    ``table`` has points (units, ns), both rising, of what one step takes; between two it is linear, beyond the last as
    between the last two. So layers that are resident and layers that are streamed stay apart. Empty: no time at all.
    """

    peer: str
    memory_bytes: int
    table: tuple[tuple[int, int], ...] = ()
    layer_ns: int = 0  # for each layer besides
    holds: Run | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What lies between two devices."""

    latency_ns: int = 500_000  # one way; half of a round trip over one wired switch and through a busy Python
    bandwidth_bytes_s: int = 100_000_000  # what a gigabit carries, nearly


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """The links: all like ``usual``, but for those pairs (asker first) that were seen to differ."""

    usual: Link = field(default_factory=Link)
    others: Mapping[tuple[str, str], Link] = field(default_factory=dict)
    # Of a hop, in the two processes: measured 0.45 to 0.8 ms over an encrypted raw connection.
    software_ns: int = 700_000

    def between(self, a: str, b: str) -> Link:
        return self.others.get((a, b), self.usual)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Stages in order, and who serves which. ``missing_bytes`` > 0: no plan, that much memory is lacking at least.

    ``route`` are the peers of the fastest pipeline, one for each stage. ``token_s`` is what a token takes along it,
    ``tokens_per_s`` what it brings: of one session, or when many fill it, as the objective was.
    """

    stages: tuple[Run, ...] = ()
    assigned: Mapping[str, Run] = field(default_factory=dict)
    missing_bytes: int = 0
    fits_at: str = ""  # the precision at which a model that does not fit would
    route: tuple[str, ...] = ()
    token_s: float = 0.0
    tokens_per_s: float = 0.0
    moved_bytes: int = 0  # of weights that somebody has to load first

    def replicas(self, stage: Run) -> tuple[str, ...]:
        return tuple(sorted(peer for peer, run in self.assigned.items() if run == stage))
