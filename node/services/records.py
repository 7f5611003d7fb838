"""What nodes say of services: what ought to run, and what runs here. Records of the picture; nobody owns a service.

Any node whose grant allows it may scale, update or remove a service: it states the whole deployment again with a higher
revision. Of equal names the highest revision counts, then the owner's id, so all nodes follow the same one.
"""

from typing import Annotated, Final, Literal

import msgspec

from ...mesh.identity import SIGNATURE_BYTES, PeerId
from ...mesh.messages import Message, Name, Natural, Sha256, Text
from ..deployments import BlobRef
from .spec import METHODS_MAX, MethodBrief, Needs, VersionText

SERVICE: Final = "service"
HOSTED: Final = "hosted"
RELEASES_MAX: Final = 3  # the one that runs, the one that comes, one beside them
REPLICAS_MAX: Final = 64
INSTANCES_MAX: Final = 32  # of one service on one device
LABELS_MAX: Final = 16
QUEUE_MS_MAX: Final = 2.0**40  # what no call waits; and no NaN, with which nobody could reckon

InstanceId = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,63}\Z")]
State = Literal["starting", "ready", "draining", "failed"]


class Release(Message, frozen=True, kw_only=True):
    """One version of a service: its bundle, and the signature of somebody who may deploy."""

    version: VersionText
    bundle: BlobRef
    signer: PeerId
    signature: Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
    needs: Needs
    methods: Annotated[tuple[MethodBrief, ...], msgspec.Meta(min_length=1, max_length=METHODS_MAX)]
    share: Annotated[int, msgspec.Meta(ge=0, le=100)] = 100  # of the calls, in per cent of all shares


class ServiceRecord(Message, frozen=True, kw_only=True):
    """A service that ought to run (durable; record name: the service's)."""

    revision: Natural
    releases: Annotated[tuple[Release, ...], msgspec.Meta(max_length=RELEASES_MAX)]  # the last is the newest
    replicas: Annotated[int, msgspec.Meta(ge=0, le=REPLICAS_MAX)] = 1  # at least
    replicas_max: Annotated[int, msgspec.Meta(ge=1, le=REPLICAS_MAX)] | None = None  # with a bound it scales by itself
    queue_ms: Annotated[float, msgspec.Meta(gt=0, le=60_000)] = 50.0  # a call may wait for so long before it scales up
    idle_s: Annotated[float, msgspec.Meta(gt=0, le=7 * 86400)] = 300.0  # without a call before it scales down
    on: Annotated[tuple[Name, ...], msgspec.Meta(max_length=LABELS_MAX)] = ()  # labels that a host must have
    replaces: Natural | None = None  # the revision before a rolling update, which it goes back to when it fails
    removed: bool = False


class InstanceSaid(Message, frozen=True, kw_only=True):
    """One instance as its host sees it."""

    id: InstanceId
    bundle: Sha256
    version: VersionText
    state: State
    reason: Text = ""  # why it failed
    running: Natural = 0  # calls, coarse: the exact load comes with each answer
    queue_ms: Annotated[float, msgspec.Meta(ge=0, le=QUEUE_MS_MAX)] = (
        0.0  # that calls lately waited, smoothed and coarse
    )
    restarts: Natural = 0
    quiet: bool = False  # nobody has called it for as long as the deployment's `idle_s`


class HostedRecord(Message, frozen=True, kw_only=True):
    """What one device runs of a service (record name: the service's)."""

    revision: Natural  # of the deployment that it follows,
    by: PeerId | None = None  # and who stated that
    instances: Annotated[tuple[InstanceSaid, ...], msgspec.Meta(max_length=INSTANCES_MAX)] = ()
    # Bundles of an update that could not be run, here or by another's word, and why: who sees one goes back.
    failed: Annotated[dict[Sha256, Text], msgspec.Meta(max_length=RELEASES_MAX)] = msgspec.field(default_factory=dict)
    # Bundles that this device does not run, by its configuration or for what it lacks, and why: others run them.
    refused: Annotated[dict[Sha256, Text], msgspec.Meta(max_length=RELEASES_MAX)] = msgspec.field(default_factory=dict)
    # How many replicas there ought to be, by its own scaling: that of the live host of the smallest id counts.
    wanted: Annotated[int, msgspec.Meta(ge=0, le=REPLICAS_MAX)] | None = None


class Offering(Message, frozen=True, kw_only=True):
    """What a device gives to services (record `services`, name 'self'); no record: it hosts none."""

    memory_bytes: Natural
    cores: Annotated[float, msgspec.Meta(ge=0)]
    labels: Annotated[tuple[Name, ...], msgspec.Meta(max_length=LABELS_MAX)] = ()
    devices: Annotated[tuple[Name, ...], msgspec.Meta(max_length=LABELS_MAX)] = ()


OFFERING: Final = "services"
