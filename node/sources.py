"""What can be deployed, made known as blobs: a language model's folder, an encoder's, a program's, or a module."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from torch import Tensor, nn

from ..mesh.errors import UsageError
from .blobs.hub import folder_of
from .blobs.publishing import Published, publish_folder
from .blobs.store import BlobStore
from .deployments import DeploymentRecord, Precision
from .generation.activations import position_bytes
from .language.config import LanguageConfig
from .language.folder import read_config
from .language.layout import layer_of, layers
from .language.layout import sizes as sizes_of
from .programs.description import Description
from .programs.encoder import is_encoder, trace_encoder
from .programs.folder import ProgramFolder, is_program_folder, open_folder, save
from .programs.publishing import deployment_of, publish
from .programs.trace import trace
from .terms import RecordOf, Terms

_POSITIONS: Final = 2048


def of_folder(blobs: BlobStore, text: str | Path, into: Path) -> RecordOf:
    """Make what a folder holds known as blobs; returns what makes a record of it. ``into`` is for a traced encoder."""
    folder, within = folder_of(str(Path(text).expanduser()) if str(text).startswith("~") else str(text))
    if is_program_folder(folder) or is_encoder(folder):
        program = open_folder(folder) if is_program_folder(folder) else trace_encoder(folder, into)
        return partial(_program_record, program, publish(blobs, program))
    config = read_config(folder)
    published = publish_folder(blobs, folder, lambda tensor: layer_of(tensor, config), layers(config), within=within)
    return partial(_record, config, published)


def of_module(
    blobs: BlobStore,
    module: nn.Module,
    example: Sequence[Tensor],
    into: Path,
    *,
    sizes: Mapping[str, tuple[int, int]] | None,
    dims: Sequence[Mapping[int, str]] | None,
) -> RecordOf:
    """Trace a module into the folder ``into`` and make that known; returns what makes a record of it."""
    traced = trace(module, example, sizes=sizes, dims=dims)
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    program = save(traced, into, Description(source=kind))
    return partial(_program_record, program, publish(blobs, program))


def _program_record(program: ProgramFolder, published: Published, terms: Terms, version: int) -> DeploymentRecord:
    if terms.precision not in {"auto", "float32"}:
        raise UsageError(f"Traced models are served as float32, not as {terms.precision}.")
    if terms.activations != "float32":
        raise UsageError(f"What travels between the layers of a traced model is not rounded to {terms.activations}.")
    return deployment_of(program, published, version=version, replicas=terms.replicas)


def _record(config: LanguageConfig, published: Published, terms: Terms, version: int) -> DeploymentRecord:
    """Say what a model takes; with the precision `auto` at that in which its files are."""
    precision = _stored(published) if terms.precision == "auto" else terms.precision
    needs = sizes_of(config, precision)
    positions = min(_POSITIONS, config.positions_max) if terms.positions is None else terms.positions
    if positions > config.positions_max:
        raise UsageError(f"This model was made for {config.positions_max} positions, and {positions} were asked for.")
    return DeploymentRecord(
        version=version,
        kind=published.manifest.kind,
        manifest=published.ref,
        precision=precision,
        weights_bytes=needs.weights_bytes,
        tied_bytes=needs.tied_bytes,
        cache_bytes=needs.cache_bytes,
        width_bytes=position_bytes(needs.width, terms.activations),
        replicas=terms.replicas,
        sessions=terms.sessions,
        positions=positions,
        objective=terms.objective,
        activations=terms.activations,
    )


def _stored(published: Published) -> Precision:
    kinds = {tensor.dtype for layer in published.layers for tensor in layer.values()}
    if kinds & {"U8", "I8"}:  # rounded before
        return "int4" if "U8" in kinds else "int8"
    return "bfloat16" if kinds <= {"BF16"} else "float32"  # float16 has finer steps than bfloat16
