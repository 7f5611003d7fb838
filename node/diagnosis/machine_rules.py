"""Rules about the machine: what it may open, what room it has, how fast it is, what its firewall may do. Pure."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from .facts import Facts, Wall
from .findings import Finding

FILES_LEAST: Final = 1024  # 256 connections, and as many files again of weights and data
DISK_LOW_BYTES: Final = 10**9  # a small model's weights
DISK_FULL_BYTES: Final = 100 * 10**6  # records and checkpoints can hardly be written
MEMORY_LOW_BYTES: Final = 300 * 10**6  # torch alone takes 250 MB once it is loaded
_BUSY: Final = 2.0  # programs that want to run, for each core


def room(facts: Facts) -> Iterator[Finding]:
    """Files, disk and memory."""
    machine = facts.machine
    if machine.files_most is not None and machine.files_most < FILES_LEAST:
        yield Finding(
            "few-files",
            "warn",
            f"A program here may open {machine.files_most} files and connections at most.",
            "A busy node needs more, and then waits.",
            f"`ulimit -n {4 * FILES_LEAST}` before `lepton-node up`, or LimitNOFILE= in its unit.",
        )
    free = machine.disk_free_bytes
    if free is not None and free < DISK_LOW_BYTES:
        yield Finding(
            "disk-low",
            "bad" if free < DISK_FULL_BYTES else "warn",
            f"The disk with {machine.disk} has {free / 1e6:,.0f} MB left.",
            "Weights of models and checkpoints are kept there.",
            "Make room, or bound it: `disk` under [blobs] in node.toml.",
        )
    elif free is not None:
        yield Finding("disk", "ok", f"The disk has {free / 1e9:,.0f} GB left.")
    left = machine.memory_free_bytes
    if left is not None and left < MEMORY_LOW_BYTES:
        yield Finding(
            "memory-low",
            "warn",
            f"The machine has {left / 1e6:,.0f} MB of memory left.",
            "Training and serving load torch, and the system ends programs when there is none.",
            "End what is not needed, or give less: `lepton-node up --memory 100MB`.",
        )
    elif left is not None:
        yield Finding("memory", "ok", f"{left / 1e9:.1f} of {machine.memory_bytes / 1e9:.1f} GB of memory are free.")


def speed(facts: Facts) -> Iterator[Finding]:
    """How fast this machine is at models, and what holds it up."""
    machine, found = facts.machine, facts.machine.speed
    if not found.kernel:
        yield Finding(
            "no-kernel",
            "warn",
            "The compiled kernel does not run here: language models are a good deal slower.",
            found.kernel_reason,
            "Where a compiler is missing, install one (gcc or clang) and then Lepton again.",
        )
    if machine.load is not None and machine.load > _BUSY * machine.cores:
        yield Finding(
            "busy",
            "note",
            f"The machine is busy: {machine.load:.1f} programs want to run on {_cores(machine.cores)}.",
            "Figures that are measured now are too low, and peers may find this device slow to answer.",
        )
    if found.threads.isdigit() and int(found.threads) > machine.cores:
        yield Finding(
            "many-threads",
            "warn",
            f"OMP_NUM_THREADS is {found.threads}, on {_cores(machine.cores)}.",
            "Threads that wait for each other make small models many times as slow.",
            "Unset it.",
        )
    if found.int8_mib_ns and found.measured_at_s is not None:
        on = datetime.fromtimestamp(found.measured_at_s, UTC).strftime("%Y-%m-%d")
        took_ms = found.int8_mib_ns * 1e9 / 2**20 / 1e6
        kernel = "compiled kernel" if found.kernel else "torch"
        yield Finding("speed", "ok", f"A step through 1 GB of int8 weights takes {took_ms:.0f} ms ({kernel}, {on}).")
    elif facts.running is None:
        yield Finding(
            "unmeasured", "note", "How fast this machine is was not measured yet: its node does at its start."
        )


def firewall(facts: Facts) -> Iterator[Finding]:
    """What may keep others out, which nobody but root can read."""
    suspect = any(one.outcome == "timed out" for peer in facts.peers for one in peer.dial_back) or any(
        not ear.echoed and not ear.trouble for ear in facts.hearing.ears
    )
    for wall in facts.walls:
        if wall.on is not False:
            yield _wall(wall, suspect=suspect)


def _wall(wall: Wall, *, suspect: bool) -> Finding:
    state = "is on" if wall.on else "may be on"
    return Finding(
        "firewall",
        "warn" if suspect else "note",
        f"The firewall {wall.name} {state} on this machine.",
        "Its rules cannot be read without root, so whether it lets Lepton through is not known."
        + (" Something is kept out of this machine, see above or below." if suspect else ""),
        f"Look with `{wall.look}`." + (f" To let Lepton through: `{wall.allow}`." if wall.allow else ""),
    )


def _cores(count: int) -> str:
    return "one core" if count == 1 else f"{count} cores"


RULES: Final = (room, speed, firewall)
