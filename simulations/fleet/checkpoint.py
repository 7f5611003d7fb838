"""A fleet on disk: one file that is whole or not there, from which a run goes on to the very same bits.

A file of safetensors: the models, their momentum, what each node has done and what the exchange has learned; its
header's metadata hold the scenario, the rows and the clock as JSON.
"""

import hashlib
import os
from pathlib import Path
from typing import Annotated, Final

import msgspec
import numpy as np
import safetensors
import safetensors.torch
import torch

from ...mesh.errors import LeptonError, UsageError
from ...node.files import sync_folder
from .exchange import Remembering
from .fleet import Fleet
from .outcome import Row
from .population import Population
from .scenario import Scenario

_KEY: Final = "lepton.fleet"
_EXCHANGE: Final = "exchange."  # what an exchange has learned, by its own names


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    """All that is no tensor."""

    scenario: Scenario
    data: str  # a hash of whose samples are whose
    round: int
    seconds: float
    passed_s: float
    rows: tuple[Row, ...]
    format: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1


def save(fleet: Fleet, path: Path) -> None:
    """Make ``path`` hold where a fleet stands, or leave what it held. Raises LeptonError when the disk will not."""
    state = fleet.state
    header = _Header(
        scenario=fleet.scenario, data=digest_of(fleet.population), round=state.round, seconds=state.seconds,
        passed_s=state.passed_s, rows=tuple(state.rows),
    )  # fmt: skip
    tensors = {
        "models": state.models,
        "done": torch.from_numpy(state.done),
        "sent": torch.from_numpy(state.sent),
        "away": torch.from_numpy(fleet.presence.away),
    }
    if state.momentum is not None:
        tensors["momentum"] = state.momentum
    if isinstance(fleet.exchange, Remembering):
        known = fleet.exchange.memory.items()
        tensors |= {f"{_EXCHANGE}{name}": torch.from_numpy(np.ascontiguousarray(one)) for name, one in known}
    temporary = path.with_name(f".writing-{path.name}")
    try:
        safetensors.torch.save_file(tensors, temporary, {_KEY: msgspec.json.encode(header).decode()})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise LeptonError(
            f"{path}: cannot be written: {error.strerror or error}; free space, or name another"
        ) from error


def resume(fleet: Fleet, path: Path) -> None:
    """Put a fleet where the one stood that was saved. Raises UsageError for a file of another scenario, or none."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = msgspec.json.decode((file.metadata() or {}).get(_KEY, ""), type=_Header)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (OSError, safetensors.SafetensorError, msgspec.MsgspecError) as error:
        raise UsageError(f"{path}: holds no fleet that could go on: {error}") from error
    if header.scenario != fleet.scenario or header.data != digest_of(fleet.population):
        raise UsageError(f"{path}: was written in another scenario, or with other data; name another file")
    state = fleet.state
    wanted = {
        name: tuple(one.shape)
        for name, one in (("models", state.models), ("momentum", state.momentum))
        if one is not None
    }
    if {name: tuple(tensors[name].shape) for name in wanted if name in tensors} != wanted:
        raise UsageError(f"{path}: holds models of another kind than {wanted}; name another file")
    state.models.copy_(tensors["models"])
    if state.momentum is not None:
        state.momentum.copy_(tensors["momentum"])
    state.done, state.sent = tensors["done"].numpy().copy(), tensors["sent"].numpy().copy()
    fleet.presence.away = tensors["away"].numpy().copy()
    if isinstance(fleet.exchange, Remembering):
        own = {name.removeprefix(_EXCHANGE): one for name, one in tensors.items() if name.startswith(_EXCHANGE)}
        fleet.exchange.recall({name: one.numpy().copy() for name, one in own.items()})
    state.round, state.seconds, state.passed_s = header.round, header.seconds, header.passed_s
    state.rows[:] = header.rows


def digest_of(population: Population) -> str:
    """Hash whose samples are whose, and the first and last sample: other data are told apart, at no cost."""
    hashed = hashlib.sha256()
    for part in (population.starts, population.order, np.array(population.inputs.shape)):
        hashed.update(np.ascontiguousarray(part).tobytes())
    hashed.update(population.inputs[[0, -1]].numpy().tobytes())
    return hashed.hexdigest()
