"""The toy language model of a scenario: what it takes, what devices say of it, and how the deployed view reads that.

The kinds are those of real nodes behind a prefix: what is said of the toy chain (`picture.py`) is beside them.
"""

from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import msgspec

from ..mesh.errors import PeerError
from ..mesh.grants import Authority
from ..mesh.identity import PeerId
from ..mesh.records import Record
from ..node.deployments import DEPLOYMENT, BlobRef, DeploymentRecord
from ..node.picture import PROFILE, Profile
from .sections import Count, Number, Period, Seconds, Section
from .toy import POSITION_BYTES

if TYPE_CHECKING:
    from .device import Device

KIND: Final = "language-"
NAME: Final = "tale"

T = TypeVar("T")


class Language(Section, frozen=True, kw_only=True):
    """Sessions with a language model, whose layers no device holds alone. Each is asked by a live device drawn by lot.

    A prompt has up to `prompt_tokens`, most begin alike; an answer has up to `tokens`.
    """

    requests: Number = 0  # 0: no such model is deployed
    first_s: Seconds = 8.0
    interval_s: Seconds = 0.5
    failed_max: Number = 0  # beside those that nobody could have answered
    layers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 6
    layer_bytes: Count = 1000
    copies: Annotated[int, msgspec.Meta(ge=1, le=16)] = 2
    memory_bytes: Number = 110_000  # of each device, for this model alone: two of its layers with their caches
    sessions: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 16  # at once, for which caches are promised
    prompt_tokens: Count = 160
    tokens: Count = 40
    step_s: Period = 0.02  # of one stage for a batch; as much again for each 64 positions
    load_s: Seconds = 1.0  # of a run of layers


def deployment(language: Language, version: int = 1) -> DeploymentRecord:
    """Return what ought to be served."""
    return DeploymentRecord(
        version=version,
        kind="causal_lm",
        manifest=BlobRef(digest="0" * 64, size_bytes=1),
        weights_bytes=(language.layer_bytes,) * language.layers,
        cache_bytes=(POSITION_BYTES,) * language.layers,
        width_bytes=POSITION_BYTES,
        replicas=language.copies,
        sessions=language.sessions,
        positions=language.prompt_tokens + language.tokens,
    )


def publish_language(device: "Device", language: Language, *, deploys: bool) -> None:
    """Offer memory for the model's layers; one device says that it ought to be served."""
    offer = Profile(device=device.name, memory_bytes=language.memory_bytes)
    device.records.publish(KIND + PROFILE, "self", offer)
    if deploys:
        device.records.publish(KIND + DEPLOYMENT, NAME, deployment(language), durable=True)


class Pictured:
    """One device's mesh, as far as the deployed view reads it."""

    def __init__(self, device: "Device") -> None:
        self._device = device

    def live(self, kind: str, value: type[T]) -> list[tuple[Record, T]]:
        found = []
        for record in self._device.records.store.live(KIND + kind, self._device.present):
            try:
                found.append((record, record.value(value)))
            except PeerError:
                continue  # of a liar
        return found

    def authority(self, peer: PeerId) -> Authority:
        return self._device.authority(peer)
