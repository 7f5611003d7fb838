"""Services as a program calls them: by name, with Python's values in and out, or through a class of the author's.

    found = await clients.call("detector.detect", frame, least=0.7)
    async for alarm in clients.stream("detector.watch", "yard"): ...
    detector = clients.client(Detector)
    found = await detector.detect(frame)    # the author's own dataclasses

A parameter that is an asynchronous iterator is a client stream. By name, results are plain data and numpy arrays;
through the class they are what its annotations say, and so are checked.
"""

import hashlib
import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from ....mesh.errors import UsageError
from ....mesh.rpc.methods import Answer
from ...seeing import request
from ..errors import ServiceError
from ..messages import Asked, Given
from ..spec import MethodBrief, MethodSpec, Where
from ..writing import values
from ..writing.declaring import Declared, DeclaredMethod, declared
from .calling import Calling

_SESSION_BYTES: Final = 16

Convert = Callable[[Any], Any]  # plain data to a result


class Stream(AsyncIterator[Any]):
    """What a method streams. Iterate over it; or ``async with`` it, if it may be left before its end: that ends it."""

    def __init__(self, items: AsyncGenerator[Any, None]) -> None:
        self._items = items

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:  # noqa: ANN401 - whatever the method gives
        return await anext(self._items)

    async def aclose(self) -> None:
        await self._items.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Clients:
    """Calls with Python's values, over `Calling`."""

    def __init__(self, calling: Calling) -> None:
        self._calling = calling

    async def call(
        self,
        target: str,
        positional: Sequence[object] = (),
        named: Mapping[str, object] | None = None,
        *,
        version: str = "",
        timeout_s: float | None = None,
        where: Where = "anywhere",
        result: Convert = lambda plain: plain,
    ) -> Any:  # noqa: ANN401 - whatever the method gives
        """Call ``service.method``. Raises UsageError for wrong parameters or names, and what `Calling.ask` raises."""
        service, method = split(target)
        brief = self._calling.brief(service, method, version)
        if brief.kind == "server_stream":
            raise UsageError(f"{target!r} gives a stream: iterate over `stream({target!r}, …)`.")
        with request.entering(target) as id_:
            given = await self._named(service, brief, positional, named or {}, version)
            streams = [name for name, value in given.items() if isinstance(value, AsyncIterable)]
            if len(streams) != (brief.kind == "client_stream"):
                wants = "one parameter" if brief.kind == "client_stream" else "no parameter"
                raise UsageError(f"{target!r} takes {wants} that is a stream (an asynchronous iterator).")
            items = [given.pop(name) for name in streams]
            asked, arrays = _asked(brief, given, version, id_)
            how: Any = {"timeout_s": timeout_s, "where": where}
            if items:
                answer = await self._calling.feed(service, asked, _encoded(items[0]), arrays, **how)
            else:
                answer = await self._calling.ask(service, asked, arrays, **how)
            return result(values.decode(answer.message.value, answer.arrays))

    def stream(
        self,
        target: str,
        positional: Sequence[object] = (),
        named: Mapping[str, object] | None = None,
        *,
        version: str = "",
        timeout_s: float | None = None,
        where: Where = "anywhere",
        result: Convert = lambda plain: plain,
    ) -> Stream:
        """Iterate over what ``service.method`` streams. Iterating raises what ``call`` raises."""

        async def items() -> AsyncGenerator[Any, None]:
            service, method = split(target)
            brief = self._calling.brief(service, method, version)
            if brief.kind != "server_stream":
                raise UsageError(f"{target!r} gives one answer: `await call({target!r}, …)`.")
            given = await self._named(service, brief, positional, named or {}, version)
            asked, arrays = _asked(brief, given, version, request.current() or request.session_id().hex()[:16])
            async with aclosing(self._calling.items(service, asked, arrays, timeout_s=timeout_s, where=where)) as found:
                async for item in found:
                    yield result(values.decode(item.message.value, item.arrays))

        return Stream(items())

    def client(
        self,
        service: type[Any] | str,
        *,
        version: str = "",
        timeout_s: float | None = None,
        where: Where = "anywhere",
    ) -> "Client":
        """Return something with the methods of a service, by its author's class or by its name."""
        described = None if isinstance(service, str) else declared(service)
        name = service if isinstance(service, str) else declared(service).spec.name
        return Client(self, name, described, {"version": version, "timeout_s": timeout_s, "where": where})

    def brief(self, service: str, method: str, version: str = "") -> MethodBrief:
        """Return what has to be known of a method to call it. Raises UsageError when there is no such."""
        return self._calling.brief(service, method, version)

    async def _named(
        self, service: str, brief: MethodBrief, positional: Sequence[object], named: Mapping[str, object], version: str
    ) -> dict[str, Any]:
        """Give every parameter its name, in the order in which the method has them."""
        if not positional:
            return dict(named)
        spec = await self._calling.spec(service, version)
        method = spec.method(brief.name)
        return by_name(f"{service}.{brief.name}", parameters(method) if method else [], positional, named)


class Client:
    """A service's methods: with its author's class the parameters and results have the author's types."""

    def __init__(self, clients: Clients, name: str, described: Declared | None, options: Mapping[str, Any]) -> None:
        """``options`` are those of all its calls, as `Clients.call` takes them."""
        self._clients = clients
        self._name = name
        self._described = described
        self._options = options

    def __repr__(self) -> str:
        return f"<client of the service {self._name!r}>"

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(self._described.methods if self._described else ())]

    def __getattr__(self, method: str) -> Callable[..., Any]:
        """Return a method. Raises UsageError for one that the service does not have, AttributeError for no name."""
        if method.startswith("_"):
            raise AttributeError(method)
        if self._described is None:
            return self._plain(method, self._clients.brief(self._name, method, self._options["version"]))
        if method not in self._described.methods:
            raise UsageError(f"{self._described.cls.__name__} has no method {method!r} under @method.")
        return self._typed(self._described, self._described.methods[method])

    def _plain(self, method: str, brief: MethodBrief) -> Callable[..., Any]:
        target, options = f"{self._name}.{method}", self._options

        def call(*positional: object, **named: object) -> Awaitable[Any] | Stream:
            if brief.kind == "server_stream":
                return self._clients.stream(target, positional, named, **options)
            return self._clients.call(target, positional, named, **options)

        call.__name__ = method
        return call

    def _typed(self, described: Declared, method: DeclaredMethod) -> Callable[..., Any]:
        target, names = f"{self._name}.{method.name}", [each.name for each in method.parameters]

        def result(plain: Any) -> Any:  # noqa: ANN401
            return values.convert(plain, method.result, what=f"What {target} gave", fault=ServiceError)

        def call(*positional: object, **named: object) -> Awaitable[Any] | Stream:
            given = by_name(target, names, positional, named)
            if unknown := sorted(set(given) - set(names)):
                raise UsageError(f"{target} has no parameter {unknown[0]!r}; it takes {', '.join(names) or 'none'}.")
            if lacking := [each.name for each in method.parameters if each.required and each.name not in given]:
                raise UsageError(f"{target} needs {', '.join(lacking)}.")
            more: dict[str, Any] = {**self._options, "result": result}
            if method.kind == "server_stream":
                return self._clients.stream(target, (), given, **more)
            return self._clients.call(target, (), given, **more)

        function = inspect.getattr_static(described.cls, method.name)
        call.__name__, call.__doc__ = method.name, function.__doc__
        signature = inspect.signature(function)
        call.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
        return call


def split(target: str) -> tuple[str, str]:
    """Return a service's and a method's name. Raises UsageError."""
    service, dot, method = target.rpartition(".")
    if not (service and dot and method):
        raise UsageError(f"{target[:80]!r} is no method of a service: write SERVICE.METHOD, as in 'detector.detect'.")
    return service, method


def parameters(method: MethodSpec) -> list[str]:
    """Return the names of a method's parameters, in order."""
    return list(msgspec.json.decode(method.takes, type=dict[str, Any]).get("properties", {}))


def by_name(
    target: str, names: Sequence[str], positional: Sequence[object], named: Mapping[str, object]
) -> dict[str, Any]:
    """Give positional values their names. Raises UsageError for too many of them, or one that is given twice."""
    if len(positional) > len(names):
        raise UsageError(f"{target} takes {', '.join(names) or 'no parameters'}; {len(positional)} values were given.")
    given = dict(zip(names, positional, strict=False))
    if twice := sorted(set(given) & set(named)):
        raise UsageError(f"{target} was given {twice[0]!r} twice.")
    return {**given, **named}


def session_of(brief: MethodBrief, given: Mapping[str, object]) -> str:
    """Return what stands for a call's session: equal values of the parameter, equal texts. Empty: it has none."""
    if not brief.session or given.get(brief.session) is None:
        return ""
    value, arrays = values.encode(given[brief.session])
    hashed = hashlib.blake2b(value.tree, digest_size=_SESSION_BYTES)
    for array in arrays:
        hashed.update(array.tobytes())
    return hashed.hexdigest()


def _asked(brief: MethodBrief, given: Mapping[str, object], version: str, id_: str) -> tuple[Asked, list[Any]]:
    value, arrays = values.encode(dict(given))
    asked = Asked(method=brief.name, value=value, version=version, session=session_of(brief, given), request=id_)
    return asked, arrays


async def _encoded(items: AsyncIterable[object]) -> AsyncGenerator[Answer[Given], None]:
    async for item in items:
        value, arrays = values.encode(item)
        yield Answer(Given(value=value), arrays)
