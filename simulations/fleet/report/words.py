"""A scenario in words: what was simulated, for somebody who has never seen its file."""

from typing import Any, Final

import msgspec

from ....node.objective import is_of_values
from ..outcome import Outcome
from ..scenario import Averaging, Data, Faults, Link, Scenario, Train

_TOPOLOGIES: Final = {
    "groups": "in groups of {group_size} that are drawn anew every round",
    "pull": "by each pulling the models of {degree} others",
    "ring": "with their two neighbours on a ring",
    "regular": "with {degree} fixed neighbours each",
    "epidemic": "by each sending its model to {degree} others drawn by lot",
    "exponential": "with partners 1, 2, 4, 8 … places on, one a round",
    "hypercube": "with one partner a round, along the edges of a hypercube",
    "complete": "all with all",
}
_POLICIES: Final = {
    "trusted": "",
    "private": ", under masks that hide each one's update from the others",
    "robust": ", by a mean that leaves out what lies far off",
}
_ATTACKS: Final = {
    "sign_flip": "send their update backwards",
    "scaled": "send their update many times too large",
    "replacement": "try to put a model of their own in the place of all others'",
    "noise": "send noise",
    "insider": "send what is just near enough to pass",
    "label_flip": "train on wrong labels",
}


def quality(scenario: Scenario) -> str:
    """Return what quality is in this scenario."""
    return "R²" if is_of_values(scenario.objective) else "accuracy"


def told(outcome: Outcome) -> tuple[str, ...]:
    """Return what was simulated as a few sentences."""
    scenario = outcome.scenario
    model, nodes = scenario.model, scenario.nodes
    which = f"the network {model.architecture}" if ":" in model.architecture else f"one {model.architecture}"
    sentences = (
        f"{_count(nodes, 'node')} {'learns' if nodes == 1 else 'learn'} {scenario.data.name}, {_split(scenario.data)}.",
        f"Each trains {which} of {_count(outcome.parameters, 'parameter')}: {_train(scenario.train)}.",
        _averaging(scenario.averaging),
        _faults(scenario.faults),
        f"{_count(scenario.rounds, 'round')} of this, seed {scenario.seed}, {_link(scenario.link)}.",
    )
    return tuple(filter(None, sentences))


def settings(scenario: Scenario) -> dict[str, Any]:
    """Return every setting by its dotted name, as in a scenario's file."""
    found: dict[str, Any] = {}
    for key, value in msgspec.to_builtins(scenario).items():
        below = value.items() if isinstance(value, dict) else ()
        found |= {f"{key}.{name}": one for name, one in below} if below else {key: value}
    return found


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _split(data: Data) -> str:
    match data.split:
        case "even":
            return "given out evenly"
        case "dirichlet":
            return f"given out by label (Dirichlet, α = {data.alpha:g}: the smaller, the fewer classes a node knows)"
        case "shards":
            return f"sorted by label and given out in {_count(data.shards, 'shard')} a node"
        case "quantity":
            return f"some with much of it and some with little (Dirichlet, α = {data.alpha:g})"
        case _:
            return "each with the data of a place of its own"


def _train(train: Train) -> str:
    passes, steps = _count(train.epochs, "pass"), _count(train.local_steps, "step")
    much = f"{passes.replace('passs', 'passes')} over its own samples" if train.epochs else steps
    momentum = f", momentum {train.momentum:g}" if train.momentum else ""
    samples = f"{_count(train.batch_size, 'sample')} at a time"
    return f"{much} a round, {samples}, learning rate {train.learning_rate:g}{momentum}"


def _averaging(averaging: Averaging) -> str:
    if averaging.topology == "alone":
        return "Nobody averages: each learns alone."
    how = _TOPOLOGIES[averaging.topology].format(group_size=averaging.group_size, degree=averaging.degree)
    noise = f"Noise of {averaging.noise:g} hides single samples." if averaging.noise else ""
    return f"They average {how}{_POLICIES[averaging.policy]}; models travel as {averaging.codec}. {noise}".strip()


def _faults(faults: Faults) -> str:
    parts = []
    if faults.away:
        stay = f" for {faults.stay_s:g} s on average" if faults.stay_s else ""
        parts.append(f"{faults.away:.0%} of the nodes are away at any time{stay}")
    if faults.loss:
        parts.append(f"{faults.loss:.0%} of all messages are lost")
    if faults.stragglers:
        parts.append(f"{faults.stragglers:.0%} of the nodes compute {faults.slowness:g} times as slowly")
    if faults.attackers:
        parts.append(f"{faults.attackers:.0%} of the nodes {_ATTACKS[faults.attack]}")
    return f"{'; '.join(parts)}." if parts else ""


def _link(link: Link) -> str:
    up, down = link.up_bytes_per_s * 8 / 1e6, link.down_bytes_per_s * 8 / 1e6
    return f"on links of {up:,.3g} Mbit/s up, {down:,.3g} down and {link.latency_s * 1000:g} ms"
