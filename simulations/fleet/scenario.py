"""A learning scenario is data: whose data, which model, how nodes train, how they average, and what goes wrong.

TOML in, frozen structs out; `simulations/fleet/reading.py` reads files. All chance comes from ``seed``.
"""

from typing import Annotated, Literal

import msgspec

from ...node.objective import Objective

Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e12)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Number = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]

TestedOn = Literal["all", "own"]
Split = Literal["even", "dirichlet", "shards", "quantity", "silo"]
Topology = Literal["groups", "pull", "ring", "regular", "epidemic", "exponential", "hypercube", "complete", "alone"]
Policy = Literal["trusted", "private", "robust"]
CodecName = Literal["float32", "float16", "bfloat16", "int8", "int4"]
AttackKind = Literal["sign_flip", "scaled", "replacement", "noise", "insider", "label_flip"]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every table of a scenario."""


class Data(Section, frozen=True, kw_only=True):
    """Whose data: a name that `fleet/sources/known.py` knows, and how it is given out to nodes."""

    name: str = "digits"
    folder: str = ""  # where the real data lie that Lepton does not carry; empty: what `--data` says
    split: Split = "dirichlet"
    alpha: Positive = 0.5  # of the Dirichlet distribution over labels (or, with `quantity`, over nodes)
    shards: Count = 2  # label shards of a node (McMahan et al. 2017)
    samples: Number = 0  # take so many for training; 0: all
    test: Number = 0  # so many for the test; 0: what the source says
    tested_on: TestedOn = "all"  # with `silo`, "own": every node on its own silo's part of the test


class Model(Section, frozen=True, kw_only=True):
    """What is trained: as in a task's `[model]`; its inputs and outputs follow from the data."""

    architecture: str = "mlp"  # mlp, cnn, lstm, linear, or "package.module:factory" that returns an nn.Module
    hidden: Count = 64
    hidden_activation: Literal["sigmoid", "relu"] = "relu"


class Train(Section, frozen=True, kw_only=True):
    """What one node does between two exchanges. Names and meaning as in a task's `[train]`."""

    local_steps: Count = 5
    epochs: Number = 0  # instead of steps: so many passes over one's own samples a round
    batch_size: Count = 32
    learning_rate: Positive = 0.1
    momentum: Share = 0.0
    weight_decay: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class Averaging(Section, frozen=True, kw_only=True):
    """How models become one: who exchanges with whom, in which policy, by which codec."""

    topology: Topology = "groups"
    policy: Policy = "trusted"
    codec: CodecName = "float32"
    group_size: Annotated[int, msgspec.Meta(ge=2, le=1024)] = 8
    degree: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 4  # of `regular` and `epidemic`; models pulled with `pull`
    weighted: bool = True  # by samples, clipped as the machines clip them; else all count alike
    noise: Annotated[float, msgspec.Meta(ge=0)] = 0.0  # standard deviation of the group's shared noise, `private`
    clip: Annotated[float, msgspec.Meta(ge=0)] = 0.0  # of an update's norm before noise; 0: not clipped


class Faults(Section, frozen=True, kw_only=True):
    """What goes wrong, round by round, drawn by lot."""

    away: Share = 0.0  # of the nodes in a round: they neither train nor exchange
    stay_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0  # how long one is away on average; 0: drawn anew each round
    loss: Share = 0.0  # of messages between two nodes
    stragglers: Share = 0.0  # of the nodes are slow, and always the same
    slowness: Annotated[float, msgspec.Meta(ge=1, le=1000)] = 4.0  # a straggler's step takes so many times longer
    attackers: Share = 0.0
    attack: AttackKind = "sign_flip"


class Link(Section, frozen=True, kw_only=True):
    """For simulated seconds: every node's link, and how fast it computes."""

    latency_s: Annotated[float, msgspec.Meta(ge=0)] = 0.005
    up_bytes_per_s: Positive = 2.5e6  # 20 Mbit/s, a home's Wi-Fi upwards
    down_bytes_per_s: Positive = 6.25e6  # 50 Mbit/s
    step_s: Annotated[float, msgspec.Meta(ge=0)] = 0.01  # one local step of a node that is no straggler
    spread: Annotated[float, msgspec.Meta(ge=0)] = 0.0  # log-normal sigma of nodes' speeds


class Scenario(Section, frozen=True, kw_only=True):
    """One file."""

    about: str
    nodes: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    rounds: Count
    seed: Number = 1
    objective: Objective = "cross_entropy"
    evaluate_every: Count = 1  # rounds; the last one always
    evaluate_nodes: Number = 0  # look at so many nodes, the same ones each time; 0: all
    data: Data = Data()
    model: Model = Model()
    train: Train = Train()
    averaging: Averaging = Averaging()
    faults: Faults = Faults()
    link: Link = Link()
