"""Reads a service's class: which methods it has, what each takes and gives, and what is wrong with any of it."""

import inspect
import typing
from collections import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, get_args, get_origin, get_type_hints

from ....mesh.errors import UsageError
from ..spec import METHODS_MAX, Kind, ServiceSpec

OPTIONS: Final = "__lepton_method__"  # on a function: its Options
DECLARED: Final = "__lepton_service__"  # on a class: its Declared
_ASYNC_STREAMS: Final = (abc.AsyncIterator, abc.AsyncIterable, abc.AsyncGenerator)
_STREAMS: Final = (*_ASYNC_STREAMS, abc.Iterator, abc.Iterable, abc.Generator)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What ``@method`` was given."""

    max_batch_size: int
    max_wait_ms: float
    concurrency: int
    timeout_s: float
    idempotent: bool
    session: str
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter as a caller sees it: of a batched method and of a client stream ``type`` is that of one item."""

    name: str
    type: Any
    required: bool = True
    default: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredMethod:
    """One method as its author wrote it; ``result`` is the type of one answer, or of one item of a server stream."""

    name: str
    owner: str  # Class.method, for errors
    kind: Kind
    parameters: tuple[Parameter, ...]
    result: Any
    options: Options
    is_async: bool
    stream: str = ""  # the parameter that is a client stream
    doc: str = ""

    @property
    def batched(self) -> bool:
        return self.options.max_batch_size > 1

    def parameter(self, name: str) -> Parameter | None:
        return next((each for each in self.parameters if each.name == name), None)


@dataclass(slots=True, kw_only=True)
class Declared:
    """A service's class, read."""

    cls: type[Any]
    methods: Mapping[str, DeclaredMethod]
    setup_takes_mesh: bool
    doc: str = ""
    spec: ServiceSpec = field(init=False)  # as `describing` has it


def declared(cls: type[Any]) -> Declared:
    """Return what ``@service`` read of a class. Raises UsageError for any other class."""
    found = cls.__dict__.get(DECLARED)
    if not isinstance(found, Declared):
        raise UsageError(f"{cls.__qualname__} is no service: put @service(name, version=…) above the class.")
    return found


def read_class(cls: type[Any]) -> Declared:
    """Read a class. Raises UsageError that names the class, the method and the parameter that is wrong."""
    if not inspect.isclass(cls):
        raise UsageError(f"@service stands above a class, and {cls!r} is none.")
    marked = {name: found for name, found in _functions(cls) if hasattr(getattr(found, "__func__", found), OPTIONS)}
    if not marked:
        raise UsageError(f"{cls.__name__} has no method that could be called: put @method above one.")
    if len(marked) > METHODS_MAX:
        raise UsageError(f"{cls.__name__} has {len(marked)} methods; a service has at most {METHODS_MAX}.")
    _require_no_arguments(cls)
    methods = {name: _Reader(cls, name, function).read() for name, function in marked.items()}
    return Declared(
        cls=cls, methods=methods, setup_takes_mesh=_setup_takes_mesh(cls), doc=inspect.cleandoc(cls.__doc__ or "")
    )


def _functions(cls: type[Any]) -> list[tuple[str, Any]]:
    """All functions of a class, those of its bases first, in the order in which they were written."""
    names = dict.fromkeys(name for base in reversed(cls.__mro__) for name in vars(base))
    return [(name, inspect.getattr_static(cls, name)) for name in names]


def _require_no_arguments(cls: type[Any]) -> None:
    try:
        inspect.signature(cls).bind()
    except TypeError as error:
        raise UsageError(
            f"{cls.__name__}() has to work without arguments ({error}): read settings in setup(self)."
        ) from error
    except ValueError:  # a class of C code: it is found out when it is made
        return


def _setup_takes_mesh(cls: type[Any]) -> bool:
    for name, most in (("setup", 2), ("close", 1)):
        function = getattr(cls, name, None)
        if function is None:
            continue
        needed = [each for each in inspect.signature(function).parameters.values() if each.default is each.empty]
        if len(needed) > most:
            allowed = "setup(self) or setup(self, mesh)" if name == "setup" else "close(self)"
            raise UsageError(f"{cls.__name__}.{name} takes {len(needed)} parameters; write {allowed}.")
    setup = getattr(cls, "setup", None)
    return setup is not None and len(inspect.signature(setup).parameters) > 1


class _Reader:
    """Reads one method."""

    def __init__(self, cls: type[Any], name: str, function: Callable[..., Any]) -> None:
        self._name = name
        self._owner: Final = f"{cls.__name__}.{name}"
        self._function = function
        self._options: Options = getattr(getattr(function, "__func__", function), OPTIONS)

    def read(self) -> DeclaredMethod:
        function, options = self._function, self._options
        if not inspect.isfunction(function):
            self._fail("is no plain method; @method stands above a def with self, and below other decorators")
        hints = self._hints()
        parameters = self._parameters(hints)
        streams = [each.name for each in parameters if (get_origin(each.type) or each.type) in _ASYNC_STREAMS]
        result = hints["return"]
        gives_stream = (get_origin(result) or result) in _STREAMS
        kind = self._kind(streams, gives_stream=gives_stream)
        is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
        if streams:
            if not is_async:
                self._fail(f"takes the stream {streams[0]!r}, so it has to be an `async def`")
            parameters = [self._item_of(each) if each.name in streams else each for each in parameters]
        if gives_stream:
            self._check_generator(result)
            result = self._item(result, "its result")
        if options.max_batch_size > 1:
            parameters, result = self._batched(parameters, result, kind)
        if options.session and options.session not in {each.name for each in parameters}:
            self._fail(f"has session={options.session!r}, but no parameter of that name")
        if options.idempotent and kind == "client_stream":
            self._fail("takes a stream, which cannot be sent twice, so it cannot be idempotent")
        return DeclaredMethod(
            name=self._name,
            owner=self._owner,
            kind=kind,
            parameters=tuple(parameters),
            result=result,
            options=options,
            is_async=is_async,
            stream=streams[0] if streams else "",
            doc=inspect.cleandoc(function.__doc__ or ""),
        )

    def _fail(self, what: str) -> NoReturn:
        raise UsageError(f"{self._owner} {what}.")

    def _hints(self) -> dict[str, Any]:
        try:
            hints = get_type_hints(self._function, include_extras=True)
        except NameError as error:
            self._fail(f"has an annotation that cannot be read here: {error}; define it above the class, in the module")
        except Exception as error:  # noqa: BLE001 - an annotation is any expression of the author's
            self._fail(f"has an annotation that cannot be read: {type(error).__name__}: {error}")
        if "return" not in hints:
            self._fail("does not say what it gives: annotate its result, `-> None` where there is none")
        return hints

    def _parameters(self, hints: Mapping[str, Any]) -> list[Parameter]:
        signature = list(inspect.signature(self._function).parameters.values())
        if not signature or signature[0].name != "self":
            self._fail("has to take `self` first")
        found = []
        for each in signature[1:]:
            if each.kind in {each.VAR_POSITIONAL, each.VAR_KEYWORD, each.POSITIONAL_ONLY}:
                self._fail(f"takes {each}: name every parameter, since callers give them by name")
            if each.name not in hints:
                self._fail(f"does not say what its parameter {each.name!r} is: annotate it")
            required = each.default is each.empty
            default = None if required else each.default
            found.append(Parameter(name=each.name, type=hints[each.name], required=required, default=default))
        return found

    def _kind(self, streams: list[str], *, gives_stream: bool) -> Kind:
        if len(streams) > 1:
            self._fail(f"takes {len(streams)} streams, {', '.join(streams)}; a call has one")
        if streams and gives_stream:
            self._fail(f"takes the stream {streams[0]!r} and gives one; make it two methods, or one that gives a list")
        return "client_stream" if streams else "server_stream" if gives_stream else "unary"

    def _item_of(self, parameter: Parameter) -> Parameter:
        if not parameter.required:
            self._fail(f"gives its stream {parameter.name!r} a default")
        return Parameter(name=parameter.name, type=self._item(parameter.type, f"its parameter {parameter.name!r}"))

    def _item(self, stream: Any, what: str) -> Any:  # noqa: ANN401 - types are values here
        arguments = get_args(stream)
        if not arguments:
            self._fail(f"does not say what {what} is a stream of: write AsyncIterator[…]")
        return arguments[0]

    def _check_generator(self, result: Any) -> None:  # noqa: ANN401
        origin = get_origin(result) or result
        generates = inspect.isasyncgenfunction(self._function)
        if generates != (origin in _ASYNC_STREAMS) or inspect.iscoroutinefunction(self._function):
            said = "AsyncIterator" if generates else "Iterator"
            self._fail(f"gives a stream: write `async def` with yield and AsyncIterator[…], or `def` and {said}[…]")

    def _batched(
        self,
        parameters: list[Parameter],
        result: Any,  # noqa: ANN401
        kind: Kind,
    ) -> tuple[list[Parameter], Any]:
        if kind != "unary":
            self._fail("is a stream, so its calls cannot be batched")
        if not parameters:
            self._fail("takes no parameters, so there is nothing to batch")
        if get_origin(result) not in {list, abc.Sequence} or not get_args(result):
            self._fail("is batched, so its result has to be a list with an item for each call: `-> list[…]`")
        items = []
        for each in parameters:
            if get_origin(each.type) not in {list, abc.Sequence} or not get_args(each.type):
                self._fail(f"is batched, so its parameter {each.name!r} has to be a list, an item a call: `list[…]`")
            if not each.required:
                self._fail(f"is batched, so its parameter {each.name!r} can have no default: every call gives an item")
            items.append(Parameter(name=each.name, type=typing.get_args(each.type)[0]))
        return items, get_args(result)[0]
