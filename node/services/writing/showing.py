"""A service in words, for its author: needs and methods, each with its parameters as JSON Schema has them."""

from collections.abc import Iterator
from typing import Any

import msgspec

from ...config import size_text
from ..spec import MethodSpec, ServiceSpec
from .array_types import ANY_DTYPE


def shown(spec: ServiceSpec) -> Iterator[str]:
    """Yield lines that describe a service."""
    needs = spec.needs
    yield f"{spec.name} {spec.version}{f': {first_line(spec.doc)}' if spec.doc else ''}"
    also = [f"the models {', '.join(needs.models)}"] if needs.models else []
    also += [f"the devices {', '.join(needs.devices)}"] if needs.devices else []
    cores = f"{needs.cores:g} {'core' if needs.cores == 1 else 'cores'}"
    yield f"  needs {', '.join([size_text(needs.memory_bytes), cores, *also])}"
    for method in spec.methods:
        yield from _method(method)


def _method(method: MethodSpec) -> Iterator[str]:
    takes, gives = msgspec.json.decode(method.takes), msgspec.json.decode(method.gives)
    required = takes.get("required", [])
    parameters = []
    for name, schema in takes.get("properties", {}).items():
        default = "" if name in required else f" = {msgspec.json.encode(schema.get('default')).decode()}"
        parameters.append(f"{name}: {short(schema)}{default}")
    result = f"stream of {short(gives)}" if method.kind == "server_stream" else short(gives)
    yield f"  {method.name}({', '.join(parameters)}) -> {result}"
    if method.doc:
        yield f"      {first_line(method.doc)}"
    options = [f"{method.timeout_s:g} s"]
    options += [f"{method.concurrency} at once"] if method.concurrency > 1 else []
    wait = f" within {method.batch_wait_ms:g} ms" if method.batch_wait_ms else ""
    options += [f"batches of {method.batch_size_max}{wait}"] if method.batch_size_max > 1 else []
    options += ["idempotent"] if method.idempotent else []
    options += [f"a session for each {method.session}"] if method.session else []
    options += ["on the caller's own device alone"] if method.where == "here" else []
    yield f"      {', '.join(options)}"


def first_line(text: str) -> str:
    return text.strip().splitlines()[0]


def short(schema: Any) -> str:  # noqa: ANN401 - JSON
    """A schema in a word or two."""
    match schema:
        case {"x-dtype": str(dtype)}:
            return "array" if dtype == ANY_DTYPE else f"array of {dtype}"
        case {"x-stream": True, "items": items}:
            return f"stream of {short(items)}"
        case {"$ref": str(ref)}:
            return ref.rpartition("/")[2]
        case {"anyOf": list(kinds)}:
            return " or ".join(map(short, kinds))
        case {"enum": list(values)}:
            return " or ".join(map(repr, values))
        case {"type": "array", "items": items}:
            return f"list of {short(items)}"
        case {"type": "string", "contentEncoding": "base64"}:
            return "bytes"
        case {"type": str(kind)}:
            return kind
    return "anything"
