"""One service run on this machine alone, to try it: no node, no mesh, calls and answers as JSON."""

import secrets
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import trio

from ...mesh.errors import UsageError
from ...mesh.identity import PeerId
from ...mesh.rpc.methods import Answer
from ...mesh.tensors import Array
from .bundling.environment import python_for
from .bundling.reflecting import describe
from .errors import DoesNotStart
from .hosting import Wanted
from .instances.logs import NOTED
from .instances.pool import Pool, open_pool
from .messages import Asked, Given
from .spec import MethodSpec, ServiceSpec
from .writing import in_json, values
from .writing.in_json import Arrays

_ME: Final = PeerId("this-machine")
_ID: Final = "trial"


class Trial:
    """A service that is set up. Made by ``try_folder``."""

    def __init__(self, spec: ServiceSpec, pool: Pool) -> None:
        self.spec: Final = spec
        self._pool = pool
        self._log: Final = pool.running[_ID].log  # stays when the instance is gone
        self._told = 0

    async def call(self, method: str, text: str, *, arrays: Arrays = "lists") -> AsyncGenerator[bytes]:
        """Call a method with an object of JSON, and yield what it gives as JSON: one line, or one for each item.

        Raises UsageError, ServiceError and what else a call of an instance raises.
        """
        declared = self._method(method)
        given = in_json.read(text or "{}", declared.takes)
        if not isinstance(given, dict):
            raise UsageError(f'{method} takes an object with its parameters, as in {{"name": "Ada"}}.')
        items = given.pop(declared.streams, []) if declared.streams else []
        value, beside = values.encode(given)
        asked = Asked(method=method, value=value, request=secrets.token_hex(8))
        async with aclosing(self._ask(declared, asked, beside, items)) as answers:
            async for answer in answers:
                yield in_json.write(values.decode(answer.message.value, answer.arrays), arrays=arrays)

    async def _ask(
        self, method: MethodSpec, asked: Asked, arrays: list[Array], items: list[Any]
    ) -> AsyncGenerator[Answer[Given]]:
        instance = self._pool.running[_ID]
        while instance.state == "starting":  # again: nothing else could take the call
            await self._pool.changed.wait()
        deadline = trio.current_time() + method.timeout_s
        match method.kind:
            case "unary":
                yield await instance.call(_ME, asked, arrays, deadline=deadline)
            case "client_stream":
                yield await instance.feed(_ME, asked, arrays, _given(items), deadline=deadline)
            case "server_stream":
                async with instance.stream(_ME, asked, arrays, deadline=deadline) as answers:
                    async for answer in answers:
                        yield answer

    def _method(self, name: str) -> MethodSpec:
        method = self.spec.method(name)
        if method is None:
            known = ", ".join(each.name for each in self.spec.methods)
            raise UsageError(f"{self.spec.name} has no method {name!r}; it has {known}.")
        return method

    def printed(self) -> list[str]:
        """Return what the service printed since this was last asked."""
        news, self._told = self._log.count - self._told, self._log.count
        return [line.text for line in self._log.tail(news) if not line.text.startswith(NOTED)]


async def _given(items: list[Any]) -> AsyncIterator[Answer[Given]]:
    for item in items:
        value, arrays = values.encode(item)
        yield Answer(Given(value=value), arrays)


@asynccontextmanager
async def try_folder(
    folder: Path, cache: Path, devices: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[Trial]:
    """Run the service of a folder, an absolute path. ``cache`` is for environments, ``devices`` are this machine's.

    Raises UsageError, also for a device that is not there; or DoesNotStart with its log.
    """
    spec = await describe(folder, environments=cache)
    if lacking := sorted(set(spec.needs.devices) - set(devices)):
        raise UsageError(
            f"{spec.name} needs the device {lacking[0]!r}: name it in this node's node.toml, under [services], as in "
            f'devices = {{{lacking[0]} = "/dev/video0"}}.'
        )
    given = {name: devices[name] for name in spec.needs.devices}
    python = await python_for(folder, cache)
    with tempfile.TemporaryDirectory(prefix="lepton-trial-") as logs:
        async with open_pool(Path(logs)) as pool:
            pool.start(Wanted(id=_ID, spec=spec, bundle="0" * 64, folder=folder, python=python, devices=given))
            while (state := pool.running[_ID].state) == "starting" and not pool.running[_ID].restarts:
                await pool.changed.wait()
            if state != "ready":
                said = "\n".join(pool.logs(spec.name, lines=20))
                raise DoesNotStart(f"{spec.name} does not start: {pool.running[_ID].reason}\n{said}")
            yield Trial(spec, pool)
            pool.stop(_ID, drain_s=0)  # for it to close
            while pool.running:
                await pool.changed.wait()
