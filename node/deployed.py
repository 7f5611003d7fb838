"""What is deployed, and what would be, as plain data: sizes, stages, devices, expected speed. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from .config import size_text
from .deployments import DeploymentRecord
from .placement import Plan, Run


def described(
    name: str, record: DeploymentRecord, plan: Plan, devices: Mapping[str, str], serving: Mapping[Run, Sequence[str]]
) -> dict[str, Any]:
    """Return a deployment and its plan; ``devices`` are what peers are called, ``serving`` who has loaded what."""
    promised = record.sessions * record.positions
    return {
        "name": name,
        "version": record.version,
        "kind": record.kind,
        "precision": record.precision,
        "layers": len(record.weights_bytes),
        "weights_bytes": sum(map(record.run_bytes, plan.stages)) or sum(record.weights_bytes),
        "cache_bytes": sum(record.cache_bytes) * promised,
        "sessions": record.sessions,
        "positions": record.positions,
        "replicas": record.replicas,
        "objective": record.objective,
        "tokens_per_s": plan.tokens_per_s,
        "missing_bytes": plan.missing_bytes,
        "stages": [_stage(record, plan, stage, devices, serving) for stage in plan.stages],
    }


def shortage(missing_bytes: int, fits_at: str = "") -> str:
    """Say why a model is not loaded anywhere: how much memory is missing, and which precision would fit."""
    said = f"no devices that are here can hold it: {size_text(missing_bytes)} of memory for serving are missing"
    return f"{said}; at {fits_at} it would fit" if fits_at else said


def passed_over(name: str, devices: int) -> str:
    """Say of how many devices the memory is not used because their grants do not let them hold a model; "" of none."""
    if not devices:
        return ""
    of = "1 device that is here offers" if devices == 1 else f"{devices} devices that are here offer"
    return f"{of} memory and may not hold it, which takes an invite like `invite --role client,host:{name}`"


def is_loaded(plan: Plan | None, serving: Mapping[Run, Sequence[str]]) -> bool:
    """Whether every stage of a plan is loaded, as many times as it says."""
    if plan is None or not plan.stages:
        return False
    return all(set(plan.replicas(stage)) <= set(serving.get(stage, ())) for stage in plan.stages)


def _stage(
    record: DeploymentRecord,
    plan: Plan,
    stage: Run,
    devices: Mapping[str, str],
    serving: Mapping[Run, Sequence[str]],
) -> dict[str, Any]:
    peers = plan.replicas(stage)
    return {
        "first": stage[0],
        "end": stage[1],
        "bytes": record.run_bytes(stage),
        "peers": list(peers),
        "devices": [devices.get(peer, peer[-8:]) for peer in peers],
        "loaded": [peer for peer in peers if peer in serving.get(stage, ())],
    }
