"""What the endpoint asks of its node: which models there are, and text or vectors from them. An interface only."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ...mesh.tensors import Array
from ..deployments import Kind
from ..generation.sampling import Sampling

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: str  # "system", "user" or "assistant"
    content: str


# Text, token ids, or a conversation that the model's own template turns into text.
Prompt = str | tuple[int, ...] | tuple[Turn, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A model as `/v1/models` lists it."""

    name: str
    kind: Kind
    created_s: int  # Unix time; 0 where nobody knows
    fingerprint: str  # of its weights: equal ones give equal text from equal seeds


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some more of a text that is being made. ``finish`` is there in the last one only."""

    text: str
    prompt_tokens: int
    tokens: int  # drawn so far, of all parts
    finish: Finish | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """What an encoder makes of texts."""

    values: Array  # float32 (texts, width)
    tokens: int  # of all texts


class Models(Protocol):
    """The models of a mesh, as one node sees them. Errors are those of `mesh.errors`."""

    def models(self) -> Sequence[ModelInfo]:
        """Return what is deployed, by name."""

    def generate(self, name: str, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Part, None]:
        """Go on from a prompt. At most ``sampling.tokens_max`` tokens, and no more than the model's sessions hold.

        Whoever closes it early ends the session on the mesh.
        """

    async def embed(self, name: str, texts: Sequence[str]) -> Vectors:
        """Turn each text into a vector."""
