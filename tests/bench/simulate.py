"""How fast a fleet learns, beside the bound that we know: batched products over nodes, in plain torch.

Run ``make bench-simulate`` or ``python -m tests.bench.simulate [PART...]`` from the root of the project (JSON=FILE
writes the figures as flat JSON, TURNS changes the effort). Parts: ``bound`` at 64 and 256 nodes, ``models`` (what other
models cost, beside `vmap` and beside one node after the other), ``nodes`` (whether cost is linear in them), ``memory``
of 10,000 nodes in a process of its own, ``world`` (`crowd_hour.py`).

The work: scikit-learn's digits, labels by Dirichlet 0.5, SGD 0.1, batches of 16, one epoch a round, one thread. Ours
does what a scenario does: random groups of 8 average in float32 with the machines' gates, a tenth of the nodes are
away, and every tenth round (or every round) all nodes are evaluated on the 360 test samples. The bound trains everybody
and takes one mean. Contestants take turns in one process; figures are medians of CPU time.
"""

import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from lepton.simulations.fleet.fleet import Fleet
from lepton.simulations.fleet.learn import learn
from lepton.simulations.fleet.networks import made
from lepton.simulations.fleet.population import Population
from lepton.simulations.fleet.reading import population_for
from lepton.simulations.fleet.scenario import Data, Faults, Model, Scenario, Train
from rich.console import Console
from rich.table import Table

from .crowd_hour import measure
from .together import BATCH, RATE, Bound, Loop, Mapped

TURNS = int(os.environ.get("TURNS", "7"))
TURN_NODE_ROUNDS = 2_560  # of each contestant before the next one's turn
INTERVAL = 10  # rounds between two evaluations
HIDDEN = 64
SIZES = (64, 256, 1_000, 10_000)
MANY = 10_000

Figures = dict[str, float]
Contestant = Callable[[], None]  # plays a round
console = Console(width=110)


def scenario(nodes: int, *, every: int = INTERVAL, architecture: str = "mlp", rounds: int = 1_000_000) -> Scenario:
    return Scenario(
        about="bench", nodes=nodes, rounds=rounds, evaluate_every=every,
        data=Data(name="digits", split="dirichlet", alpha=0.5), model=Model(architecture=architecture, hidden=HIDDEN),
        train=Train(epochs=1, batch_size=BATCH, learning_rate=RATE), faults=Faults(away=0.1),
    )  # fmt: skip


def ours(said: Scenario, population: Population) -> Contestant:
    fleet = Fleet(said, population)
    return lambda: void(fleet.step())


def void(_anything: object) -> None:
    """Forget what came of a round."""


def compete(nodes: int, contestants: Mapping[str, Contestant], *, turns: int = TURNS) -> dict[str, float]:
    """Return the CPU seconds that each takes for a node's round: medians over turns that they take in order."""
    rounds = max(INTERVAL, -(-TURN_NODE_ROUNDS // nodes // INTERVAL) * INTERVAL)  # as many evaluations in each turn
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(turns + 1):
        for name, play in contestants.items():
            gc.collect()
            begun = time.process_time()
            for _ in range(rounds):
                play()
            if turn:  # the first one warms up
                taken[name].append((time.process_time() - begun) / rounds / nodes)
    return {name: statistics.median(each) for name, each in taken.items()}


# -- the parts --------------------------------------------------------------------------------------------------------


def beside_bound() -> Figures:
    """64 and 256 nodes, MLP 64-64-10."""
    table = Table(title=f"Node-rounds per CPU second, MLP 64-{HIDDEN}-10", title_justify="left")
    for column in ("", "64 nodes", "256 nodes"):
        table.add_column(column, justify="right" if column else "left")
    found = {}
    for nodes in (64, 256):
        population = population_for(scenario(nodes))
        found[nodes] = compete(nodes, {
            "the bound: batched products over nodes, one mean, nothing else": Bound(population, HIDDEN).round,
            f"ours, evaluated every {INTERVAL} rounds": ours(scenario(nodes), population),
            "ours, evaluated every round": ours(scenario(nodes, every=1), population),
        })  # fmt: skip
    for name in found[64]:
        table.add_row(name, *(f"{1 / found[nodes][name]:,.0f}" for nodes in found))
    bound, interval, always = found[64]
    for name in (interval, always):
        ratios = [found[nodes][name] / found[nodes][bound] for nodes in found]
        table.add_row(f"time of {name}, over the bound's", *(f"{ratio:.2f}" for ratio in ratios))
    console.print(table)
    return {
        f"node_rounds_vs_bound_{nodes}{suffix}": times[name] / times[bound]
        for nodes, times in found.items()
        for name, suffix in ((interval, ""), (always, "_evaluated_always"))
    }


def other_models() -> Figures:
    """Each architecture at 64 nodes."""
    nodes, figures = 64, {}
    table = Table(title=f"Node-rounds per CPU second, {nodes} nodes", title_justify="left")
    for column in ("", "ours", "vmap, training alone", "one after the other, training alone"):
        table.add_column(column, justify="right" if column else "left")
    for architecture in ("linear", "mlp", "cnn", "lstm"):
        said = scenario(nodes, architecture=architecture)
        population = population_for(said)
        if architecture == "lstm":
            shape = (8, 8)  # the digits' rows, one after the other
            population = replace(
                population, inputs=population.inputs.unflatten(1, shape),
                test_inputs=population.test_inputs.unflatten(1, shape),
            )  # fmt: skip
        modules = [made(said, population, None) for _ in range(nodes)]
        found = compete(nodes, {
            "ours": ours(said, population),
            "vmap": Mapped(population, modules[0]).round,
            "loop": Loop(population, modules).round,
        }, turns=2)  # fmt: skip
        table.add_row(architecture, *(f"{1 / taken:,.0f}" for taken in found.values()))
        figures[f"{architecture}_node_rounds_per_cpu_s"] = 1 / found["ours"]
        figures[f"{architecture}_vs_vmap"] = found["ours"] / found["vmap"]
    console.print(table)
    return figures


def more_nodes() -> Figures:
    """From 64 to 10,000 nodes."""
    table = Table(title="Cost by nodes, MLP", title_justify="left")
    for column in ("nodes", "samples each", "node-rounds per CPU s", "steps per CPU s"):
        table.add_column(column, justify="right")
    figures = {}
    for nodes in SIZES:
        said = scenario(nodes)
        population = population_for(said)
        taken = compete(nodes, {"ours": ours(said, population)}, turns=3)["ours"]
        steps = float((-(-population.counts // BATCH)).mean())
        table.add_row(f"{nodes:,}", f"{population.counts.mean():.1f}", f"{1 / taken:,.0f}", f"{steps / taken:,.0f}")
        figures[f"node_rounds_per_cpu_s_{nodes}"] = 1 / taken
    console.print(table)
    return figures


def memory() -> Figures:
    """10,000 nodes in a process of their own."""
    out = subprocess.run([sys.executable, "-m", __spec__.name, "child"], check=True, capture_output=True, text=True)
    peak_mb = json.loads(out.stdout)
    console.print(
        f"{MANY:,} nodes of an MLP 64-{HIDDEN}-10, {INTERVAL} rounds: {peak_mb:,.0f} MB at most, all in all\n"
    )
    return {"memory_mb_10000": peak_mb}


def child() -> None:
    """Learn with many nodes, and print the most memory that this process ever had, in MB."""
    learn(scenario(MANY, rounds=INTERVAL))
    sys.stdout.write(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def world() -> Figures:
    """An hour of 1,000 members: the other simulator."""
    figures = measure()
    wall, cpu = (figures[f"world_{kind}_s_1000_nodes_1h"] for kind in ("wall", "cpu"))
    console.print(f"1,000 members' probes and records for an hour: {wall:.0f} s of wall time, {cpu:.0f} s of CPU\n")
    return figures


PARTS: dict[str, Callable[[], Figures]] = {
    "bound": beside_bound, "models": other_models, "nodes": more_nodes, "memory": memory,
    "world": world,
}  # fmt: skip


def main(names: Sequence[str]) -> None:
    """Print the tables; ``JSON`` names a file for the figures."""
    torch.set_num_threads(1)
    if names == ["child"]:
        child()
        return
    if unknown := set(names) - set(PARTS):
        sys.exit(f"There is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}.")
    figures: Figures = {}
    for name in names or PARTS:
        figures |= PARTS[name]()
    figures = {key: round(value, 4) for key, value in figures.items()}
    console.print(json.dumps(figures, indent=1))
    if path := os.environ.get("JSON"):
        Path(path).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
