"""A service's class as data: its spec, with JSON Schemas of what methods take and give.

How arrays are in a schema, and in JSON, is in ``array_types``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from ....mesh.errors import UsageError
from ....mesh.messages import NAME_PATTERN
from ...config import parse_size
from ..spec import SCHEMA_CHARACTERS_MAX, MethodSpec, ServiceSpec
from .array_types import TENSOR_MARK, Marks, array_schema, is_array, is_tensor
from .declaring import Declared, DeclaredMethod

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
STREAM_MARK: Final = "x-stream"
DOC_CHARACTERS_MAX: Final = 1000  # of one method, or of the service: a paragraph for a list of methods


def described(found: Declared, *, name: str, version: str, needs: Mapping[str, Any]) -> Declared:
    """Fill in the spec. Raises UsageError that names what is wrong with a type, a name or a number."""
    cls = found.cls
    try:
        needed = {**needs, "memory_bytes": parse_size(str(needs["memory"]))}
        del needed["memory"]
        spec = {
            "name": name,
            "version": version,
            "entry": f"{cls.__module__}:{cls.__name__}",
            "methods": [msgspec.to_builtins(_method(each)) for each in found.methods.values()],
            "needs": needed,
            "doc": found.doc[:DOC_CHARACTERS_MAX],
        }
        found.spec = msgspec.convert(spec, ServiceSpec)
    except (msgspec.ValidationError, UsageError) as error:
        text = str(error).replace("`$.", "`")
        hint = f" (a name matches {NAME_PATTERN})" if "`name`" in text else ""
        raise UsageError(text if text.startswith(cls.__name__) else f"{cls.__name__}: {text}{hint}") from error
    return found


def _method(method: DeclaredMethod) -> MethodSpec:
    types = [each.type for each in method.parameters]
    for each in method.parameters:
        _check(each.type, f"{method.owner}: its parameter {each.name!r}")
    _check(method.result, f"{method.owner}: its result")
    schemas, definitions = _schemas(types, method.owner)
    properties = {}
    for each, schema in zip(method.parameters, schemas, strict=True):
        properties[each.name] = schema if each.required else schema | _default(each.default)
    if method.stream:
        properties[method.stream] = {"type": "array", "items": properties[method.stream], STREAM_MARK: True}
    takes = {
        "$schema": DIALECT,
        "type": "object",
        "properties": properties,
        "required": [each.name for each in method.parameters if each.required],
        "additionalProperties": False,
    }
    (given,), also = _schemas([method.result], method.owner)
    options = method.options
    try:
        return msgspec.convert(
            {
                "name": method.name,
                "kind": method.kind,
                "timeout_s": options.timeout_s,
                "idempotent": options.idempotent,
                "session": options.session,
                "takes": _text(takes, definitions, method.owner),
                "gives": _text({"$schema": DIALECT, **given}, also, method.owner),
                "streams": method.stream,
                "doc": method.doc[:DOC_CHARACTERS_MAX],
                "concurrency": options.concurrency,
                "batch_size_max": options.max_batch_size,
                "batch_wait_ms": options.max_wait_ms,
                "where": options.where,
            },
            MethodSpec,
        )
    except msgspec.ValidationError as error:
        raise UsageError(f"{method.owner}: {error}") from error


def _default(value: object) -> dict[str, Any]:
    try:
        return {"default": msgspec.json.decode(msgspec.json.encode(value))}
    except (TypeError, ValueError, RecursionError):  # an array: the schema does without it
        return {}


def _text(schema: dict[str, Any], definitions: dict[str, Any], owner: str) -> str:
    text = msgspec.json.encode(schema | ({"$defs": definitions} if definitions else {})).decode()
    if len(text) > SCHEMA_CHARACTERS_MAX:
        raise UsageError(f"{owner}: its types take {len(text)} characters as a schema; {SCHEMA_CHARACTERS_MAX} may be.")
    return text


def _check(kind: Any, what: str) -> None:  # noqa: ANN401
    """See whether values of a type can be read back. Raises UsageError."""
    try:
        msgspec.msgpack.Decoder(kind)
        _schemas([kind], what)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{what} cannot travel: {error}.") from error


def _schemas(kinds: Sequence[Any], what: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    def custom(kind: Any) -> dict[str, Any]:  # noqa: ANN401
        if kind is object:
            return {"title": "Anything"}
        if is_tensor(kind):
            return array_schema() | {TENSOR_MARK: True}
        if is_array(kind):
            return array_schema()
        raise UsageError(
            f"{what} cannot travel: {getattr(kind, '__qualname__', kind)} is neither plain data, an array, bytes, a "
            "dataclass nor a msgspec Struct."
        )

    schemas, definitions = msgspec.json.schema_components(kinds, schema_hook=custom, ref_template="#/$defs/{name}")
    Marks(definitions, what).mark_all(zip(kinds, schemas, strict=True))
    return list(schemas), definitions
