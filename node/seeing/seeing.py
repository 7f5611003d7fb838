"""What one node notes of itself and the mesh for its owner: figures, health, its load for all to see, the audit log."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import trio

from ...mesh.identity import PeerId
from ...mesh.mesh import Mesh
from ...mesh.revocations import Opened
from ..deployments import DEPLOYMENT, DeploymentRecord
from ..home import Home
from ..members import KnownMember
from ..picture import TASK, TaskRecord
from ..services.records import SERVICE, ServiceRecord
from .audit import Audit, Entry, read
from .health import Health, judged
from .load import LOAD, Gauge, LoadRecord, interval_s
from .measures import Measures

if TYPE_CHECKING:
    from ..node import Node

_FIRST_LOOK_S: Final = 2.0  # whoever opens the page of a new node sees how busy it is
_LEDGER_INTERVAL_S: Final = 5.0  # what is deployed changes by a person's hand
_ENTRIES_MAX: Final = 16  # of each kind at one look: no member fills the log in minutes

Deployed = tuple[str, str]  # what it is, as in 'model tales', and the owner of the record


class Seeing:
    """One node's notes."""

    def __init__(self, home: Home) -> None:
        self.measures = Measures()
        self.audit = Audit(home.path)
        self.stopping = False
        self.lines: dict[PeerId, tuple[float, float]] = {}  # bytes a second from and to peers, where somebody measured
        self._home = home
        self._deployed: dict[Deployed, str] | None = None

    def attach(self, mesh: Mesh) -> None:
        """Hear of joins, refusals and revocations from now on."""
        mesh.door.on_refused = self.audit.refused
        mesh.door.on_joined = lambda peer: self.audit.note("joined", who=peer, detail="with an invite of this device")
        mesh.revoking.on_revoked = self._revoked

    @contextmanager
    def running(self, release: str) -> Iterator[None]:
        """Note that the node runs, for as long as it does."""
        self.audit.note("started", name=release)
        try:
            yield
        finally:
            self.stopping = True
            self.audit.note("stopped")

    def _revoked(self, opened: Opened) -> None:
        said = opened.sentence
        self.audit.note("revoked", who=said.subject, by=said.issuer, detail=said.reason or str(opened))

    def appeared(self, me: PeerId, known: Iterable[KnownMember], before: Iterable[KnownMember]) -> None:
        """Note members that this node had not heard of: they joined through others."""
        seen = {me, *(member.peer for member in before)}
        for member in known:
            if member.peer not in seen and member.chain:
                self.audit.note("appeared", who=member.peer, device=member.device)

    # -- for ever -----------------------------------------------------------------------------------------------------

    async def run(self, node: "Node") -> None:
        """Say how busy this device is, and note what is deployed, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_load, node)
            nursery.start_soon(self._follow, node.mesh)

    async def _tell_load(self, node: "Node") -> None:
        gauge, said = Gauge(), LoadRecord()
        gauge.cpu()
        wait_s = _FIRST_LOOK_S
        while True:
            await trio.sleep(wait_s)
            wait_s = interval_s(len(node.mesh.present))
            now = gauge.look(said, sum(one.stage.sessions for one in node.sessions.host.loaded))
            if now != said:
                said = now
                node.mesh.publish(LOAD, "self", said)

    async def _follow(self, mesh: Mesh) -> None:
        """Note what is deployed and withdrawn, by whomever: it is in the picture."""
        while True:
            changed = mesh.changed
            self.note_deployed(deployed(mesh), {mesh.me, *mesh.present})
            await trio.sleep(_LEDGER_INTERVAL_S)
            await changed.wait()

    def note_deployed(self, now: Mapping[Deployed, str], here: Collection[str]) -> None:
        """Note what is new, and what its owner, being ``here``, states no more. At first the log says what is old."""
        before = noted(read(self._home.path)) if self._deployed is None else self._deployed
        new = [key for key in sorted(now) if before.get(key) != now[key]]
        gone = [key for key in sorted(before.keys() - now.keys()) if key[1] in here]
        for what, owner in new[:_ENTRIES_MAX]:
            self.audit.note("deployed", name=what, by=owner, detail=now[what, owner])
        for what, owner in gone[:_ENTRIES_MAX]:
            self.audit.note("withdrawn", name=what, by=owner)
        self._deployed = {key: said for key, said in before.items() if key not in gone} | dict(now)

    # -- health -------------------------------------------------------------------------------------------------------

    def health(self, node: "Node") -> Health:
        """Judge the node as it is now."""
        mesh, me = node.mesh, node.mesh.admission.me
        return judged(
            ended=mesh.admission.ended,
            expires=me.expires,
            now=time.time(),
            trouble={**node.serving.trouble, **node.sessions.host.trouble},
            away={place.address: place.trouble for place in mesh.finding.places},
            stopping=self.stopping,
        )


def noted(entries: Iterable[Entry]) -> dict[Deployed, str]:
    """Return what is deployed as an audit log has it."""
    found: dict[Deployed, str] = {}
    for entry in entries:
        if entry.what == "deployed":
            found[entry.name, entry.by] = entry.detail
        elif entry.what == "withdrawn":
            found.pop((entry.name, entry.by), None)
    return found


def deployed(mesh: Mesh) -> dict[Deployed, str]:
    """Return what ought to run: what it is, who said so, and in which version."""
    kinds: tuple[tuple[str, str, type[Any], Callable[[Any], str]], ...] = (
        ("model", DEPLOYMENT, DeploymentRecord, _model),
        ("task", TASK, TaskRecord, lambda task: f"version {task.version}"),
        ("service", SERVICE, ServiceRecord, _service),
    )
    return {
        (f"{word} {record.name}", record.owner): said(value)
        for word, kind, type_, said in kinds
        for record, value in mesh.live(kind, type_)
        if not getattr(value, "removed", False)
    }


def _model(record: DeploymentRecord) -> str:
    copies = "" if record.replicas == 1 else f", {record.replicas} copies"
    return f"{record.precision}{copies}, made of {record.manifest.digest[:8]}"


def _service(record: ServiceRecord) -> str:
    """Say what of a service ought to run. That an update is over is no news, so its revision does not count."""
    sharing = [its for its in record.releases if its.share]
    shares = [f"{its.version} {its.share} %" if len(sharing) > 1 else its.version for its in sharing]
    bound = f" to {record.replicas_max}" if record.replicas_max else ""
    only = f", on {', '.join(record.on)}" if record.on else ""
    return f"{', '.join(shares)}; {record.replicas}{bound} of it{only}"
