"""Traced models of deployments: their programs and weights, fetched as blobs and loaded by layer."""

import logging
from collections.abc import Sequence
from typing import Final

import trio

from ...mesh.errors import UsageError
from ..blobs.manifests import require_sizes
from ..blobs.sharing import Blobs
from ..deployments import BlobRef, DeploymentRecord, Manifest
from ..placement import Run
from ..programs.description import Description, read_description
from ..programs.program import PROGRAM_FILE, Program, read_program
from .known import Known, Part

_KEPT_MAX: Final = 32  # programs whose description is held; each is up to some megabytes

log = logging.getLogger(__name__)


class Programs:
    """One node's way to the traced models of its mesh."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._kept: dict[BlobRef, tuple[Manifest, Program]] = {}

    async def known(self, name: str, deployment: DeploymentRecord) -> Known:
        """What an asker has to know. Raises LinkError when nobody has it, UsageError when it makes no sense."""
        _, program = await self._program(name, deployment)
        return await trio.to_thread.run_sync(_known, program)

    async def description(self, name: str, deployment: DeploymentRecord) -> Description:
        """What the model is for. Raises as `known` does."""
        manifest, _ = await self._program(name, deployment)
        return read_description(manifest.config)

    async def load(self, name: str, deployment: DeploymentRecord, run: Run) -> Part:
        """Fetch and load a run of layers. Raises as `known` does, and for weights that are not those of the program."""
        manifest, program = await self._program(name, deployment)
        if len(deployment.weights_bytes) != program.layers:
            raise UsageError(
                f"{name!r} says it has {len(deployment.weights_bytes)} layers; its program {program.layers}."
            )
        needs = await trio.to_thread.run_sync(_layer_bytes, program)
        if any(needs[layer] > deployment.weights_bytes[layer] for layer in range(*run)):
            raise UsageError(f"{name!r} takes more memory than it was deployed with; deploy it again.")
        require_sizes(manifest, needs, range(*run))
        await self._blobs.fetch_layers(name, manifest, range(*run))
        return await trio.to_thread.run_sync(self._loaded, manifest, program, run)

    def _loaded(self, manifest: Manifest, program: Program, run: Run) -> Part:
        import torch  # in the thread that needs it

        from ..blobs.opening import open_layer
        from ..programs.run import Stage, batch_max
        from .parts import ProgramPart

        weights: dict[str, torch.Tensor] = {}
        for index in range(*run):
            # Copied, so that a file that changes under a mapping cannot change a model that is served.
            weights |= {name: t.clone() for name, t in open_layer(self._blobs.store, manifest, index).items()}
        batch_max(program)  # says no to a program that unfolds too far
        return ProgramPart(Stage(program, *run, weights))

    async def _program(self, name: str, deployment: DeploymentRecord) -> tuple[Manifest, Program]:
        if deployment.manifest not in self._kept:
            manifest = await self._blobs.manifest(name, deployment.manifest)
            if manifest.kind != "program" or PROGRAM_FILE not in manifest.files:
                raise UsageError(f"{name!r} was deployed as a program, and its manifest has none.")
            data = await self._blobs.data(name, manifest.files[PROGRAM_FILE])
            program = await trio.to_thread.run_sync(read_program, data)
            while len(self._kept) >= _KEPT_MAX:
                del self._kept[next(iter(self._kept))]
            self._kept[deployment.manifest] = manifest, program
        return self._kept[deployment.manifest]


def _known(program: Program) -> Known:
    from .parts import KnownProgram  # torch, in the thread that needs it: shapes are worked out with it

    return KnownProgram(program)


def _layer_bytes(program: Program) -> Sequence[int]:
    from ..programs.folder import layer_bytes  # torch, in the thread that needs it

    return layer_bytes(program)
