"""How well nodes with skewed data learn together, with no coordinator: by accuracy of the worst, and by bytes.

Run ``make bench-learn`` or ``python -m tests.bench.learn [PART...]`` from the root of the project (JSON=FILE writes the
figures as flat JSON, SEEDS changes the effort). Parts: ``mnist`` and ``speech`` on virtual time, a tenth of all
messages lost; ``churn``, the same with nodes that come and go; ``real``, 8 processes on loopback beside the virtual run
of the same task, and bytes as the sockets count them. All but FedAvg, pairs and central training is the deployed
averaging machine with the deployed trainer. Figures are medians over the seeds.

The settings called `chosen` were chosen by the part ``tried``, which runs only when asked for: on MNIST images 6,000 to
10,999, on recordings 5 to 9 of the spoken digits, and with seeds from 10 on. The test data play no part in it.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from .silos import Setting, alone, central, missing, mixed, mnist, pairs, server, speech
from .virtual import VirtualMesh

SEEDS = int(os.environ.get("SEEDS", "3"))
LOSS = 0.1
CHOSEN: dict[str, Any] = {"momentum": 0.9, "momentum_kind": "quasi_global", "schedule": "cosine", "tracking": 1.0}
AWAY = 0.2  # the share of nodes that is away at any time
AWAY_S = (30.0, 10.0, 3.0)  # for so long: some thirteen rounds, four, and hardly more than one

Figures = dict[str, float]
Method = Callable[[Setting], Sequence[float]]
console = Console(width=110)


def mesh(size: int, **changes: Any) -> Method:
    """Return how nodes learn in groups of at most this size: int8, a tenth of all messages lost."""

    def run(setting: Setting) -> Sequence[float]:
        return virtual(setting, size, loss=LOSS, **changes).run()

    return run


def virtual(setting: Setting, size: int, *, loss: float, **changes: Any) -> VirtualMesh:
    """Make a mesh on virtual time for a setting."""
    return VirtualMesh(
        setting.trainers(**changes), rounds=setting.rounds, local_steps=setting.local_steps, group_size=size,
        loss=loss, seed=setting.spec.seed,
    )  # fmt: skip


def with_server(**changes: Any) -> Method:
    return lambda setting: mixed(setting, server, **changes)


# -- accuracy ---------------------------------------------------------------------------------------------------------


def compared(
    title: str, make: Callable[[int], Setting], rows: dict[str, Method], *, first_seed: int = 0
) -> dict[str, float]:
    """Print what came of each method: median over seeds of the worst, of the mean and of the best node."""
    table = Table(title=title, title_justify="left")
    for column in ("", "worst node", "its seeds", "mean", "best"):
        table.add_column(column, justify="right" if column else "left")
    settings, found = [make(first_seed + number) for number in range(SEEDS)], {}
    for name, method in rows.items():
        runs = [method(setting) for setting in settings]
        worst, mean, best = ([value(run) for run in runs] for value in (min, statistics.fmean, max))
        seeds = " ".join(f"{value:.3f}" for value in worst)
        middle = [f"{statistics.median(values):.3f}" for values in (worst, mean, best)]
        table.add_row(name, middle[0], seeds, *middle[1:])
        found[name] = statistics.median(best if name == ALONE else worst)
    console.print(table)
    return found


CENTRAL, ALONE, FEDAVG = "all data in one place", "each alone", "FedAvg with a server"
GROUP = "groups of 8 at most, chosen settings"


def learn_mnist() -> Figures:
    """10 nodes with two shards of labels each."""
    rows: dict[str, Method] = {
        CENTRAL: lambda setting: [central(setting)],
        ALONE: alone,
        FEDAVG: with_server(),
        "FedAvg with a server, chosen settings": with_server(**CHOSEN),
        "random pairs, 1 a round": lambda setting: mixed(setting, pairs(1)),
        "random pairs, 3 a round": lambda setting: mixed(setting, pairs(3)),
        "groups of 8 at most, plain SGD": mesh(8),
        "groups of 8 at most, cosine alone": mesh(8, schedule="cosine"),
        GROUP: mesh(8, **CHOSEN),
        "groups of 16 at most, plain SGD": mesh(16),
        "groups of 16 at most, chosen settings": mesh(16, **CHOSEN),
    }
    title = (
        f"MNIST, first 6,000 images, 10 nodes x 2 label shards, MLP-64, SGD 0.1, 40 rounds x 1 epoch, {SEEDS} seeds.\n"
        "Groups: int8, 10 % of all messages lost; the others exchange float32 and lose nothing. Groups of 8 at most\n"
        "are two of 5 here, new each round; of 16, one of 10. Chosen settings: cosine schedule, gradient tracking 1,\n"
        "quasi-global momentum 0.9."
    )
    found = compared(title, lambda seed: mnist(seed=seed), rows)
    names = {"worst": GROUP, "fedavg": FEDAVG, "central": CENTRAL, "alone": ALONE}
    return {f"mnist_{key}": found[name] for key, name in names.items()}


def learn_speech() -> Figures:
    """Every speaker a node."""
    rows: dict[str, Method] = {
        CENTRAL: lambda setting: [central(setting)],
        ALONE: alone,
        FEDAVG: with_server(),
        "FedAvg with a server, chosen settings": with_server(**CHOSEN),
        "random pairs, 1 a round": lambda setting: mixed(setting, pairs(1)),
        "random pairs, 3 a round": lambda setting: mixed(setting, pairs(3)),
        "groups of 8 at most, plain SGD": mesh(8),
        GROUP: mesh(8, **CHOSEN),
    }
    title = (
        f"Spoken digits, 4 speakers, a node each, CNN 8-32, SGD 0.05, 15 rounds x 1 epoch, {SEEDS} seeds.\n"
        "Groups: int8, 10 % of all messages lost. 4 nodes are one group; 200 test clips: 0.005 is one clip."
    )
    found = compared(title, lambda seed: speech(seed=seed), rows)
    return {"digits_speech_worst": found[GROUP], "digits_speech_fedavg": found[FEDAVG]}


def learn_with_churn() -> Figures:
    """A fifth of the nodes away at any time, two killed for good, one joining late."""

    def run(away_s: float) -> Method:
        def learn(setting: Setting) -> Sequence[float]:
            mesh = virtual(setting, 8, loss=LOSS, **CHOSEN)
            come_and_go(mesh, away_s)
            return mesh.run()

        return learn

    def left_over(setting: Setting) -> Sequence[float]:
        return mixed(replace(setting, silos=setting.silos[2:]), server)

    rows = {f"20 % away, others every {away_s:g} s": run(away_s) for away_s in AWAY_S}
    title = (
        "The same MNIST task, groups of 8 at most, chosen settings, a round about 2 s: some nodes away at any time,\n"
        "two killed for good after 5 s and 10 s, with the data that only they had, one joining after 7 s."
    )
    rows["FedAvg with a server, never with the two killed"] = left_over
    found = compared(title, lambda seed: mnist(seed=seed), rows)
    return {f"mnist_away_{away_s:g}s_worst": found[row] for away_s, row in zip(AWAY_S, rows, strict=False)}


def come_and_go(mesh: VirtualMesh, away_s: float) -> None:
    """Arrange that nodes are away, are killed and come late."""
    first, second, *_, last = mesh.nodes.values()
    mesh.begin_without(last)
    mesh.world.after(0.1, lambda: mesh.shuffle(AWAY, every_s=away_s))
    mesh.world.after(5.0, lambda: mesh.kill(first))
    mesh.world.after(10.0, lambda: mesh.kill(second))
    mesh.world.after(7.0, lambda: mesh.come_back(last))


# -- choosing settings ------------------------------------------------------------------------------------------------

TRIED: tuple[dict[str, Any], ...] = (
    {},
    {"schedule": "cosine"},
    {"tracking": 0.5},
    {"tracking": 1.0},
    {"tracking": 1.0, "schedule": "linear"},
    {"tracking": 1.0, "schedule": "cosine"},
    {"momentum": 0.9, "momentum_kind": "quasi_global"},
    {"momentum": 0.9, "momentum_kind": "quasi_global", "schedule": "cosine"},
    {"momentum": 0.9, "momentum_kind": "quasi_global", "schedule": "cosine", "tracking": 1.0},
    {"proximal": 0.1},
)


def choose() -> Figures:
    """Try settings on data that are neither trained on nor tested on."""
    rows: dict[str, Method] = {FEDAVG: with_server()}
    rows |= {", ".join(f"{key} {value}" for key, value in one.items()) or "plain SGD": mesh(8, **one) for one in TRIED}
    for name, make in {"MNIST": mnist, "Spoken digits": speech}.items():
        title = f"{name}, data for choosing, groups of 8 at most, 10 % of all messages lost, {SEEDS} seeds from 10 on"
        compared(title, lambda seed, make=make: make(seed=seed, choosing=True), rows, first_seed=10)  # type: ignore[misc]
    return {}


# -- the parts --------------------------------------------------------------------------------------------------------


def learn_for_real() -> Figures:
    from .processes import compare_with_real

    return compare_with_real(console, CHOSEN)


PARTS: dict[str, Callable[[], Figures]] = {
    "mnist": learn_mnist,
    "speech": learn_speech,
    "churn": learn_with_churn,
    "real": learn_for_real,
    "tried": choose,
}


DEFAULT = tuple(part for part in PARTS if part != "tried")


def main(names: Sequence[str]) -> None:
    """Print the tables; ``JSON`` names a file for the figures."""
    if unknown := set(names) - set(PARTS):
        sys.exit(f"There is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}.")
    if why := missing():
        console.print(why)
        return
    torch.set_num_threads(1)
    figures: Figures = {}
    for name in [part for part in PARTS if part in (names or DEFAULT)]:
        begun = time.monotonic()
        figures |= PARTS[name]()
        console.print(f"(part {name}: {time.monotonic() - begun:.0f} s)\n")
    skipped = [part for part in PARTS if part not in (names or DEFAULT)]
    console.print(f"Parts skipped: {', '.join(skipped) or 'none'}.")
    figures = {key: round(value, 4) for key, value in figures.items()}
    console.print(json.dumps(figures, indent=1))
    if path := os.environ.get("JSON"):
        Path(path).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
