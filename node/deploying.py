"""Deploying a model: its files made known as blobs, what it would take worked out and planned, then the record."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from ..mesh.errors import LeptonError, Refused, UsageError
from ..mesh.identity import short
from ..mesh.mesh import Mesh
from .blobs.store import BlobStore
from .config import check_keys, check_values, require_name, sentence, size_text
from .deployed import passed_over
from .deployments import DEPLOYMENT, DeploymentRecord
from .inference.planner import Planner
from .placement import Plan
from .terms import RecordOf, Terms

if TYPE_CHECKING:
    from torch import Tensor, nn

_NAME_CHARACTERS_MAX: Final = 64


class DoesNotFit(LeptonError):
    """The devices that are here cannot hold the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What will be served, and by whom as things are now."""

    name: str
    record: DeploymentRecord
    plan: Plan


class Deploying:
    """One node's way to put models into the mesh. ``reading`` bounds the folders that are read at once to one."""

    def __init__(self, mesh: Mesh, view: Planner, blobs: BlobStore, traced: Path) -> None:
        """``traced`` is a folder for what encoders are turned into, to be served from there."""
        self._mesh = mesh
        self._view = view
        self._blobs = blobs
        self._traced = traced
        self._reading = trio.Lock()

    async def offer(self, source: str | Path, *, name: str = "", terms: Mapping[str, Any] | None = None) -> Offer:
        """Make a model's files known to the mesh and plan it. Nothing is served before `accept`.

        ``terms`` are those of `Terms` that are given. Raises UsageError for a model or terms that cannot be, Refused
        without the grant, DoesNotFit with what is missing.
        """
        name = name or name_for(source)

        def read() -> RecordOf:
            from .sources import of_folder  # torch, in the thread that needs it

            return of_folder(self._blobs, source, self._traced / name)

        return await self._offered(read, name, terms)

    async def offer_module(
        self,
        module: "nn.Module",
        example: "Sequence[Tensor]",
        name: str,
        *,
        sizes: Mapping[str, tuple[int, int]] | None = None,
        dims: Sequence[Mapping[int, str]] | None = None,
        terms: Mapping[str, Any] | None = None,
    ) -> Offer:
        """Trace a module (see `programs.trace`), and go on as `offer` does."""

        def read() -> RecordOf:
            from .sources import of_module  # torch, in the thread that needs it

            return of_module(self._blobs, module, example, self._traced / name, sizes=sizes, dims=dims)

        return await self._offered(read, name, terms)

    async def _offered(self, read: Callable[[], RecordOf], name: str, terms: Mapping[str, Any] | None) -> Offer:
        agreed = _terms(terms or {})
        require_name(name, "model")
        self._require_grant(name)
        if name in self._view.models():
            raise UsageError(f"A model that was trained here is called {name!r}; give another name.")
        async with self._reading:
            record_of = await trio.to_thread.run_sync(read)
        record = record_of(agreed, self._next_version(name))
        if agreed.precision == "auto" and record.kind == "causal_lm":
            precision = await self._view.precision(name, record)
            record = record_of(msgspec.structs.replace(agreed, precision=precision), record.version)
        offer = Offer(name=name, record=record, plan=await self._view.forecast(name, record))
        if offer.plan.missing_bytes:
            raise DoesNotFit(_missing(offer, passed_over(name, len(self._view.barred(name)))))
        return offer

    def _require_grant(self, name: str) -> None:
        """Raise Refused unless this node may deploy a model of a name: as for one that is trained."""
        me = self._mesh.authority(self._mesh.me)
        try:
            me.require(f"train:{name}", time.time())
        except Refused as error:
            if me.allows(f"train:{name}"):  # it has ended
                raise
            more = f"`invite --role client,host:{name}` lets a client hold layers of it, `train:{name}` serve it."
            raise Refused(f"{error} {more}") from error

    def accept(self, offer: Offer) -> None:
        """Have the mesh serve what was offered."""
        self._mesh.publish(DEPLOYMENT, offer.name, offer.record, durable=True)

    def withdraw(self, name: str) -> None:
        """Serve a model no longer. Raises UsageError when this node did not deploy it."""
        owners = {record.owner for record, _ in self._mesh.live(DEPLOYMENT, DeploymentRecord) if record.name == name}
        if not owners:
            raise UsageError(f"No model {name!r} is deployed in this mesh.")
        if self._mesh.me not in owners:
            raise UsageError(f"{name!r} was deployed by {', '.join(sorted(map(short, owners)))}: withdraw it there.")
        self._mesh.withdraw(DEPLOYMENT, name)

    def _next_version(self, name: str) -> int:
        """Milliseconds, so that what was withdrawn and comes again is new; and above all that are known."""
        known = self._view.deployments().get(name)  # of those who may deploy it: others could take the highest
        return max(int(time.time() * 1000), 0 if known is None else known.version + 1)


def _missing(offer: Offer, barred: str) -> str:
    record, plan = offer.record, offer.plan
    caches = sum(record.cache_bytes) * record.sessions * record.positions
    weights = record.run_bytes((0, len(record.weights_bytes)))
    said = (
        f"The devices that are here cannot hold {offer.name!r} at {record.precision}: it takes "
        f"{size_text(weights)} of weights and {size_text(caches)} for {record.sessions} sessions of "
        f"{record.positions} positions, and {size_text(plan.missing_bytes)} of memory for serving are missing."
    )
    if barred:
        said = f"{said} {barred}."
    if plan.fits_at:
        return f"{said} At {plan.fits_at} it would fit."
    return f"{said} Add a device, give them more memory (`up --memory`), or promise fewer sessions or positions."


def name_for(source: str | Path) -> str:
    """Return a name for the mesh out of a folder's or a model's: 'Qwen/Qwen3-0.6B' is served as 'qwen3-0.6b'.

    Raises UsageError when nothing is left of it.
    """
    folder = Path(source).expanduser()
    last = folder.resolve().name if folder.is_dir() else str(source).rpartition("/")[2]
    name = re.sub(r"[^a-z0-9._-]+", "-", last.lower()).strip("-._")[:_NAME_CHARACTERS_MAX]
    if not name:
        raise UsageError(f"No name can be made of {last[:80]!r}; give one with --name.")
    return name


def _terms(given: Mapping[str, Any]) -> Terms:
    """Check terms. Raises UsageError that names the one that is wrong."""
    said = dict(given)
    check_keys("serve", said, Terms)
    check_values("serve", said, Terms)
    try:
        return msgspec.convert(said, Terms)
    except msgspec.ValidationError as error:
        raise UsageError(f"{sentence(error)}.") from error
