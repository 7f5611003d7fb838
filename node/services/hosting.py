"""What a host asks of whatever runs instances: the seam between who decides, who calls, and the processes.

`pool.py` runs them in processes of their own; tests may put anything else here.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import trio

from ...mesh.identity import PeerId
from ...mesh.rpc.methods import Answer
from ...mesh.tensors import Array
from .messages import Asked, Given, Load
from .records import State
from .spec import ServiceSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One instance that ought to run."""

    id: str
    spec: ServiceSpec
    bundle: str  # its digest
    folder: Path  # the bundle, unpacked
    python: Path | None = None  # of the environment that its requirements are in; None: this node's
    devices: Mapping[str, str] = field(
        default_factory=dict
    )  # those that it needs, as the node's configuration has them


class Instance(Protocol):
    """One running copy of a service."""

    @property
    def wanted(self) -> Wanted: ...
    @property
    def state(self) -> State: ...
    @property
    def reason(self) -> str:
        """Why it failed, or was restarted last."""

    @property
    def restarts(self) -> int: ...
    @property
    def calls(self) -> int:
        """How many it has been asked since it started."""

    @property
    def load(self) -> Load: ...
    @property
    def queue_ms(self) -> float:
        """How long calls lately waited here for their turn, smoothed."""

    async def call(self, caller: PeerId, asked: Asked, arrays: Sequence[Array], *, deadline: float) -> Answer[Given]:
        """Have one call answered by trio's clock. Raises ServiceError, NotHere, InstanceLost, Busy, LinkError."""

    def stream(
        self, caller: PeerId, asked: Asked, arrays: Sequence[Array], *, deadline: float
    ) -> AbstractAsyncContextManager[AsyncIterator[Answer[Given]]]:
        """Iterate over what a server stream gives; leaving the block ends it."""

    async def feed(
        self,
        caller: PeerId,
        asked: Asked,
        arrays: Sequence[Array],
        items: AsyncIterator[Answer[Given]],
        *,
        deadline: float,
    ) -> Answer[Given]:
        """Have a client stream answered."""


class Instances(Protocol):
    """All that run here."""

    @property
    def running(self) -> Mapping[str, Instance]:
        """By their ids, also those that start, drain or have failed."""

    @property
    def changed(self) -> trio.Event:
        """Is set, and another put here, when anything about an instance changes but its load."""

    def start(self, wanted: Wanted) -> None:
        """Start an instance; its state says what becomes of it."""

    def stop(self, instance: str, *, drain_s: float) -> None:
        """Take no more calls, end when those under way have been answered or after so long; then it is gone."""

    def logs(self, service: str, *, lines: int) -> list[str]:
        """Return the last lines that instances of a service printed here, each with its instance, oldest first."""


class Outward(Protocol):
    """What instances ask of the mesh, by way of their node. Values are plain data and numpy arrays.

    ``request`` is the id of the request that an instance works on, so that one id follows it everywhere; nothing may
    take longer than until ``deadline``, by trio's clock. All raise LeptonError.
    """

    async def call(
        self, name: str, positional: Sequence[object], named: Mapping[str, object], *, request: str, deadline: float
    ) -> object:
        """Call ``service.method``."""

    def stream(
        self, name: str, positional: Sequence[object], named: Mapping[str, object], *, request: str, deadline: float
    ) -> AbstractAsyncContextManager[AsyncIterator[object]]:
        """Iterate over what ``service.method`` streams."""

    async def predict(self, model: str, x: Array, *, request: str, deadline: float) -> Array:
        """Have a model answer for a batch of its inputs."""

    def generate(
        self, model: str, prompt: str, options: Mapping[str, object], *, request: str, deadline: float
    ) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """Have a language model go on with a prompt, in pieces of text."""
