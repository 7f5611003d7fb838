"""Plans for all models that ought to be served, from what records say. Pure: equal records, equal plans on every node.

Memory is shared: the models that were trained here come first (they are small), then deployments, by name.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from ..mesh.messages import Message, Natural
from .deployments import DeploymentRecord, Precision
from .placement import Device, Job, Links, Plan, Run, place

SPEED: Final = "speed"
BATCH: Final = 8  # sessions in one step, when many fill a pipeline
PRECISIONS: Final[tuple[Precision, ...]] = ("float32", "bfloat16", "int8", "int4")

# What two weights take in memory, in bits, with their part of the scales (one of 16 bits for 32 weights).
BITS: Final[Mapping[Precision, int]] = {"float32": 64, "bfloat16": 32, "int8": 17, "int4": 9}

# Records may say anything up to 2^53; sums and products of plans have to stay within 63 bits.
_LAYER_BYTES_MAX: Final = 2**53
_LAYER_KIB_MAX: Final = 2**24
_WIDTH_BYTES_MAX: Final = 2**30
_NS_MAX: Final = 2**30
_MIB_KIB: Final = 1024
# What a precision has to gain over the next better one to be taken of itself: less could be the benchmark's error.
_GAIN: Final = 1.15


class Speed(Message, frozen=True, kw_only=True):
    """What one device takes for a step through weights of one precision, coarsely."""

    mib_ns: Natural  # for each MiB of weights, one session in the step
    mib_many_ns: Natural  # the same with BATCH sessions
    layer_ns: Natural = 0  # for each layer besides


class SpeedRecord(Message, frozen=True, kw_only=True):
    """How fast a device is at what language models do (record name: 'self')."""

    speeds: dict[Precision, Speed]


# A device that has not said anything yet: 5 GB/s, half of what one slow core reads.
UNKNOWN: Final = Speed(mib_ns=200_000, mib_many_ns=400_000, layer_ns=50_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One device that may serve."""

    peer: str
    memory_bytes: int
    speeds: Mapping[Precision, Speed] = field(default_factory=dict)
    holds: Mapping[str, Run] = field(default_factory=dict)  # by model
    may: frozenset[str] | None = None  # serve these models; None: all


@dataclass(frozen=True, slots=True, kw_only=True)
class Small:
    """A model that was trained here: nobody has measured it, and a copy more of it costs little."""

    weights_bytes: tuple[int, ...]
    copies: int


def plans(
    smalls: Mapping[str, Small], deployments: Mapping[str, DeploymentRecord], offers: Iterable[Offer], links: Links
) -> dict[str, Plan]:
    """Plan all models, one after the other, each in the memory that is left. Of equal names the small one counts."""
    known = sorted(offers, key=lambda offer: offer.peer)
    left = {offer.peer: offer.memory_bytes for offer in known}
    found = {}
    for name in [*sorted(smalls), *sorted(set(deployments) - set(smalls))]:
        able = [replace(offer, memory_bytes=left[offer.peer]) for offer in known if _may(offer, name)]
        if name in smalls:
            small = smalls[name]
            job = Job(weights_bytes=small.weights_bytes, copies=small.copies, spare=True)
            plan = place(job, [_device(offer, name, None) for offer in able])  # nobody measured it: all links alike
        else:
            job = job_of(deployments[name])
            plan = plan_deployment(name, deployments[name], able, links)
        found[name] = plan
        for peer, run in plan.assigned.items():
            left[peer] -= job.run_bytes(run)
    return found


def _may(offer: Offer, name: str) -> bool:
    return offer.may is None or name in offer.may


def plan_deployment(name: str, deployment: DeploymentRecord, offers: Iterable[Offer], links: Links) -> Plan:
    """Plan one deployment; one that does not fit says in which precision it would."""
    known = list(offers)
    plan = place(job_of(deployment), [_device(offer, name, deployment) for offer in known], links)
    if not plan.missing_bytes:
        return plan
    for precision in PRECISIONS[PRECISIONS.index(deployment.precision) + 1 :]:
        smaller = at_precision(deployment, precision)
        if not place(job_of(smaller), [_device(offer, name, smaller) for offer in known], links).missing_bytes:
            return replace(plan, fits_at=precision)
    return plan


def choose_precision(name: str, deployment: DeploymentRecord, offers: Iterable[Offer], links: Links) -> Precision:
    """Say at which precision a model is served best, given as it is stored. Asked once, by whoever deploys it.

    The quickest that fits is taken, for a less exact one only if it gains enough; int4, which changes what a model
    says, only when nothing else fits. When nothing fits at all, int4 lacks least.
    """
    known, best = list(offers), None
    for precision in PRECISIONS[PRECISIONS.index(deployment.precision) :]:
        if best is not None and precision == "int4":
            break
        plan = plan_deployment(name, at_precision(deployment, precision), known, links)
        if not plan.missing_bytes and (best is None or plan.tokens_per_s > best[0] * _GAIN):
            best = (plan.tokens_per_s, precision)
    return best[1] if best is not None else "int4"


def at_precision(deployment: DeploymentRecord, precision: Precision) -> DeploymentRecord:
    """Return the same model with its weights at another precision, their bytes taken from the ratio."""
    before, after = BITS[deployment.precision], BITS[precision]
    weights = tuple(size * after // before for size in deployment.weights_bytes)
    return DeploymentRecord(
        version=deployment.version, kind=deployment.kind, manifest=deployment.manifest, precision=precision,
        weights_bytes=weights, tied_bytes=deployment.tied_bytes * after // before, cache_bytes=deployment.cache_bytes,
        width_bytes=deployment.width_bytes, replicas=deployment.replicas, sessions=deployment.sessions,
        positions=deployment.positions, objective=deployment.objective,
    )  # fmt: skip


def job_of(deployment: DeploymentRecord) -> Job:
    """Say what a deployment asks for. A layer costs its weights, which a step reads once, whoever is in the batch.

    The first layer of a language model is a table in which a step reads one row for each session.
    """
    promised = deployment.sessions * deployment.positions
    weights = tuple(min(size, _LAYER_BYTES_MAX) for size in deployment.weights_bytes)
    units = [min(size >> 10, _LAYER_KIB_MAX) for size in weights]
    if deployment.kind == "causal_lm":
        units[0] = 0
    return Job(
        weights_bytes=weights,
        tied_bytes=min(deployment.tied_bytes, weights[-1]) if len(weights) > 1 else 0,
        cache_bytes=tuple(min(size * promised, _LAYER_BYTES_MAX) for size in deployment.cache_bytes),
        units=tuple(units),
        width_bytes=min(deployment.width_bytes, _WIDTH_BYTES_MAX),
        batch=BATCH if deployment.objective == "throughput" else 1,
        copies=deployment.replicas,
        objective=deployment.objective,
    )


def _device(offer: Offer, name: str, deployment: DeploymentRecord | None) -> Device:
    """Return what one device would take for this model; of a small one nobody knows."""
    holds = offer.holds.get(name)
    if deployment is None:
        return Device(peer=offer.peer, memory_bytes=offer.memory_bytes, holds=holds)
    speed = offer.speeds.get(deployment.precision, UNKNOWN)
    mib_ns = speed.mib_many_ns if deployment.objective == "throughput" else speed.mib_ns
    return Device(
        peer=offer.peer,
        memory_bytes=offer.memory_bytes,
        table=((_MIB_KIB, min(max(mib_ns, 1), _NS_MAX)),),
        layer_ns=min(speed.layer_ns, _NS_MAX),
        holds=holds,
    )
