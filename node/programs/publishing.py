"""A program's folder made known to the mesh as blobs, and the record that asks for it to be served."""

import math

from ..blobs.publishing import Published, publish_folder
from ..blobs.store import BlobStore
from ..deployments import DeploymentRecord
from ..language.layout import CODED
from .folder import ProgramFolder, layer_bytes, layers_of
from .program import live_at, values


def publish(store: BlobStore, folder: ProgramFolder) -> Published:
    """Hash a program's weights by layer, for peers to fetch. Call it in a thread. Raises as `publish_folder`."""
    layers = layers_of(folder.program)
    return publish_folder(
        store, folder.path, lambda name: layers.get(name) or layers.get(name.removesuffix(CODED), ()),
        folder.program.layers, kind="program",
    )  # fmt: skip


def deployment_of(folder: ProgramFolder, published: Published, *, version: int, replicas: int) -> DeploymentRecord:
    """Return the record that asks for a program to be served by so many."""
    program = folder.program
    types = values(program)
    bounds = (0, *program.cuts, len(program.nodes))
    widths = []
    for cut in bounds[1:]:
        shapes = [value.shape or () for name in live_at(program, cut) if (value := types[name]) is not None]
        widths.append(sum(math.prod(dim if isinstance(dim, int) else 1 for dim in shape) for shape in shapes))
    return DeploymentRecord(
        version=version,
        kind="program",
        manifest=published.ref,
        weights_bytes=layer_bytes(program),
        width_bytes=4 * max(widths),
        replicas=replicas,
        sessions=1,
        positions=1,
    )
