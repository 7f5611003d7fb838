"""What an operator does with services: deploy, scale, update, remove. From any node whose grant allows it.

Each is the whole deployment stated anew, with the next revision. Of two that are stated at once one counts, on all
nodes the same; the other's operator is told.
"""

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from ...mesh.errors import LeptonError, UsageError
from ...mesh.grants import DEPLOY
from ...mesh.identity import PeerId, short
from ...mesh.mesh import Mesh
from ..blobs.store import BlobStore
from ..config import require_name, sentence
from .bundling.bundle import pack_folder
from .bundling.bundles import brief_of
from .bundling.folder import read_manifest
from .bundling.signing import sign_release
from .deciding.outlook import Picture, outlook, picture_of
from .deciding.rollout import current, failure, is_done, settled
from .deciding.view import Deployed, ServiceView
from .errors import DoesNotStart
from .records import SERVICE, Release, ServiceRecord
from .spec import ServiceSpec

_WHOLE: Final = 100
_REVISION_MAX: Final = 2**53 - 1
_TELL_S: Final = 5.0
_SETTLE_S: Final = 1.0  # between two looks at updates for which nobody waits

Describe = Callable[[Path], Awaitable[ServiceSpec]]  # reads a folder's code, in a process of its own


class RolledBack(LeptonError):
    """A new version did not run on some device, and the one before it runs again everywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a deployment has come."""

    revision: int
    wanted: int
    ready: dict[str, int]  # by version
    missing: int  # instances for which no device has room
    failed: str  # why the newest version was taken back
    refused: dict[PeerId, str]  # devices that do not run the newest version, and why
    done: bool
    superseded: bool = False  # somebody else has stated the deployment anew meanwhile


class Operating:
    """One node's way to change what runs in the mesh."""

    def __init__(self, mesh: Mesh, view: ServiceView, store: BlobStore, describe: Describe) -> None:
        self._mesh = mesh
        self._view = view
        self._store = store
        self._describe = describe
        self._packing = trio.Lock()
        self._watched = Counter[str]()  # who waits for one states its end itself

    async def deploy(self, folder: Path, *, share: int = _WHOLE, update: bool = False, **terms: Any) -> str:  # noqa: ANN401
        """State that a folder's service ought to run, and return its name. ``terms`` are those of ServiceRecord.

        A version that runs already is replaced step by step, or with a ``share`` below 100 goes on beside the new one.
        With ``update`` there has to be one. Raises UsageError for a folder or terms that cannot be, Refused without
        the grant.
        """
        manifest = await trio.to_thread.run_sync(read_manifest, folder)
        spec = await self._describe(folder)
        require_name(spec.name, "service")
        self._require(spec.name)
        before = self._view.services().get(spec.name)
        if update and before is None:
            raise UsageError(f"No service {spec.name!r} is deployed; begin with `lepton-node service deploy`.")
        async with self._packing:
            pack = partial(pack_folder, folder, spec, leave_out=manifest.leave_out)
            data = await trio.to_thread.run_sync(pack)
            ref = await trio.to_thread.run_sync(self._store.put, data)
        signature = sign_release(self._mesh.identity, self._mesh.root, spec.name, spec.version, ref, spec.needs)
        release = Release(
            version=spec.version,
            bundle=ref,
            signer=self._mesh.me,
            signature=signature,
            needs=spec.needs,
            methods=tuple(map(brief_of, spec.methods)),
        )
        self._state(spec.name, self._with(spec.name, before, release, share), **terms)
        return spec.name

    def scale(self, name: str, replicas: int, *, replicas_max: int | None = None) -> None:
        """Have more or fewer of a service; with a bound it scales by itself. Raises UsageError, Refused."""
        record = self._service(name)
        self._require(name)
        releases = settled(record, self._view.hosted().get(name, {}))
        replaces = record.replaces if releases == record.releases else None
        changed = msgspec.structs.replace(record, releases=releases, replaces=replaces)
        self._state(name, changed, replicas=replicas, replicas_max=replicas_max)

    def share(self, name: str, version: str, share: int) -> None:
        """Give one of two versions that run side by side so many per cent of calls and replicas, the other the rest.

        With 100 the other goes, by the same steps as in an update; with 0 this one does. Raises UsageError, Refused.
        """
        record = self._service(name)
        self._require(name)
        if not 0 <= share <= _WHOLE:
            raise UsageError(f"A share is 0 to {_WHOLE} per cent of the calls, not {share}.")
        releases = settled(record, self._view.hosted().get(name, {}))
        versions = [its.version for its in releases]
        if version not in versions or len(versions) == 1:
            raise UsageError(
                f"{name!r} {version} has no other version beside it: {', '.join(versions)} runs. Deploy another with "
                "`lepton-node service deploy FOLDER --share P`."
            )
        at = versions.index(version)
        if not share:
            at, share = 1 - at, _WHOLE
        self._state(name, self._with(name, record, releases[at], share))

    def remove(self, name: str) -> None:
        """End a service everywhere. Raises UsageError when there is none, Refused."""
        record = self._service(name)
        self._require(name)
        if self._view.owners(name) == {self._mesh.me}:
            self._mesh.withdraw(SERVICE, name)
        else:  # an older word of somebody else's would count again
            self._state(name, msgspec.structs.replace(record, releases=(), replaces=None, removed=True))

    def progress(self, name: str, of: Deployed | None = None) -> Progress:
        """Say how far a deployment has come. Raises UsageError when there is none of that name."""
        known = self._view.known().get(name)
        if known is None:
            raise UsageError(f"No service {name!r} is deployed in this mesh.")
        found = progress_of(name, known, self.picture())
        return replace(found, superseded=of is not None and of != known)

    def stated(self, name: str) -> Deployed:
        """Return what was stated last of a service. Raises UsageError when there is none of that name."""
        known = self._view.known().get(name)
        if known is None:
            raise UsageError(f"No service {name!r} is deployed in this mesh.")
        return known

    async def watch(self, name: str, tell: Callable[[Progress], Awaitable[None]]) -> Progress:
        """Tell how a deployment comes to run, until it does. Raises RolledBack, UsageError when it counts no more."""
        self._watched[name] += 1
        try:
            return await self._watch(name, tell)
        finally:
            self._watched[name] -= 1
            self._watched = +self._watched

    async def _watch(self, name: str, tell: Callable[[Progress], Awaitable[None]]) -> Progress:
        of = self.stated(name)
        while True:
            changed = self._mesh.changed
            found = self.progress(name, of)
            await tell(found)
            if found.superseded:
                raise UsageError(f"{name!r} was stated anew meanwhile by {short(self.stated(name).owner)}: see `list`.")
            if found.failed:
                if of.owner == self._mesh.me:
                    self.settle(name)
                raise RolledBack(
                    f"{name!r} {of.record.releases[-1].version} was taken back, and the version before runs on: "
                    f"{found.failed} (what it printed: `lepton-node service logs {name}`)"
                )
            if found.refused and found.missing >= found.wanted > 0:
                raise DoesNotStart(f"{name!r} runs on no device. {'; '.join(found.refused.values())}")
            if found.done:
                if found.wanted and of.owner == self._mesh.me:
                    self.settle(name)
                return found
            with trio.move_on_after(_TELL_S):  # who watches and leaves is noticed when told something
                await changed.wait()

    def settle(self, name: str) -> None:
        """State a deployment without what its update has left behind: what failed, or what was replaced.

        So neither is tried again, nor gone back to, after all hosts were off.
        """
        record = self._service(name)
        releases = settled(record, self._view.hosted().get(name, {}))
        if record.replaces is not None and len(releases) == 1:
            self._state(name, msgspec.structs.replace(record, releases=releases, replaces=None))

    async def run(self) -> None:
        """State for good which of this node's updates are over, also where nobody waits for them, until cancelled.

        One that failed is left as it is, so that who looks sees why.
        """
        while True:
            changed = self._mesh.changed
            for name, known in self._view.known().items():
                if known.owner == self._mesh.me and known.record.replaces is not None and name not in self._watched:
                    found = self.progress(name)
                    if found.done and found.wanted and not found.failed:
                        self.settle(name)
            await trio.sleep(_SETTLE_S)
            await changed.wait()

    def picture(self) -> Picture:
        """Return all that the records say of services."""
        return picture_of(self._view)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _service(self, name: str) -> ServiceRecord:
        services = self._view.services()
        if name not in services:
            known = ", ".join(sorted(services)) or "none"
            raise UsageError(f"No service {name!r} is deployed in this mesh; there is {known}.")
        return services[name]

    def _require(self, name: str) -> None:
        self._mesh.authority(self._mesh.me).require(f"{DEPLOY}:{name}", time.time())

    def _with(self, name: str, before: ServiceRecord | None, release: Release, share: int) -> ServiceRecord:
        """Return the deployment with one release more, or with another share of it."""
        if before is None:
            return ServiceRecord(revision=0, releases=(release,))
        releases = settled(before, self._view.hosted().get(name, {}))
        others = [its for its in releases if its.bundle != release.bundle]
        if not others:
            return msgspec.structs.replace(before, releases=(release,), replaces=None)
        if any(its.version == release.version for its in others):
            raise UsageError(
                f"{name!r} {release.version} is deployed with other code; give the new one another version in its "
                "decorator."
            )
        # What runs everywhere already, and can be gone back to: not what an update under way has not proved yet.
        base = max(others, key=lambda its: (its.share, its is others[0])) if before.replaces is None else others[0]
        kept = msgspec.structs.replace(base, share=_WHOLE - share)
        newest = msgspec.structs.replace(release, share=share)
        return msgspec.structs.replace(before, releases=(kept, newest), replaces=before.revision)

    def _state(self, name: str, record: ServiceRecord, **terms: Any) -> None:  # noqa: ANN401
        known = self._view.known().get(name)
        # Milliseconds, so that what was removed and comes again is new; and above all that count.
        revision = max(int(time.time() * 1000), 0 if known is None else known.record.revision + 1)
        if known is not None and revision > _REVISION_MAX:
            raise UsageError(
                f"{short(known.owner)} has given {name!r} the last revision that there is: nobody can change it until "
                "that device is revoked."
            )
        said = {key: value for key, value in terms.items() if value is not None}
        fields = {key: getattr(record, key) for key in record.__struct_fields__}
        fields |= said | {"revision": revision}
        if "replicas_max" in terms:
            fields["replicas_max"] = terms["replicas_max"]
        if fields["replicas"] == 0 and fields["replicas_max"] is None:
            fields["replicas_max"] = 1  # else nothing could ever wake it
        bound = fields["replicas_max"]
        if bound is not None and bound < fields["replicas"]:
            raise UsageError(f"At most {bound} replicas are fewer than the {fields['replicas']} that there are to be.")
        try:
            checked = msgspec.convert(fields, ServiceRecord, from_attributes=True)
        except msgspec.ValidationError as error:
            raise UsageError(f"{sentence(error)}.") from error
        self._mesh.publish(SERVICE, name, checked, durable=True)


def progress_of(name: str, known: Deployed, picture: Picture) -> Progress:
    """Read out of a picture how far a deployment has come."""
    record, hosted = known.record, picture.hosted.get(name, {})
    ready: dict[str, int] = {}
    for its in hosted.values():
        for instance in its.instances:
            if instance.state == "ready":
                ready[instance.version] = ready.get(instance.version, 0) + 1
    if record.removed or not record.releases:
        done = not any(its.instances for its in hosted.values())
        return Progress(revision=record.revision, wanted=0, ready=ready, missing=0, failed="", refused={}, done=done)
    view = outlook(picture)
    newest = record.releases[-1].bundle.digest
    return Progress(
        revision=record.revision,
        wanted=view.goals[name].total,
        ready=ready,
        missing=view.missing(name),
        failed=failure(record, hosted),
        refused={
            peer: its.refused[newest]
            for peer, its in sorted(hosted.items())
            if current(record, its) and newest in its.refused
        },
        done=is_done(view.goals[name], hosted),
    )
