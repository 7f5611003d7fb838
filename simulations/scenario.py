"""A scenario is data: who takes part, over which links, what goes wrong when, and how well it has to end.

TOML in, frozen structs out; a key that does not exist, or a value that cannot be, is an error that names it.
"""

import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ..gossip.codecs import CODECS
from ..mesh.errors import UsageError
from ..node.config import did_you_mean
from .faults import (
    KINDS,
    Crash,
    Fault,
    Faults,
    Freeze,
    Join,
    OneWay,
    Partition,
    Revoke,
    Skew,
    Slow,
    Weather,
    complaint,
    named,
)
from .files import converted, parsed, path_of
from .language import Language
from .sections import Count, Number, Period, Seconds, Section, Share

_NAME = re.compile(r"[a-z0-9]{1,8}")  # of a newcomer


class Link(Section, frozen=True, kw_only=True):
    """How every link behaves."""

    latency_s: Seconds = 0.002  # one way, of a wired LAN with a switch
    jitter_s: Seconds = 0.001  # at most so much more; messages overtake each other by it
    loss: Share = 0.0  # of messages, each on its own
    reordering: Share = 0.0  # of messages: they are held back
    reordering_s: Seconds = 0.1  # at most for so much
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


class Statements(Section, frozen=True, kw_only=True):
    """Durable records that every device publishes now and then, and takes back: what must outlive crashes."""

    interval_s: Seconds = 0.0  # 0: never


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
    statements: Statements = Statements()
    faults: Faults | None = None  # drawn from the seed, beside those that follow
    crash: tuple[Crash, ...] = ()
    freeze: tuple[Freeze, ...] = ()
    partition: tuple[Partition, ...] = ()
    one_way: tuple[OneWay, ...] = ()
    weather: tuple[Weather, ...] = ()
    slow: tuple[Slow, ...] = ()
    skew: tuple[Skew, ...] = ()
    revoke: tuple[Revoke, ...] = ()
    join: tuple[Join, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Those who are there from the beginning; the first makes the mesh."""
        return tuple(f"n{index}" for index in range(self.nodes))

    @property
    def all_faults(self) -> tuple[Fault, ...]:
        """All that is sure to go wrong, kind by kind."""
        return tuple(fault for kind in KINDS for fault in getattr(self, kind))

    def with_faults(self, faults: Iterable[Fault]) -> "Scenario":
        """Return this scenario with these faults and no others."""
        chosen = tuple(faults)
        tables = {key: tuple(fault for fault in chosen if isinstance(fault, kind)) for key, kind in KINDS.items()}
        return msgspec.structs.replace(self, faults=None, **tables)


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
    _check_names(scenario, where)
    if scenario.settle_s >= scenario.duration_s:
        raise UsageError(f"{where}: settle_s is the last part of duration_s, so it is shorter.")
    faults = scenario.faults
    if faults is not None and faults.first_s >= scenario.duration_s - scenario.settle_s:
        raise UsageError(f"{where}: faults.first_s is before settle_s begins, the last part of duration_s.")
    for fault in scenario.all_faults:
        if why := complaint(fault, scenario.names[0]):
            raise UsageError(f"{where}: {why}.")
    if scenario.task.codec not in CODECS:
        codec = scenario.task.codec
        raise UsageError(f"{where}: there is no codec {codec!r}.{did_you_mean(codec, list(CODECS))}")


def _check_names(scenario: Scenario, where: str) -> None:
    joining = [join.node for join in scenario.join]
    if clash := sorted({name for name in joining if name in scenario.names or joining.count(name) > 1}):
        raise UsageError(f"{where}: {clash[0]!r} joins, and is there already; call the newcomer otherwise.")
    if bad := [name for name in joining if not _NAME.fullmatch(name)]:
        raise UsageError(f"{where}: a newcomer is called by 1 to 8 small letters and digits, not {bad[0]!r}.")
    for fault in scenario.all_faults:
        for name in named(fault):
            if name not in (*scenario.names, *joining):
                raise UsageError(f"{where}: there is no node {name!r}; the nodes are n0 to n{scenario.nodes - 1}.")
