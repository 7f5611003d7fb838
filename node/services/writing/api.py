"""What the author of a service imports: two decorators, and what a service sees of the mesh.

    @service("detector", version="1.2", memory="200MB")
    class Detector:
        def setup(self) -> None: ...
        @method(timeout_s=2)
        def detect(self, frame: NDArray[np.uint8], least: float = 0.5) -> list[Detection]: ...

Both decorators leave what they decorate as it is, so a service is tested like any class. All that is wrong with a
declaration is a UsageError where it is made.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar, overload

from ....mesh import limits
from ..spec import Where
from .declaring import DECLARED, OPTIONS, Options, read_class
from .describing import described

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type[Any])


class Mesh(Protocol):
    """The mesh as a service sees it, given to ``setup(self, mesh)``. It asks through the node that hosts the service.

    All of it is asynchronous. A call that is made while a method works carries that call's request id, and ends with
    its deadline at the latest. A plain method, which runs in a thread, asks by
    ``trio.from_thread.run(mesh.call, "other.method", value)``.
    """

    @property
    def devices(self) -> Mapping[str, str]:
        """The devices that the service needs, as the host's node.toml has them: ``mesh.devices["camera"]``."""

    async def call(self, name: str, /, *positional: object, **named: object) -> Any:  # noqa: ANN401 - plain data
        """Call ``service.method`` and return plain data and numpy arrays. Raises LeptonError."""

    def stream(
        self, name: str, /, *positional: object, **named: object
    ) -> AbstractAsyncContextManager[AsyncIterator[Any]]:
        """Iterate over what a method streams: ``async with mesh.stream(…) as items``; leaving the block ends it."""

    async def predict(self, model: str, x: Any) -> Any:  # noqa: ANN401 - an array in, an array out
        """Have a model that the mesh serves answer for a batch: an array of its inputs in, one of its outputs out."""

    def generate(self, model: str, prompt: str, **options: object) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """Have a language model of the mesh go on with a prompt: its text in pieces, as they come."""


@overload
def method(function: F, /) -> F: ...
@overload
def method(
    *,
    max_batch_size: int = 1,
    max_wait_ms: float = 0.0,
    concurrency: int = 1,
    timeout_s: float = limits.CALL_TIMEOUT_S,
    idempotent: bool = False,
    session: str = "",
    where: Where = "anywhere",
) -> Callable[[F], F]: ...
def method(
    function: F | None = None,
    /,
    *,
    max_batch_size: int = 1,
    max_wait_ms: float = 0.0,
    concurrency: int = 1,
    timeout_s: float = limits.CALL_TIMEOUT_S,
    idempotent: bool = False,
    session: str = "",
    where: Where = "anywhere",
) -> F | Callable[[F], F]:
    """Let callers anywhere in the mesh call a method. Its annotations say what it takes and gives.

    A plain ``def`` runs in a thread, an ``async def`` on trio. A method with ``max_batch_size`` above 1 takes a list
    for each parameter, one item a call, and returns a list as long; a batch waits ``max_wait_ms`` to fill. Of one
    instance's calls, or batches, ``concurrency`` run at once. ``idempotent``: to run twice does no harm, so a call may
    be asked of two replicas, and again after one died. ``session`` names the parameter whose equal values stay on one
    instance. ``where="here"``: only an instance on the caller's own device answers, so what it is given never leaves
    that device.
    """
    options = Options(
        max_batch_size=max_batch_size,
        max_wait_ms=max_wait_ms,
        concurrency=concurrency,
        timeout_s=timeout_s,
        idempotent=idempotent,
        session=session,
        where=where,
    )

    def mark(marked: F) -> F:
        setattr(marked, OPTIONS, options)
        return marked

    return mark if function is None else mark(function)


def service(
    name: str,
    *,
    version: str,
    memory: str = "256MB",
    cores: float = 1.0,
    models: tuple[str, ...] = (),
    devices: tuple[str, ...] = (),
) -> Callable[[C], C]:
    """Make a class a service: its methods are those under ``@method``.

    ``memory`` is what one instance may take, in which it is stopped beyond; ``models`` are those that the mesh has to
    serve (an instance runs without them too; who deploys it is told which are missing), ``devices`` names of the
    host's configuration. ``setup(self)`` or ``setup(self, mesh)`` runs once in each instance before its first call,
    ``close(self)`` at its end; both may be asynchronous.
    """

    def declare(cls: C) -> C:
        declared = read_class(cls)
        needs = {"memory": memory, "cores": cores, "models": models, "devices": devices}
        setattr(cls, DECLARED, described(declared, name=name, version=version, needs=needs))
        return cls

    return declare
