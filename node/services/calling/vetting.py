"""What a host says a service is, checked before anybody reads values by it. Pure.

A host's word is held against what the service's deployer has stated; schemas, which are in the bundle alone, have to be
ones that this code can have made: whoever follows them meets no surprise and takes a bounded time.
"""

from collections.abc import Iterable
from typing import Any, Final, NoReturn

import msgspec

from ....mesh.errors import PeerError
from ....mesh.tensors import DTYPES
from ..bundling.bundles import brief_of
from ..records import Release
from ..spec import ServiceSpec
from ..writing.array_types import ANY_DTYPE

_DEPTH_MAX: Final = 64  # of a schema: dataclasses are beside each other in it, and not in each other
_ALTERNATIVES_MAX: Final = 256  # of one value: a union of as many classes is nobody's; each is tried for each value


def vet(spec: ServiceSpec, service: str, releases: Iterable[Release]) -> ServiceSpec:
    """Return a host's description of a service. Raises PeerError for one that its deployer's word does not bear out."""
    briefs = tuple(map(brief_of, spec.methods))
    known = any((its.version, its.methods) == (spec.version, briefs) for its in releases)
    if spec.name != service or not known:
        raise PeerError(f"A host describes {service!r} {spec.version} as another service than was deployed.")
    for method in spec.methods:
        check_schema(method.takes)
        check_schema(method.gives)
    return spec


def check_schema(text: str) -> None:
    """Raise PeerError for a JSON Schema that is none of ours."""
    try:
        schema = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise PeerError(f"A host's schema is not valid: {error}.") from error
    _check(schema, 0)


def _check(schema: Any, depth: int) -> None:  # noqa: ANN401 - JSON
    if not isinstance(schema, dict) or depth > _DEPTH_MAX:
        _refuse("one is no object, or lies too deep")
    _list(schema.get("enum", []))
    kinds = schema.get("type", "")
    words = [*(kinds if isinstance(kinds, list) else [kinds]), *_list(schema.get("required", []))]
    words += [schema.get(key, "") for key in ("$ref", "contentEncoding")]
    if not all(isinstance(word, str) for word in words):
        _refuse("a word is none")
    if schema.get("x-dtype", ANY_DTYPE) not in (ANY_DTYPE, *DTYPES):
        _refuse("an array has elements that do not travel")
    for each in _parts(schema):
        _check(each, depth + 1)


def _parts(schema: dict[str, Any]) -> list[Any]:
    """Return the schemas inside a schema."""
    found = [schema[key] for key in ("items", "additionalProperties") if not isinstance(schema.get(key, True), bool)]
    for key in ("properties", "$defs"):
        found += _object(schema.get(key, {})).values()
    for key in ("anyOf", "prefixItems"):
        several = _list(schema.get(key, []))
        if len(several) > _ALTERNATIVES_MAX:
            _refuse(f"{key} has {len(several)} parts")
        found += several
    return found


def _object(found: Any) -> dict[str, Any]:  # noqa: ANN401
    if not isinstance(found, dict):
        _refuse("an object is none")
    return found


def _list(found: Any) -> list[Any]:  # noqa: ANN401
    if not isinstance(found, list):
        _refuse("a list is none")
    return found


def _refuse(what: str) -> NoReturn:
    raise PeerError(f"A host describes a service by a schema that nobody makes: {what}.")
