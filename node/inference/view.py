"""The picture of serving, read from the records: what ought to be served, who has it loaded, who should."""

import logging

from ...mesh.errors import UsageError
from ...mesh.identity import PeerId, short
from ...mesh.mesh import Mesh
from ..config import did_you_mean
from ..models import check_spec, layer_count, layer_sizes_bytes
from ..picture import MODEL, PROFILE, STAGE, ModelRecord, Profile, StageRecord, newest
from ..placement import Device, Plan, Run, place

log = logging.getLogger(__name__)


class View:
    """What one node reads about serving out of the records, afresh at each question."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def models(self) -> dict[str, ModelRecord]:
        """Return the models that ought to be served, by name; a description out of bounds is passed over."""
        found = {}
        for name, (record, model) in newest(self._mesh.live(MODEL, ModelRecord)).items():
            try:
                check_spec(model.spec)
                _check_layers(model)
                found[name] = model
            except UsageError as error:
                log.warning("%s published a model %r out of bounds: %s", short(record.owner), name, error)
        return found

    def model(self, name: str) -> ModelRecord:
        """Return one model. Raises UsageError that names the nearest one there is."""
        models = self.models()
        if name not in models:
            raise UsageError(f"No model {name!r} is served in this mesh.{did_you_mean(name, sorted(models))}")
        return models[name]

    def serving(self, name: str, version: int) -> dict[Run, list[str]]:
        """Return which peers have which run of a model's layers loaded now."""
        found: dict[Run, list[str]] = {}
        for record, stage in self._mesh.live(STAGE, StageRecord):
            if record.name == name and stage.version == version:
                found.setdefault((stage.first, stage.end), []).append(record.owner)
        return found

    def plans(self) -> dict[str, Plan]:
        """Compute who should load what, for all models in the order of their names, from the picture alone."""
        offers = {record.owner: profile.memory_bytes for record, profile in self._mesh.live(PROFILE, Profile)}
        stages = {(record.name, record.owner): stage for record, stage in self._mesh.live(STAGE, StageRecord)}
        plans = {}
        for name, model in sorted(self.models().items()):
            sizes = layer_sizes_bytes(model.spec)
            devices = []
            for peer, memory_bytes in offers.items():
                if not self._mesh.authority(peer).allows(f"infer:{name}"):
                    continue  # it could neither fetch the weights nor pass its results on
                held = stages.get((name, peer))
                holds = (held.first, held.end) if held else None
                devices.append(Device(peer=peer, memory_bytes=memory_bytes, holds=holds))
            plans[name] = plan = place(sizes, devices, copies=model.copies)
            for owner, (first, end) in plan.assigned.items():
                offers[PeerId(owner)] -= sum(sizes[first:end])
        return plans


def _check_layers(model: ModelRecord) -> None:
    if len(model.layers) != (count := layer_count(model.spec)):
        msg = f"it names {len(model.layers)} layers where its architecture has {count}"
        raise UsageError(msg)
