"""What one node reads about services out of the records: what ought to run, what runs, who offers what.

Pure, but for the clock by which grants end.

Invariant: a deployment counts only while its owner may deploy that service. Who may not can publish what it likes,
with any revision: no node takes notice. Of those that count, the highest revision and then the owner's id decides.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from ....mesh.grants import HOST, Authority
from ....mesh.identity import PeerId, short
from ....mesh.records import Record
from ..bundling.admitting import may_deploy
from ..records import HOSTED, OFFERING, SERVICE, HostedRecord, Offering, ServiceRecord

# Every node places all of them whenever anything changes.
SERVICES_PER_OWNER_MAX: Final = 64

T = TypeVar("T")

log = logging.getLogger(__name__)


class Members(Protocol):
    """What is read of a mesh."""

    def live(self, kind: str, value: type[T]) -> list[tuple[Record, T]]:
        """Return what members that are here say of one kind."""

    def authority(self, peer: PeerId) -> Authority:
        """Return what a member may do. Raises KeyError for one that was never met."""


@dataclass(frozen=True, slots=True)
class Deployed:
    """A deployment that counts, and who stated it last."""

    record: ServiceRecord
    owner: PeerId


class ServiceView:
    """One node's reading of services, afresh at each question."""

    def __init__(self, mesh: Members, clock: Callable[[], float] = time.time) -> None:
        """``clock`` tells Unix seconds: grants end."""
        self._mesh = mesh
        self._clock = clock

    def authority(self, peer: PeerId) -> Authority:
        """Return what a member may do now. Raises KeyError for one that was never met."""
        return self._mesh.authority(peer).at(self._clock())

    def known(self) -> dict[str, Deployed]:
        """Return what was last said of each service by whom may say it, removed ones too."""
        found: dict[str, Deployed] = {}
        count: Counter[PeerId] = Counter()
        said = self._mesh.live(SERVICE, ServiceRecord)
        for record, deployment in sorted(said, key=lambda pair: (pair[0].name, pair[0].owner)):
            if not may_deploy(self.authority, record.owner, record.name):
                log.debug("%s may not deploy %r: passed over", short(record.owner), record.name)
                continue
            count[record.owner] += 1
            before = found.get(record.name)
            ranks = before is None or (deployment.revision, record.owner) > (before.record.revision, before.owner)
            if ranks and count[record.owner] <= SERVICES_PER_OWNER_MAX:
                found[record.name] = Deployed(deployment, record.owner)
        return found

    def owners(self, name: str) -> set[PeerId]:
        """Return who has said something of a service and may."""
        said = self._mesh.live(SERVICE, ServiceRecord)
        return {
            record.owner for record, _ in said if record.name == name and may_deploy(self.authority, record.owner, name)
        }

    def services(self) -> dict[str, ServiceRecord]:
        """Return the deployments that ought to run, by name."""
        known = self.known().items()
        return {name: its.record for name, its in known if not its.record.removed and its.record.releases}

    def hosted(self) -> dict[str, dict[PeerId, HostedRecord]]:
        """Return who says what of its instances, by service; only of those who may run it: others' words are none."""
        found: dict[str, dict[PeerId, HostedRecord]] = {}
        for record, said in self._mesh.live(HOSTED, HostedRecord):
            if self.may_host(record.owner, record.name):
                found.setdefault(record.name, {})[record.owner] = said
        return found

    def offerings(self) -> dict[PeerId, Offering]:
        """Return what the devices that are here give to services."""
        return {record.owner: its for record, its in self._mesh.live(OFFERING, Offering)}

    def may_host(self, peer: PeerId, service: str) -> bool:
        """Whether a member may run a service, and so see what it is asked, say how it goes, and get its bundle."""
        try:
            return self.authority(peer).allows(f"{HOST}:{service}")
        except KeyError:
            return False
