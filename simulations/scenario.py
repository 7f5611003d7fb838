"""A scenario is data: who takes part, over which links, what goes wrong when, and how well it has to end.

TOML in, frozen structs out; a key that does not exist, or a value that cannot be, is an error that names it.
"""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from ..gossip.codecs import CODECS
from ..mesh.errors import UsageError
from ..node.config import did_you_mean
from .files import converted, parsed, path_of
from .language import Language
from .sections import Count, Number, Period, Seconds, Section, Share


class Link(Section, frozen=True, kw_only=True):
    """How every link behaves."""

    latency_s: Seconds = 0.002  # one way, of a wired LAN with a switch
    jitter_s: Seconds = 0.001  # at most so much more; messages overtake each other by it
    loss: Share = 0.0  # of messages, each on its own
    duplication: Share = 0.0  # of messages that arrive
    bandwidth_bytes_per_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0  # 0: without limit
    detection_s: Seconds = 0.5  # until a peer's crash closes its connections


class Model(Section, frozen=True, kw_only=True):
    """The toy model that is sharded and asked."""

    layers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 6
    layer_bytes: Count = 1000
    copies: Annotated[int, msgspec.Meta(ge=1, le=16)] = 2
    memory_bytes: Number = 3000  # of each device, for serving
    compute_s: Seconds = 0.02  # of one stage for one request
    load_s: Seconds = 0.5  # of one stage


class Task(Section, frozen=True, kw_only=True):
    """Learning: every device pulls towards an optimum of its own; the mesh should find their weighted mean."""

    dimension: Count = 64
    rounds: Number = 30  # 0: nothing is learned
    pull: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.2  # of the way to its own optimum that a device goes a round
    step_s: Period = 0.5  # local training of one round, give or take a fifth
    codec: str = "int8"
    group_size: Annotated[int, msgspec.Meta(ge=2, le=64)] = 8
    start_wait_s: Seconds = 5.0
    wait_s_initial: Period = 20.0  # for others' messages, before there is experience; this and the next as deployed
    wait_s_max: Period = 60.0
    error_max: Annotated[float, msgspec.Meta(gt=0)] = 0.05  # distance to the optimum at the end, see `Figures`


class Requests(Section, frozen=True, kw_only=True):
    """Who asks how often. Each request goes out from a live device drawn by lot."""

    count: Number = 50
    first_s: Seconds = 8.0
    interval_s: Seconds = 0.5
    failed_max: Number = 0


class Crash(Section, frozen=True, kw_only=True):
    """A process dies, without a word. With `during`, the first device that is in the middle of that, from `at_s` on."""

    at_s: Seconds
    node: str = ""  # its name; empty: whoever fits
    during: Literal["", "request", "round", "answer"] = ""  # computing for another's request or session; in a round
    restart_after_s: Seconds = 0.0  # with its disk; 0: never


class Freeze(Section, frozen=True, kw_only=True):
    """A process is stopped, and goes on later: it hears and does nothing, and its connections stay open."""

    at_s: Seconds
    node: str
    thaw_after_s: Period


class Partition(Section, frozen=True, kw_only=True):
    """Links between groups of nodes are cut, then healed. Who is in no group is with the first.

    `bridges` keep their links to all: with one of them, two groups of one node each are a line of three.
    """

    at_s: Seconds
    heal_s: Seconds
    groups: tuple[tuple[str, ...], ...]
    bridges: tuple[str, ...] = ()


class Scenario(Section, frozen=True, kw_only=True):
    """One file."""

    about: str
    nodes: Annotated[int, msgspec.Meta(ge=1, le=64)]
    duration_s: Period
    seed: Number = 1
    liars: Annotated[int, msgspec.Meta(ge=0, le=8)] = 0  # clients of the mesh that forge records and break rules
    outsiders: Annotated[int, msgspec.Meta(ge=0, le=8)] = 0  # devices of another mesh that try to get in
    check_interval_s: Period = 5.0  # how often the invariants are looked at
    settle_s: Seconds = 20.0  # at the end nothing is lost any more: what must come right in the end needs one
    link: Link = Link()
    model: Model = Model()
    task: Task = Task()
    requests: Requests = Requests()
    language: Language = Language()
    crash: tuple[Crash, ...] = ()
    freeze: tuple[Freeze, ...] = ()
    partition: tuple[Partition, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"n{index}" for index in range(self.nodes))


def shipped() -> dict[str, Path]:
    """Return the scenarios that come with Lepton, by name."""
    folder = Path(str(resources.files(__package__) / "scenarios"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load(file_or_name: str) -> Scenario:
    """Read a file, or a shipped scenario by its name. Raises UsageError that says what is wrong and where."""
    path = path_of(file_or_name, shipped())
    return read(parsed(path), str(path))


def read(found: Mapping[str, Any], where: str) -> Scenario:
    """Check what a file says. Raises UsageError."""
    scenario = converted(found, Scenario, where)
    _check_sense(scenario, where)
    return scenario


def _check_sense(scenario: Scenario, where: str) -> None:
    """Check what no single value shows. Raises UsageError."""
    groups = [group for partition in scenario.partition for group in partition.groups]
    named = [name for group in groups for name in group] + [crash.node for crash in scenario.crash if crash.node]
    named += [freeze.node for freeze in scenario.freeze]
    named += [name for partition in scenario.partition for name in partition.bridges]
    for name in named:
        if name not in scenario.names:
            raise UsageError(f"{where}: there is no node {name!r}; the nodes are n0 to n{scenario.nodes - 1}.")
    if scenario.settle_s >= scenario.duration_s:
        raise UsageError(f"{where}: settle_s is the last part of duration_s, so it is shorter.")
    for partition in scenario.partition:
        members = [name for group in partition.groups for name in group]
        if partition.heal_s <= partition.at_s or len(members) != len(set(members)):
            raise UsageError(f"{where}: a partition heals after it begins, and no node is in two of its groups.")
    for crash in scenario.crash:
        if not crash.node and not crash.during:
            raise UsageError(f"{where}: a crash names its node, or says during what it strikes.")
    if scenario.task.codec not in CODECS:
        codec = scenario.task.codec
        raise UsageError(f"{where}: there is no codec {codec!r}.{did_you_mean(codec, list(CODECS))}")
