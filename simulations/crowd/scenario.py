"""What a crowd lives through, as data: how many, over which links, how often they speak, and who comes and goes.

TOML in, frozen structs out. A key that does not exist, or a value that cannot be, is an error that names it.
"""

from importlib import resources
from pathlib import Path
from typing import Annotated

import msgspec

from ...mesh.errors import UsageError
from ..files import converted, parsed, path_of
from ..sections import Number, Period, Seconds, Section, Share

Count = Annotated[int, msgspec.Meta(ge=51, le=4096)]


class Link(Section, frozen=True, kw_only=True):
    """How every link behaves."""

    latency_s: Seconds = 0.005  # one way
    jitter_s: Seconds = 0.01  # at most so much more
    loss: Share = 0.0  # of calls, either way; the connections are TCP, so these are calls that came too late
    dial_s: Seconds = 0.05  # three round trips and two elliptic curves
    detection_s: Seconds = 2.0  # until a process' death closes its connections, at most


class Churn(Section, frozen=True, kw_only=True):
    """Who comes and goes in the course of the run, each at a moment drawn by lot."""

    newcomers: Number = 0  # members that nobody has heard of before
    leavers: Number = 0  # end and do not come back
    crashes: Number = 0  # end and start again
    down_s: Seconds = 60.0  # for so long, give or take half
    # Of those that end: the power goes, and no connection is closed.
    silent: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5


class CrowdScenario(Section, frozen=True, kw_only=True):
    """One file."""

    about: str
    nodes: Count  # more than fifty: below that everybody is connected to everybody, which the other scenarios play
    duration_s: Period
    seed: Number = 1
    change_every_s: Period = 10.0  # of all members together: one of them states something anew
    durable: Share = 0.1  # of what they state: deployments and the like, which outlast their owners' absence
    settle_s: Period = 90.0  # at the end nobody says anything new, and nobody comes or goes
    check_interval_s: Period = 600.0  # how often the invariants are looked at that hold at all times
    link: Link = Link()
    churn: Churn = Churn()


def shipped() -> dict[str, Path]:
    """Return the crowds that come with Lepton, by name."""
    folder = Path(str(resources.files(__package__) / "scenarios"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load(file_or_name: str) -> CrowdScenario:
    """Read a file, or a shipped crowd by its name. Raises UsageError that says what is wrong and where."""
    path = path_of(file_or_name, shipped(), "crowd")
    found = converted(parsed(path), CrowdScenario, str(path))
    _check_sense(found, path)
    return found


def _check_sense(scenario: CrowdScenario, path: Path) -> None:
    """Check what no single value shows. Raises UsageError."""
    if scenario.settle_s >= scenario.duration_s:
        raise UsageError(f"{path}: settle_s is the last part of duration_s, so it is shorter.")
    churn = scenario.churn
    if churn.leavers + churn.crashes > scenario.nodes // 2:
        raise UsageError(f"{path}: at most half of the {scenario.nodes} nodes can leave or crash in one run.")
