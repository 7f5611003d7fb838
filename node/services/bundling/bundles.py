"""Bundles on this device: fetched from whoever has them, checked against what their release says, unpacked once."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from ....mesh import limits
from ....mesh.errors import PeerError
from ...blobs.sharing import Blobs
from ..records import Release
from ..spec import MethodBrief, MethodSpec, ServiceSpec
from .bundle import clear, read_bundle, spec_of, unpack_bundle
from .folder import REQUIREMENTS

# Makes an environment of a folder's requirements, or finds it: the Python in it.
Environment = Callable[[Path], Awaitable[Path]]


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A bundle that is ready to run."""

    spec: ServiceSpec
    folder: Path
    python: Path | None  # None: this node's own


class Bundles:
    """The bundles in one folder, each under its digest."""

    def __init__(self, blobs: Blobs, folder: Path, environment: Environment | None = None) -> None:
        self._blobs = blobs
        self._folder = folder
        self._environment = environment
        self._known: dict[str, Unpacked] = {}

    def __getitem__(self, digest: str) -> Unpacked:
        return self._known[digest]

    async def make_ready(self, service: str, release: Release) -> None:
        """Have a release's bundle here, whole. Raises PeerError when it is not what the release says, LeptonError."""
        if release.bundle.size_bytes > limits.BUNDLE_BYTES_MAX:
            raise PeerError(f"The bundle of {service!r} is said to have {release.bundle.size_bytes:,} B.")
        data = await self._blobs.data(service, release.bundle)
        folder = self._folder / release.bundle.digest
        spec = await trio.to_thread.run_sync(partial(_unpacked, data, folder, service, release))
        python = None
        if (folder / REQUIREMENTS).is_file():
            if self._environment is None:
                raise PeerError(f"{service!r} comes with a {REQUIREMENTS}, and this device makes no environments.")
            python = await self._environment(folder)
        self._known[release.bundle.digest] = Unpacked(spec, folder, python)

    async def forget_others(self, digests: frozenset[str]) -> None:
        """Remove all but these from the disk, when the node starts."""
        await trio.to_thread.run_sync(clear, self._folder, digests)


def _unpacked(data: bytes, folder: Path, service: str, release: Release) -> ServiceSpec:
    bundle = read_bundle(data)
    spec = spec_of(bundle)
    briefs = tuple(brief_of(method) for method in spec.methods)
    if (spec.name, spec.version, spec.needs, briefs) != (service, release.version, release.needs, release.methods):
        raise PeerError(
            f"The bundle of {service!r} {release.version} describes itself as {spec.name!r} {spec.version}, with other "
            "methods or needs than its release says."
        )
    unpack_bundle(bundle, folder)
    return spec


def brief_of(method: MethodSpec) -> MethodBrief:
    """Return what callers have to know of a method."""
    return MethodBrief(**{name: getattr(method, name) for name in MethodBrief.__struct_fields__})
