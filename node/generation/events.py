"""What happens to the machines of a session, and what they want said. Pure."""

from dataclasses import dataclass

from ...mesh.identity import PeerId
from .messages import Said
from .steps import Result


@dataclass(frozen=True, slots=True)
class Came:
    """A peer said something."""

    peer: PeerId
    said: Said


@dataclass(frozen=True, slots=True)
class Lost:
    """A peer is gone, or cannot be reached from here."""

    peer: PeerId
    reason: str
    left: bool = True  # the mesh, and not only this node's sight


@dataclass(frozen=True, slots=True)
class Ran:
    """The step is done."""

    results: tuple[Result, ...]


@dataclass(frozen=True, slots=True)
class Expired:
    """The deadline has come."""


@dataclass(frozen=True, slots=True)
class Send:
    """Say this to a peer, which may be this node."""

    peer: PeerId
    said: Said
