"""What this node's instances ask of the mesh: other services, and models. Each is a hop of the request that they serve.

They ask with the grant of their node.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any, Protocol

import numpy as np
import trio

from ...mesh.tensors import Array
from ..seeing.request import following
from ..texts import TextModel
from .calling.client import Clients
from .errors import TooLate


class Predict(Protocol):
    """Answers for models of arrays (`Node.predict`)."""

    async def __call__(self, model: str, *inputs: Any) -> np.ndarray[Any, Any]: ...  # noqa: ANN401 - what numpy takes


class MeshOfInstances:
    """Asks the mesh for instances; implements ``hosting.Outward``."""

    def __init__(self, clients: Clients, predict: Predict, model: Callable[[str], TextModel]) -> None:
        self._clients = clients
        self._predict = predict
        self._model = model

    async def call(
        self, name: str, positional: Sequence[object], named: Mapping[str, object], *, request: str, deadline: float
    ) -> object:
        """Call ``service.method``."""
        with following(request), _by(deadline, name):
            return await self._clients.call(name, positional, named)
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def stream(
        self, name: str, positional: Sequence[object], named: Mapping[str, object], *, request: str, deadline: float
    ) -> AsyncGenerator[AsyncIterator[object], None]:
        """Iterate over what ``service.method`` streams."""
        left_s = max(deadline - trio.current_time(), 0.001)
        with following(request):
            async with self._clients.stream(name, positional, named, timeout_s=left_s) as items:
                yield items

    async def predict(self, model: str, x: Array, *, request: str, deadline: float) -> Array:
        """Have a model answer for a batch of its inputs."""
        with following(request), _by(deadline, model):
            return await self._predict(model, x)
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def generate(
        self, model: str, prompt: str, options: Mapping[str, object], *, request: str, deadline: float
    ) -> AsyncGenerator[AsyncIterator[str], None]:
        """Have a language model go on with a prompt, in pieces of text. The instance's own call bounds the wait."""

        async def texts(parts: AsyncIterator[Any]) -> AsyncGenerator[str, None]:
            async for part in parts:
                if trio.current_time() > deadline:
                    raise TooLate(f"{model!r} was not done in the time that there was.")
                yield part.text

        settings: Any = options  # checked against the fields of Sampling
        with following(request):
            async with (
                aclosing(self._model(model).generate(prompt, **settings)) as parts,
                aclosing(texts(parts)) as found,
            ):
                yield found


@contextmanager
def _by(deadline: float, what: str) -> Iterator[None]:
    """Raise TooLate when it takes longer."""
    with trio.CancelScope(deadline=deadline) as scope:
        yield
    if scope.cancelled_caught:
        raise TooLate(f"{what!r} did not answer in the time that there was.")
