"""Arrays in annotations and in schemas.

In JSON an array is nested lists, or ``{"dtype", "shape", "data"}`` with its elements in base64, little-endian, in C
order. Its schema has ``x-dtype``: the element type, or ``any`` where the author left it open.
"""

from collections.abc import Iterable
from dataclasses import is_dataclass
from types import UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin, get_type_hints

import msgspec
import numpy as np

from ....mesh.errors import UsageError
from ....mesh.tensors import DTYPES

ANY_DTYPE: Final = "any"
TENSOR_MARK: Final = "x-tensor"  # torch's: numbers with a point in JSON are float32 there, in numpy's arrays float64


def array_schema(dtype: str = ANY_DTYPE) -> dict[str, Any]:
    """How an array looks in JSON."""
    packed = {
        "type": "object",
        "properties": {
            "dtype": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "data": {"type": "string", "contentEncoding": "base64"},
        },
        "required": ["dtype", "shape", "data"],
    }
    return {"x-dtype": dtype, "anyOf": [{"type": ["array", "number", "boolean"]}, packed]}


def is_tensor(kind: Any) -> bool:  # noqa: ANN401 - types are values here
    """Whether a type is torch.Tensor; torch need not be loaded to say no."""
    return getattr(kind, "__module__", "") == "torch" and getattr(kind, "__name__", "") == "Tensor"


def is_array(kind: Any) -> bool:  # noqa: ANN401
    return kind is np.ndarray or get_origin(kind) is np.ndarray


def element_type(kind: Any) -> type[np.generic] | None:  # noqa: ANN401
    """The element type that an annotation of an array names, as in ``NDArray[np.float32]``; None: any."""
    arguments = get_args(kind)
    inner = get_args(arguments[1]) if len(arguments) == 2 else ()
    named = (get_origin(inner[0]) or inner[0]) if inner else None
    return named if isinstance(named, type) and issubclass(named, np.generic) and named is not np.generic else None


def _dtype_name(kind: Any, what: str) -> str:  # noqa: ANN401
    named = element_type(kind)
    if named is None or named.__subclasses__():  # an abstract one, as np.floating
        return ANY_DTYPE
    name = np.dtype(named).name
    if name not in DTYPES:
        raise UsageError(f"{what} cannot travel: arrays of {name} do not; use one of {', '.join(DTYPES)}.")
    return name


class Marks:
    """Notes element types in msgspec's schemas, whose hook does not hear of them: types and schemas in step."""

    def __init__(self, definitions: dict[str, Any], what: str) -> None:
        self._definitions = definitions
        self._what = what
        self._seen: set[str] = set()

    def mark_all(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        for kind, schema in pairs:
            if isinstance(schema, dict):
                self._mark(kind, schema)

    def _mark(self, kind: Any, schema: dict[str, Any]) -> None:  # noqa: ANN401
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is Annotated:
            self._mark(arguments[0], schema)
        elif is_array(kind):
            schema["x-dtype"] = _dtype_name(kind, self._what)
        elif origin in {Union, UnionType}:
            if len(alternatives := schema.get("anyOf", ())) == len(arguments):
                self.mark_all(zip(arguments, alternatives, strict=True))
        elif "$ref" in schema:
            self._mark_fields(kind, str(schema["$ref"]).removeprefix("#/$defs/"))
        elif arguments and "prefixItems" in schema:
            self.mark_all(zip(arguments, schema["prefixItems"], strict=False))
        elif arguments and "additionalProperties" in schema:
            self.mark_all([(arguments[-1], schema["additionalProperties"])])
        elif arguments and "items" in schema:
            self.mark_all([(arguments[0], schema["items"])])

    def _mark_fields(self, kind: Any, name: str) -> None:  # noqa: ANN401
        if name in self._seen:
            return
        self._seen.add(name)
        properties = self._definitions.get(name, {}).get("properties", {})
        cls = get_origin(kind) or kind
        if is_dataclass(cls):
            types = get_type_hints(cls, include_extras=True)
        elif isinstance(cls, type) and issubclass(cls, msgspec.Struct):
            types = {each.encode_name: each.type for each in msgspec.structs.fields(cls)}
        else:
            types = getattr(cls, "__annotations__", {})
        self.mark_all((types.get(field), schema) for field, schema in properties.items())
