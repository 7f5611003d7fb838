"""What a mesh of real processes takes: to come together, find a newcomer, notice that one is gone, throw one out.

Run ``make bench-mesh`` or ``python -m tests.bench.mesh [PART...]`` from the root of the project (JSON=FILE writes the
figures as flat JSON, TRIALS changes the effort). Parts: ``join``, ``detect``, ``revoke``, with 8 processes each, then
``detection`` and ``picture``, simulated; their files tell their settings. Times of the real ones are wall seconds, as a
user has them: on few cores they are those of starting 8 Pythons at once. A 99th percentile of so few trials is their
longest but for interpolation. Where there are no network namespaces ``detect`` knows no loss.
"""

import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import trio
from lepton.node.control import Control

from ..net.lan import Lan, NoNetwork
from .members import Fleet, Member, enrol

COUNT = 8
TRIALS = int(os.environ.get("TRIALS", "3"))  # per loss; each is heard of by 7 others
LOSSES = (0.0, 0.01, 0.05, 0.1)
SETTLE_S = 3.0  # after the start, when of two connections made at once one is closed
CALM_S = 10.0  # per loss, nobody frozen: whoever is lost then was lost by mistake
DELAY_S = 0.001  # of a LAN
STARTS = 3


Figures = dict[str, float]


def p99(values: Sequence[float]) -> float:
    """The 99th percentile, linear between neighbours; infinite when something never came."""
    ordered = sorted(values)
    if not ordered or math.isinf(ordered[-1]):
        return math.inf
    place = 0.99 * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


# -- coming together --------------------------------------------------------------------------------------------------


def join(homes: Sequence[Path]) -> Figures:
    """Start all at once, a few times; then one alone while the others are there."""
    from_start, from_up, found, first_found, memory = [], [], [], [], []
    for _ in range(STARTS):
        with Fleet([Member(home) for home in homes]) as fleet:
            for member in fleet.members:
                fleet.start(member)
            _require(fleet, fleet.until(fleet.together))
            last = max(at for member in fleet.members for at, _, _ in member.diary)
            from_start.append(last - min(member.started_at for member in fleet.members))
            from_up.append(max(0.0, last - max(member.up_at for member in fleet.members)))
            newcomer = fleet.members[-1]
            fleet.restart(newcomer)
            others = fleet.members[:-1]
            _require(fleet, fleet.until(lambda: newcomer.up_at and fleet.together()))  # noqa: B023  used at once
            came = [other.came_at(newcomer.id) - newcomer.begun_at for other in others]
            found.append(max(came))
            first_found.append(min(came))
            memory += [member.memory_bytes() for member in fleet.members]
    print(f"{COUNT} nodes on loopback, median of {STARTS} (from, to):")  # noqa: T201
    _row("all started to all connected (processes' start included)", "s", from_start)
    _row("last one up to all connected", "s", from_up)
    _row("a newcomer, its libraries loaded, to the first connection", "s", first_found)
    _row("the same to all connections", "s", found)
    _row("memory of a node that does nothing", "MB", [size / 1e6 for size in memory])
    return {
        "join_s": statistics.median(from_start),
        "join_from_up_s": statistics.median(from_up),
        "discover_s": statistics.median(first_found),
        "discover_all_s": statistics.median(found),
        "idle_node_mb": statistics.median(memory) / 1e6,
    }


def _row(what: str, unit: str, values: Sequence[float]) -> None:
    middle, low, high = statistics.median(values), min(values), max(values)
    print(f"  {what:60} {middle:8.2f} {unit}   ({low:.2f}, {high:.2f})")  # noqa: T201


def _require(fleet: Fleet, so: bool) -> None:
    if not so:
        seen = "; ".join(f"{member.home.name}: up {bool(member.up_at)}, {len(member.seen)}" for member in fleet.members)
        message = f"the nodes did not come together: {seen}"
        raise RuntimeError(message)


# -- noticing that one is gone ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Noticed:
    """What came of freezing one after another at one rate of loss."""

    times: list[float] = field(default_factory=list)  # until each of the others had dropped it
    back: list[float] = field(default_factory=list)  # from its waking to all connected
    mistakes: int = 0  # others dropped by others
    watched_s: float = 0.0  # node seconds in which mistakes were looked for


def detect(homes: Sequence[Path]) -> Figures:
    """Freeze one after another at every rate of loss, then kill one."""
    with ExitStack() as stack:
        members, weather = _spread(homes, stack)
        fleet = stack.enter_context(Fleet(members))
        for member in members:
            fleet.start(member)
        _require(fleet, fleet.until(fleet.together))
        fleet.read_for(SETTLE_S)
        found = {}
        for loss in LOSSES if weather else LOSSES[:1]:
            if weather:
                weather(loss)
            found[loss] = _freeze_in_turn(fleet)
        if weather:
            weather(0.0)
        _require(fleet, fleet.until(fleet.together))
        victim, others = members[0], members[1:]
        at = fleet.signal(victim, signal.SIGKILL)
        killed = _noticed(fleet, victim, others, at)
    print(f"\n{COUNT} nodes, one frozen (SIGSTOP), {TRIALS} times at each loss, as seen by the {COUNT - 1} others:")  # noqa: T201
    print(f"  {'loss':>6}{'median s':>12}{'p99 s':>10}{'back s':>10}{'dropped by mistake':>22}")  # noqa: T201
    for loss, one in found.items():
        middle, back = statistics.median(one.times), statistics.median(one.back)
        mistakes = f"{one.mistakes} in {one.watched_s / 60:.0f} node minutes"
        print(f"  {loss:6.0%}{middle:12.2f}{p99(one.times):10.2f}{back:10.2f}{mistakes:>22}")  # noqa: T201
    print(f"  killed (SIGKILL), no loss: {max(killed):.3f} s until the last one knew")  # noqa: T201
    figures = {"detect_p99_s_8": p99(found[0.0].times), "false_positives_8": float(found[0.0].mistakes)}
    for loss, one in list(found.items())[1:]:
        figures[f"detect_p99_s_8_loss{loss:.0%}".rstrip("%")] = p99(one.times)
        figures[f"false_positives_8_loss{loss:.0%}".rstrip("%")] = float(one.mistakes)
    return figures | {"detect_killed_s_8": max(killed)}


def _spread(homes: Sequence[Path], stack: ExitStack) -> tuple[list[Member], Callable[[float], None] | None]:
    """Give each a device of its own, and a way to lose frames between them; on loopback where that cannot be."""
    lan = stack.enter_context(Lan(seed=1))
    try:
        devices = [lan.add(f"d{number}") for number in range(len(homes))]
    except NoNetwork as error:
        print(f"\nno loss on this machine, loopback only: {error}")  # noqa: T201
        return [Member(home) for home in homes], None
    lan.change_all(delay_s=DELAY_S)
    members = [Member(home, device.command, ()) for home, device in zip(homes, devices, strict=True)]
    return members, lambda loss: lan.change_all(loss=loss)


def _freeze_in_turn(fleet: Fleet) -> Noticed:
    noticed = Noticed()
    for trial in range(-1, TRIALS):
        marks = {member.home: len(member.diary) for member in fleet.members}
        victim = fleet.members[trial] if trial >= 0 else None
        others = [member for member in fleet.members if member is not victim]
        began = fleet.members[0].diary[-1][0]
        if victim is None:
            fleet.read_for(CALM_S)
            noticed.watched_s += CALM_S * len(others)
        else:
            began = fleet.signal(victim, signal.SIGSTOP)
            times = _noticed(fleet, victim, others, began)
            noticed.times += times
            noticed.watched_s += max(times) * len(others)
        ids = {other.id for other in others}
        noticed.mistakes += sum(len(went & ids) for one in others for _, _, went in one.diary[marks[one.home] :])
        if victim is not None:
            woken = fleet.signal(victim, signal.SIGCONT)
            _require(fleet, fleet.until(fleet.together))
            noticed.back.append(max(0.0, max(member.diary[-1][0] for member in fleet.members) - woken))
    return noticed


def _noticed(fleet: Fleet, victim: Member, others: Sequence[Member], since: float) -> list[float]:
    fleet.until(lambda: all(other.went_at(victim.id, since) for other in others))
    return [(other.went_at(victim.id, since) or math.inf) - since for other in others]


# -- throwing one out -------------------------------------------------------------------------------------------------


def revoke(homes: Sequence[Path]) -> Figures:
    """Revoke one after another on the first node, by its control socket, until every connection is closed."""
    with Fleet([Member(home) for home in homes]) as fleet:
        for member in fleet.members:
            fleet.start(member)
        _require(fleet, fleet.until(fleet.together))
        fleet.read_for(SETTLE_S)
        here, gone, times, last = list(fleet.members), list[Member](), list[float](), list[float]()
        for _ in range(min(TRIALS, len(here) - 2)):
            gone.append(victim := here.pop())
            since = time.monotonic()
            trio.run(Control(homes[0]).ask, "revoke", {"subject": victim.id, "reason": "bench"})
            fleet.until(lambda out=victim: not out.seen and all(out.id not in other.seen for other in here))  # type: ignore[misc]
            closed = [*(other.went_at(victim.id, since) for other in here), victim.diary[-1][0]]
            times += [(at or math.inf) - since for at in closed]
            last.append(max(times[-len(closed) :]))
            _require(fleet, fleet.together(*gone))  # nobody else was lost by it
    print(f"\n{COUNT} nodes, {len(last)} revoked one after another, from the command on:")  # noqa: T201
    _row("until a node had closed its connection", "s ", times)
    _row("until the last one had, and the revoked itself", "s ", last)
    return {"revocation_p99_s": p99(times)}


# -- the parts --------------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Sequence[Path]], Figures]] = {"join": join, "detect": detect, "revoke": revoke}
# Programs of their own on virtual time; they run side by side, when nothing is measured by the clock on the wall.
SIMULATED = ("detection", "picture")


def simulate(names: Sequence[str], folder: Path) -> Figures:
    """Run simulations in processes of their own, all at once; returns their figures."""
    running = {
        name: subprocess.Popen(
            [sys.executable, "-m", f"tests.bench.{name}"], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "JSON": str(folder / f"{name}.json")},
        )
        for name in names
    }  # fmt: skip
    figures: Figures = {}
    try:
        for name, process in running.items():
            said, _ = process.communicate()
            print(f"\n{name}, simulated:\n{said}")  # noqa: T201
            if process.returncode:
                sys.exit(f"the simulation {name} failed")
            figures |= json.loads((folder / f"{name}.json").read_text())
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return figures


def main(names: Sequence[str]) -> None:
    if unknown := set(names) - set(PARTS) - set(SIMULATED):
        sys.exit(f"There is no part {', '.join(sorted(unknown))}; there are {', '.join([*PARTS, *SIMULATED])}.")
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        if real := [part for part in PARTS if part in (names or PARTS)]:  # revoke last: it spoils the mesh
            homes = enrol(folder, COUNT)
            for name in real:
                figures |= PARTS[name](homes)
        figures |= simulate([part for part in SIMULATED if part in (names or SIMULATED)], folder)
    figures = {key: round(value, 3) for key, value in figures.items()}
    print(json.dumps(figures, indent=1))  # noqa: T201
    if path := os.environ.get("JSON"):
        Path(path).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
