"""The three policies of a task: which machine averages, and what cannot go with which.

`trusted` takes the mean of groups, `private` shows nobody anything but the sum of a group, `robust` mixes what is near
to one's own model. Private and robust exclude each other: to judge single models, somebody has to see them.
"""

import secrets
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final, Protocol

from ...gossip import messages as averaging_messages
from ...gossip import pull, robust
from ...gossip.averager import Averager
from ...gossip.codecs import CODECS
from ...gossip.events import Behind, Finished, Report, Send
from ...gossip.messages import INSTANCE_MAX
from ...gossip.private import messages as private_messages
from ...gossip.private.averager import GROUP_SIZES, MEMBERS_MIN, TOO_FEW, PrivateAverager
from ...mesh.errors import PeerError, UsageError
from ...mesh.identity import Identity, PeerId, verify
from ..picture import TaskRecord
from .settings import Policy, check_prune

CODEC: Final = "int8"  # of `trusted` and `robust`, where none is asked for
WORDS: Final = "float32"  # what a record says of `private`: 32-bit words
PURPOSE: Final = "private-survivors"
ROBUST_MEMBERS_MIN: Final = robust.MODELS_MIN + 1
_COUNTED: Final = (
    " Where a task does not say averaging.members, those with the data and the grant are counted that are here now:"
    " another device may not be up yet, or not have reached this one. Look at `lepton-node status`, or say how many to"
    " wait for (`--members`)."
)
MESSAGE_BYTES_MAX: Final = 8 * 1024 * 1024 - 65536  # of `exchange.MESSAGE_BYTES_MAX`, with room for what is around it


class Machine(Protocol):
    """What averages: an event in, effects out, and when it wants to be called again."""

    @property
    def round(self) -> int: ...
    @property
    def deadline(self) -> float: ...
    @property
    def running(self) -> bool: ...
    def handle(self, event: Any, now: float) -> Sequence[Send | Finished | Behind]: ...  # noqa: ANN401 - each its own
    def skip_to(self, round_: int) -> None: ...


WIRES: Final[dict[Policy, ModuleType]] = {"trusted": averaging_messages, "private": private_messages, "robust": pull}
"""What packs and unpacks the messages of each policy's machine."""


def check_policy(task: TaskRecord, dimension: int | None = None) -> None:
    """Raise UsageError for a task that contradicts itself, whoever stated it; ``dimension`` is what is averaged."""
    if task.policy == "private":
        _check_private(task)
    elif task.policy == "robust":
        _check_robust(task)
    if task.prune is not None:
        check_prune(task.prune, task.policy, task.rounds)
    size_bytes = _message_bytes(task, dimension or 0)
    if size_bytes > MESSAGE_BYTES_MAX:
        raise UsageError(
            f"The policy {task.policy!r} sends {size_bytes:,} bytes at once for {dimension:,} parameters; at most"
            f" {MESSAGE_BYTES_MAX:,} can travel. Take a smaller model, take less of the model ([parts] train)"
            + (", the codec int4" if task.policy == "robust" and task.codec != "int4" else "")
            + ", or the policy 'trusted', which sends it in pieces."
        )


def _check_private(task: TaskRecord) -> None:
    if task.codec != WORDS:
        raise UsageError(f"A private task cannot have the codec {task.codec!r}: it travels as 32-bit words.")
    if task.group_size not in GROUP_SIZES:
        sizes = " or ".join(map(str, GROUP_SIZES))
        raise UsageError(f"A private task has groups of {sizes}, not {task.group_size}: others could hide nobody.")
    if task.members_min < MEMBERS_MIN:
        why = f"{TOO_FEW}; of two, each would see the other's.{_COUNTED}"
        raise UsageError(f"It cannot begin with {task.members_min}: {why}")
    if task.peers != robust.PEERS:
        raise UsageError("A private task pulls from nobody: 'peers' is for 'robust', which has to see single models.")


def _check_robust(task: TaskRecord) -> None:
    if task.members_min < ROBUST_MEMBERS_MIN:
        raise UsageError(
            f"It cannot begin with {task.members_min}: a robust task needs {ROBUST_MEMBERS_MIN} members;"
            f" of fewer it cannot be said which is the odd one.{_COUNTED}"
        )
    if task.settings.tracking:
        raise UsageError("A robust task cannot have train.tracking: it corrects by a mean of all, which is not taken.")
    if task.settings.momentum_kind == "quasi_global":
        raise UsageError(
            "A robust task cannot have quasi_global momentum: it follows the mean of all, as bad ones push it."
        )
    if task.peers < ROBUST_MEMBERS_MIN - 1:
        raise UsageError(f"A robust task pulls from {ROBUST_MEMBERS_MIN - 1} others at least, not {task.peers}.")


def _message_bytes(task: TaskRecord, dimension: int) -> int:
    """Return the length of the longest message: the machines of two policies do not send in pieces."""
    match task.policy:
        case "private":
            return 4 * (-(-dimension // MEMBERS_MIN) + 1)
        case "robust" if task.codec in CODECS:
            return CODECS[task.codec].size_bytes(dimension)
        case _:
            return 0


def machine_for(
    task: TaskRecord, name: str, identity: Identity, *, mesh: bytes, dimension: int, first_round: int
) -> Machine:
    """Return what averages this task's rounds, from ``first_round`` on; ``name`` tells it from all other tasks."""
    me = identity.peer_id
    match task.policy:
        case "private":
            return PrivateAverager(
                me, name, mesh=mesh, dimension=dimension, group_size=task.group_size, first_round=first_round,
                secret=lambda: secrets.token_bytes(32),
                sign=lambda payload: identity.sign(PURPOSE, payload),
                verify=_has_signed,
            )  # fmt: skip
        case "robust":
            return pull.Puller(
                me, name, dimension=dimension, mix=robust.nearest_clipped, codec_name=task.codec, peers=task.peers,
                rng_seed=secrets.randbits(63),  # whom this node asks is for nobody to foresee
                first_round=first_round,
            )  # fmt: skip
        case _:
            return Averager(
                me, name, mesh=mesh, dimension=dimension, codec_name=task.codec, group_size=task.group_size,
                rng_seed=task.settings.seed, first_round=first_round, instance=1 + secrets.randbelow(INSTANCE_MAX),
            )  # fmt: skip


def _has_signed(peer: str, payload: bytes, signature: bytes) -> bool:
    try:
        verify(PeerId(peer), PURPOSE, payload, signature)
    except PeerError:
        return False
    return True


def is_whole(report: Report) -> bool:
    """Whether every part of a round's model is a mean of several: nothing in it is one node's own."""
    return bool(report.parts) and all(runs and all(len(run.contributors) > 1 for run in runs) for runs in report.parts)


def why_nothing(policy: Policy, me: str, report: Report) -> str:
    """Say why a private or robust round averaged nothing, if it did not."""
    if policy == "private" and not any(report.parts):
        return "; ".join(sorted({absence.why for absence in report.missing}))
    if policy == "robust":
        counted = [weight for runs in report.parts for run in runs for peer, weight in run.contributors if peer != me]
        if not any(counted):
            return f"a robust task needs {ROBUST_MEMBERS_MIN} members; {len(counted)} models of others came"
    return ""
