"""How a model ought to be served, as whoever deploys it says. Pure."""

from collections.abc import Callable
from typing import Annotated, Literal

import msgspec

from .deployments import Activations, DeploymentRecord, Objective, Precision


class Terms(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a model ought to be served. ``positions`` None: 2048, or as many as the model was made for."""

    replicas: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    precision: Precision | Literal["auto"] = "auto"
    sessions: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 4
    positions: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    objective: Objective = "latency"
    activations: Activations = "float32"


RecordOf = Callable[[Terms, int], DeploymentRecord]  # of a model that was read: its terms and its version
