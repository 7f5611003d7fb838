"""What a session is told of who serves its model, and, where nobody does, whether anybody is about to. Pure."""

from collections.abc import Mapping
from typing import Any, Protocol

from ...mesh.identity import PeerId
from ..deployed import shortage
from ..deployments import DeploymentRecord
from .asker import Picture
from .route import Run, reached


class _Planned(Protocol):
    @property
    def assigned(self) -> Mapping[Any, Run]: ...
    @property
    def missing_bytes(self) -> int: ...
    @property
    def fits_at(self) -> str: ...


class Pictured(Protocol):
    """What is read out of the records, afresh at each question."""

    def deployments(self) -> dict[str, DeploymentRecord]:
        """Return what ought to be served, by name."""

    def plans(self) -> Mapping[str, _Planned]:
        """Return who should load what, by name."""

    def serving(self, name: str, version: int) -> dict[Run, list[PeerId]]:
        """Return who has which run of layers loaded."""

    def arithmetics(self, name: str, version: int) -> dict[PeerId, str]:
        """Return what they say of how they round."""


def outlook(view: Pictured, name: str, version: int) -> Picture:
    """Return who serves a version of a model, and why nobody is about to serve what nobody serves."""
    serving, record = view.serving(name, version), view.deployments().get(name)
    if record is None or record.version != version:
        now = "it is not served any more" if record is None else f"version {record.version} of it is served now"
        return Picture(serving, now, for_good=True)
    layers = len(record.weights_bytes)
    if reached(serving, layers) == layers:
        return Picture(serving)
    plan = view.plans().get(name)
    if plan is None or not plan.missing_bytes:
        return Picture(serving)  # somebody is about to load it
    return Picture(serving, shortage(plan.missing_bytes, plan.fits_at))
