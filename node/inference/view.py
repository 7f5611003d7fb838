"""The picture of serving, read from the records: what ought to be served, who has it loaded, who should. Pure."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final, Protocol, TypeVar

from ...mesh.errors import UsageError
from ...mesh.grants import HOST, Authority
from ...mesh.identity import PeerId, short
from ...mesh.records import Record
from ..config import did_you_mean
from ..deployments import DEPLOYMENT, DeploymentRecord
from ..links import LINKS, LinksRecord, links_of
from ..picture import MODEL, PROFILE, STAGE, ModelRecord, Profile, StageRecord, newest
from ..placement import Links, Plan, Run
from ..planning import SPEED, Offer, Small, SpeedRecord, plans
from ..shapes import check_spec, layer_count, layer_sizes_bytes

# Every node plans all of them when anything changes, in a thread (`planner.py`): one of a lying record's 256 uneven
# layers took up to 2.7 s.
DEPLOYMENTS_PER_OWNER_MAX: Final = 16

T = TypeVar("T")
Asked = tuple[dict[str, Small], dict[str, DeploymentRecord], list[Offer], Links]  # what `plans` takes

log = logging.getLogger(__name__)


class Pictured(Protocol):
    """What is read of a mesh."""

    def live(self, kind: str, value: type[T]) -> list[tuple[Record, T]]:
        """Return what members that are here say of one kind."""

    def authority(self, peer: PeerId) -> Authority:
        """Return what a member may do. Raises KeyError for one that was never met."""


class View:
    """What one node reads about serving out of the records, afresh at each question."""

    def __init__(self, mesh: Pictured) -> None:
        self._mesh = mesh
        self._planned_from: object = None
        self._planned: dict[str, Plan] = {}

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

    def deployments(self) -> dict[str, DeploymentRecord]:
        """Return the deployments that ought to be served, by name; what makes no sense is passed over.

        Only who has the grant to train a model of that name may deploy one, and of one owner its first ones count.
        """
        found = {}
        for name, (record, deployment) in newest(self._allowed()).items():
            if len(deployment.cache_bytes) in {0, len(deployment.weights_bytes)}:
                found[name] = deployment
            else:
                log.warning("%s deployed %r with caches for other layers than it has", short(record.owner), name)
        return found

    def _allowed(self) -> Iterator[tuple[Record, DeploymentRecord]]:
        count: Counter[PeerId] = Counter()
        said = self._mesh.live(DEPLOYMENT, DeploymentRecord)
        for record, deployment in sorted(said, key=lambda pair: (pair[1].version, pair[0].name)):
            if self._may(record.owner, f"train:{record.name}") and count[record.owner] < DEPLOYMENTS_PER_OWNER_MAX:
                count[record.owner] += 1
                yield record, deployment

    def _may(self, peer: PeerId, capability: str) -> bool:
        try:
            return self._mesh.authority(peer).allows(capability)
        except KeyError:  # never met
            return False

    def serving(self, name: str, version: int) -> dict[Run, list[PeerId]]:
        """Return which peers have which run of a model's layers loaded now; only of those who may hold them."""
        found: dict[Run, list[PeerId]] = {}
        for record, stage in self._mesh.live(STAGE, StageRecord):
            if record.name == name and stage.version == version and self._may_hold(record.owner, name):
                found.setdefault((stage.first, stage.end), []).append(record.owner)
        return found

    def _may_hold(self, peer: PeerId, name: str) -> bool:
        try:
            return may_hold(self._mesh.authority(peer), name)
        except KeyError:  # never met
            return False

    def barred(self, name: str) -> list[PeerId]:
        """Return who offers memory here and may not hold layers of a model."""
        offered = self._mesh.live(PROFILE, Profile)
        return [one.owner for one, said in offered if said.memory_bytes and not self._may_hold(one.owner, name)]

    def arithmetics(self, name: str, version: int) -> dict[PeerId, str]:
        """Return how those peers round, as they say."""
        return {
            record.owner: stage.arithmetic
            for record, stage in self._mesh.live(STAGE, StageRecord)
            if record.name == name and stage.version == version and self._may_hold(record.owner, name)
        }

    def plans(self) -> dict[str, Plan]:
        """Compute who should load what, for all models and deployments together, from the picture alone."""
        asked = self.asked()
        if asked != self._planned_from:  # most news is not about what plans are made of
            self._planned_from, self._planned = asked, plans(*asked)
        return dict(self._planned)

    def asked(self, more: Mapping[str, DeploymentRecord] | None = None) -> Asked:
        """Return what plans are made of, with some deployments more: all of it copies, to be read in any thread."""
        deployments = {**self.deployments(), **(more or {})}
        return self._smalls(), deployments, self.offers(set(deployments)), self.links()

    def _smalls(self) -> dict[str, Small]:
        return {
            name: Small(weights_bytes=tuple(layer_sizes_bytes(model.spec)), copies=model.copies)
            for name, model in self.models().items()
        }

    def offers(self, names: set[str]) -> list[Offer]:
        """Return what the devices that are here offer to deployments of these names and to all trained models."""
        names = names | set(self.models())
        speeds = {record.owner: said.speeds for record, said in self._mesh.live(SPEED, SpeedRecord)}
        holds: dict[PeerId, dict[str, Run]] = {}
        for record, stage in self._mesh.live(STAGE, StageRecord):
            holds.setdefault(record.owner, {})[record.name] = (stage.first, stage.end)
        found = []
        for record, profile in self._mesh.live(PROFILE, Profile):
            authority = self._mesh.authority(record.owner)
            may = frozenset(name for name in names if may_hold(authority, name))
            found.append(
                Offer(
                    peer=record.owner,
                    memory_bytes=profile.memory_bytes,
                    speeds=speeds.get(record.owner, {}),
                    holds=holds.get(record.owner, {}),
                    may=may,
                )
            )
        return sorted(found, key=lambda offer: offer.peer)

    def links(self) -> Links:
        """Return what lies between the devices."""
        said = {record.owner: seen for record, seen in self._mesh.live(LINKS, LinksRecord)}
        return links_of(said)


def may_hold(authority: Authority, name: str) -> bool:
    """Whether a member may hold layers of a model, and so see what passes through them and answer for them.

    Without `infer:NAME` it could neither fetch the weights nor pass its results on.
    """
    return authority.allows(f"infer:{name}") and authority.allows(f"{HOST}:{name}")


def _check_layers(model: ModelRecord) -> None:
    if len(model.layers) != (count := layer_count(model.spec)):
        msg = f"it names {len(model.layers)} layers where its architecture has {count}"
        raise UsageError(msg)
