"""Values as JSON, for HTTP and the command line: read by a method's schema, so that whoever reads needs no types.

An array is nested lists, or ``{"dtype": "float32", "shape": [2, 3], "data": "…"}`` with its elements in base64,
little-endian, in C order. Bytes are a string in base64.
"""

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec
import numpy as np

from ....mesh import limits
from ....mesh.errors import UsageError
from ....mesh.tensors import DTYPES, Array, buffer_of
from .array_types import ANY_DTYPE, TENSOR_MARK
from .values import as_array

_STEPS_MAX: Final = 64  # into a schema: deeper, or in a circle, it describes no value that anybody sends

Arrays = Literal["base64", "lists"]


def read(text: bytes | str, schema: str) -> Any:  # noqa: ANN401 - plain data
    """Read JSON as plain data with numpy arrays and bytes where the schema has them.

    It is not checked against the rest of the schema: the instance does that. Raises UsageError that says where.
    """
    try:
        data = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"This is not valid JSON: {error}.") from error
    return shaped(data, schema)


def shaped(data: object, schema: str) -> Any:  # noqa: ANN401
    """The same for JSON that is decoded already."""
    whole = msgspec.json.decode(schema, type=dict[str, Any])
    try:
        return _Reader(whole).read(data, whole, "$", 0)
    except RecursionError as error:
        raise UsageError("This JSON nests too deeply.") from error


def write(value: object, *, arrays: Arrays = "base64") -> bytes:
    """Write plain data, dataclasses and arrays as JSON. Raises UsageError for what JSON cannot have."""

    def custom(found: Any) -> Any:  # noqa: ANN401 - msgspec's hook
        if isinstance(found, np.generic):
            return found.item()
        array = as_array(found)
        if array is None:
            raise TypeError(f"{type(found).__name__} cannot be JSON")
        return array.tolist() if arrays == "lists" else packed(array)

    try:
        return msgspec.json.encode(value, enc_hook=custom)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(f"A {type(value).__name__} cannot be written as JSON: {error}.") from error


def packed(array: Array) -> dict[str, Any]:
    """An array as an object of JSON."""
    data = base64.b64encode(buffer_of(array)).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}


class _Reader:
    """Walks data and its schema together."""

    def __init__(self, whole: Mapping[str, Any]) -> None:
        self._definitions = whole.get("$defs", {})

    def read(self, data: Any, schema: Any, at: str, steps: int) -> Any:  # noqa: ANN401
        schema = self._meant(schema, data, steps)
        if "x-dtype" in schema:
            found = _array(data, str(schema["x-dtype"]), at)
            is_list = not isinstance(data, dict)
            return (
                found.astype(np.float32) if is_list and TENSOR_MARK in schema and found.dtype == np.float64 else found
            )
        if isinstance(data, str) and schema.get("contentEncoding") == "base64":
            return _bytes(data, at)
        if isinstance(data, dict):
            known, other = schema.get("properties", {}), schema.get("additionalProperties", {})
            return {key: self.read(each, known.get(key, other), f"{at}.{key}", steps + 1) for key, each in data.items()}
        if isinstance(data, list):
            first, other = schema.get("prefixItems", []), schema.get("items", {})
            return [
                self.read(each, first[number] if number < len(first) else other, f"{at}[{number}]", steps + 1)
                for number, each in enumerate(data)
            ]
        return data

    def _meant(self, schema: Any, data: Any, steps: int) -> Mapping[str, Any]:  # noqa: ANN401
        """Follow references, and of alternatives take the first that this data can be."""
        for _ in range(_STEPS_MAX - min(steps, _STEPS_MAX)):
            if not isinstance(schema, dict):
                return {}
            if "$ref" in schema:
                schema = self._definitions.get(str(schema["$ref"]).removeprefix("#/$defs/"), {})
            elif "anyOf" in schema and "x-dtype" not in schema:
                schema = next((each for each in schema["anyOf"] if self._can_be(each, data)), {})
            else:
                return schema
        raise UsageError(f"A schema goes on for more than {_STEPS_MAX} steps.")

    def _can_be(self, schema: Any, data: Any) -> bool:  # noqa: ANN401
        for _ in range(_STEPS_MAX):
            if not isinstance(schema, dict) or "$ref" not in schema:
                break
            schema = self._definitions.get(str(schema["$ref"]).removeprefix("#/$defs/"), {})
        if not isinstance(schema, dict):
            return False
        if "x-dtype" in schema:
            return isinstance(data, list | dict | float | int)
        if isinstance(data, dict):
            tags = {key: each["enum"] for key, each in schema.get("properties", {}).items() if "enum" in each}
            required = schema.get("required", [])
            fits = all(key in data for key in required) and all(
                data.get(key) in enum for key, enum in tags.items() if key in required
            )
            return schema.get("type", "object") == "object" and fits
        kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", type(None): "null"}
        wanted = schema.get("type")
        if wanted is None:
            return data in schema["enum"] if "enum" in schema else True
        return wanted == kinds[type(data)] or (wanted == "number" and type(data) is int)


def _bytes(data: str, at: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"{at} has to be bytes in base64: {error}.") from error


def _array(data: Any, dtype: str, at: str) -> Array:  # noqa: ANN401
    if isinstance(data, dict):
        return _unpacked(data, at)
    try:
        with np.errstate(over="raise"):
            array = np.array(data, dtype=None if dtype == ANY_DTYPE else DTYPES[dtype])
        found = as_array(array)
    except (ValueError, TypeError, ArithmeticError, KeyError) as error:
        raise UsageError(f"{at} is no array of {dtype}: {error}.") from error
    assert found is not None
    return found


def _unpacked(data: Mapping[str, Any], at: str) -> Array:
    match data:
        case {"dtype": str(dtype), "shape": list(shape), "data": str(text)} if dtype in DTYPES and len(data) == 3:
            pass
        case _:
            raise UsageError(f'{at} is an array: lists of numbers, or {{"dtype", "shape", "data"}}.')
    fits = len(shape) <= limits.TENSOR_DIMENSIONS_MAX and all(type(size) is int and size >= 0 for size in shape)
    raw = _bytes(text, f"{at}.data")
    if not fits or math.prod(shape) * DTYPES[dtype].itemsize != len(raw):
        raise UsageError(f"{at} has {len(raw)} B of data, which is no array of {dtype} with the shape {shape}.")
    try:
        return np.frombuffer(bytearray(raw), dtype=DTYPES[dtype]).reshape(shape)
    except ValueError as error:
        raise UsageError(f"{at} cannot have the shape {shape}: {error}.") from error
