"""How a task trains, when it ends, and what of its model travels: data that owners write and records carry.

Free of torch, so that the command line can check a task's file without the seconds that loading it takes.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal

import msgspec

from ...mesh.errors import UsageError
from ...mesh.messages import Name
from ..limits import SEED_MAX

Policy = Literal["trusted", "private", "robust"]
Schedule = Literal["constant", "cosine", "linear"]
MomentumKind = Literal["plain", "quasi_global"]
Optimiser = Literal["sgd", "adam", "adamw"]
Quantise = Literal["int8", "int4"]
Rounds = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Copies = Annotated[int, msgspec.Meta(ge=1, le=16)]
Members = Annotated[int, msgspec.Meta(ge=1, le=1024)]
WaitSeconds = Annotated[float, msgspec.Meta(ge=0, le=3600)]
_Patterns = Annotated[tuple[Annotated[str, msgspec.Meta(max_length=256)], ...], msgspec.Meta(max_length=64)]


class DpSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The privacy that each node's training records get over a whole task; what it rests on, `privacy.py` says."""

    epsilon: Annotated[float, msgspec.Meta(gt=0, le=1000)]
    delta: Annotated[float, msgspec.Meta(gt=0, lt=1)]  # of any worse loss; below one over the number of records
    clip_norm: Annotated[float, msgspec.Meta(gt=0, le=1e6)] = 1.0  # of one record's gradient
    # Standard deviation in clip norms; left out, each node uses as much as its records need for the task's steps.
    noise: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None


class TrainSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a node trains between two exchanges. The defaults suit a sigmoid network; `settings_for` knows the others.

    Measured on the digits, central and over 4 nodes with Dirichlet(0.3) parts: larger steps and fewer of them lose
    accuracy when nodes differ, smaller ones need more exchanges.
    """

    local_steps: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 20  # batches between two exchanges
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 64
    # Sigmoid units pass on a quarter of a gradient at most, so this is large; with ReLU it would diverge.
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=100)] = 0.5
    schedule: Schedule = "constant"
    warmup_steps: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    optimiser: Optimiser = "sgd"
    momentum: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.9  # of sgd
    momentum_kind: MomentumKind = "plain"  # of sgd
    beta1: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.9  # of adam and adamw, as Kingma and Ba (2015) suggest
    beta2: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.999
    eps: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1e-8
    weight_decay: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0  # through the gradient; adamw: apart from it
    clip_norm: Annotated[float, msgspec.Meta(ge=0)] = 0.0  # of a batch's gradient; 0: as it is
    proximal: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.0  # FedProx' mu; 0: none
    tracking: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0  # gradient tracking; 0: none
    quantise: Quantise | None = None  # train against weights that are rounded so, and serve those (`straight.py`)
    dp: DpSettings | None = None  # differential privacy of each training record
    seed: Annotated[int, msgspec.Meta(ge=0, le=SEED_MAX)] = 0


# What only some optimisers have. Gradient tracking corrects gradients by how far the model moved, which tells of them
# only where a step is a multiple of a gradient.
_OPTIONS: Final[dict[str, frozenset[Optimiser]]] = {
    "momentum": frozenset({"sgd"}),
    "momentum_kind": frozenset({"sgd"}),
    "tracking": frozenset({"sgd"}),
    "beta1": frozenset({"adam", "adamw"}),
    "beta2": frozenset({"adam", "adamw"}),
    "eps": frozenset({"adam", "adamw"}),
}


def check_optimiser(optimiser: Optimiser, said: Iterable[str]) -> None:
    """Raise UsageError for an option that was said and that this optimiser does not have."""
    for key in said:
        having = _OPTIONS.get(key)
        if having is not None and optimiser not in having:
            own = ", ".join(name for name, of in _OPTIONS.items() if optimiser in of)
            raise UsageError(
                f"train.{key} is for the optimiser {' and '.join(map(repr, sorted(having)))}; this one is "
                f"{optimiser!r}, which has {own}. Leave it out."
            )


def as_said(settings: TrainSettings) -> dict[str, Any]:
    """Return settings as a task's file would say them: without what other optimisers have, where nobody changed it."""
    usual = msgspec.to_builtins(TrainSettings())
    return {
        key: value
        for key, value in msgspec.to_builtins(settings).items()
        if settings.optimiser in _OPTIONS.get(key, {settings.optimiser}) or value != usual[key]
    }


def require_no_baseline(settings: TrainSettings) -> None:
    """Raise UsageError where a baseline, if there were one, would tell of records that are promised privacy."""
    if settings.dp is not None:
        raise UsageError("A baseline trains on the same records again, which `dp` does not count: leave one out.")


def bits_of(settings: TrainSettings) -> int:
    """Return to how many bits weights are rounded while they are trained; 0: not at all."""
    return {None: 0, "int8": 8, "int4": 4}[settings.quantise]


class Distil(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[distil]`: a model that the mesh serves teaches the task's model, on each node's own samples (`taught.py`).

    **Samples travel**: whoever serves the teacher's first layers sees them, its last layers what it answers. Only a
    node that has the teacher whole sends nothing; in a private task no other takes part.
    """

    teacher: Name  # of the mesh; a trained model, or a program that gives logits (values where those are predicted)
    temperature: Annotated[float, msgspec.Meta(gt=0, le=100)] = 2.0  # as `compression.distil` has it
    labels: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0  # weight of labels' loss; 0: they are not looked at


class Prune(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[prune]`: the least numbers of the large matrices become zeros while a task trains, everybody's the same.

    The share rises from the one round to the other, fast at first, and what is left then mends: leave it some rounds.
    How members come to the same zeros, `sparse.py` says.
    """

    share: Annotated[float, msgspec.Meta(gt=0, lt=1)]  # of their numbers that are 0 in the end
    kind: Literal["global", "layer"] = "layer"  # compared with all others, or with those of its own layer
    from_round: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0  # none before so many rounds are over
    to_round: Rounds  # the whole share when so many are


def check_prune(prune: Prune, policy: Policy, rounds: int) -> None:
    """Raise UsageError for pruning that a task of this policy, with so many rounds, cannot have."""
    if policy == "robust":
        raise UsageError(
            "prune: a robust task has no model that several nodes hold alike, so each would prune another one's zeros. "
            "Take the policy 'trusted' or 'private', or prune the trained model afterwards (`compression.prune`)."
        )
    if not prune.from_round < prune.to_round <= rounds:
        raise UsageError(
            f"prune: numbers go from round {prune.from_round} to round {prune.to_round}, in a task of {rounds} rounds: "
            "from_round has to be before to_round, and that not after the last."
        )


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a task may use at most; whatever is used up first ends it. Seconds and bytes are those of each node."""

    rounds: Rounds = 100
    seconds: Annotated[float, msgspec.Meta(gt=0, le=1e8)] | None = None  # since its first round, or since it came back
    bytes: Annotated[int, msgspec.Meta(gt=0, lt=2**53)] | None = None  # that it sends, likewise


class Stop(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When a task has done enough, before its budget is used up."""

    accuracy: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None  # that every node here reaches
    r2: Annotated[float, msgspec.Meta(gt=-1e6, le=1)] | None = None  # likewise, where values are predicted
    no_better: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None  # evaluations without a better mean


class Parts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Patterns of parameter names, as in ``layers.1.*``."""

    train: _Patterns = ("*",)  # all others are frozen, and do not travel
    local: _Patterns = ()  # trained here, and never leave
