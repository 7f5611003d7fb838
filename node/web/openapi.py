"""Services as an OpenAPI 3.1 document, and as a plain page for people. Pure."""

import html
from base64 import b64encode
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, Final

import msgspec

from ..services.spec import MethodSpec, ServiceSpec

_ARRAYS: Final = (
    'An array is nested lists, or {"dtype": "float32", "shape": [2, 3], "data": "…"} with its elements in base64, '
    "little-endian, in C order. Bytes are a string in base64."
)
_ERRORS: Final = {
    "404": "There is no such service or method.",
    "422": "The parameters do not fit the method; the message says which.",
    "429": "All instances have as much to do as they take; ask again after Retry-After seconds.",
    "500": "The service's own code failed; asking again would run it again.",
    "502": "An instance was lost while it worked: it is not known whether the call ran.",
    "503": "No instance took the call, so it did not run.",
    "504": "No answer came in the time that there was; it is not known whether the call ran.",
}
_STYLE: Final = (
    ":root{color-scheme:light dark}"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}"
    "pre{background:#8881;padding:.75rem;white-space:pre-wrap;overflow-wrap:anywhere;font-size:13px}"
    "h2{border-top:1px solid #8884;padding-top:1rem}"
    "code{font-size:14px}small{color:#777}"
)


_DEPTH_MAX: Final = 3  # of an example
# The page has one style, of ours, and nothing else; what services say of themselves is a stranger's text.
PAGE_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def document(specs: Iterable[ServiceSpec], *, mesh: str) -> dict[str, Any]:
    """Return what all these services take and give, as an OpenAPI document."""
    components: dict[str, Any] = {}
    paths = {
        f"/v1/services/{spec.name}/{method.name}": {"post": _operation(spec, method, components)}
        for spec in specs
        for method in spec.methods
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Services of the mesh {mesh!r}", "version": "1", "description": _ARRAYS},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(spec: ServiceSpec, method: MethodSpec, components: dict[str, Any]) -> dict[str, Any]:
    prefix = f"{spec.name}.{method.name}"
    takes = _hoisted(method.takes, f"{prefix}.takes", components)
    gives = _hoisted(method.gives, f"{prefix}.gives", components)
    kind = "text/event-stream" if method.kind == "server_stream" else "application/json"
    errors = {status: {"description": said} for status, said in _ERRORS.items()}
    return {
        "operationId": prefix,
        "summary": method.doc.partition("\n")[0] or prefix,
        "description": method.doc,
        "tags": [spec.name],
        "parameters": [_where(method)],
        "requestBody": {"required": True, "content": {"application/json": {"schema": takes}}},
        "responses": {"200": {"description": _what(method), "content": {kind: {"schema": gives}}}, **errors},
    }


def _where(method: MethodSpec) -> dict[str, Any]:
    places = ["here"] if method.where == "here" else ["anywhere", "here"]
    return {
        "name": "X-Where",
        "in": "header",
        "description": "Who may answer: any device, or the one that is asked alone.",
        "schema": {"enum": places, "default": places[0]},
    }


def _what(method: MethodSpec) -> str:
    return "Each event is one item; the last is [DONE]." if method.kind == "server_stream" else "What the method gives."


def _hoisted(text: str, prefix: str, components: dict[str, Any]) -> Any:  # noqa: ANN401 - JSON
    """Move a schema's own definitions to the document's, for references are relative to the whole document."""
    schema = msgspec.json.decode(text, type=dict[str, Any])
    definitions = schema.pop("$defs", {})
    schema.pop("$schema", None)
    for name, definition in definitions.items():
        components[f"{prefix}.{name}"] = _moved(definition, prefix)
    return _moved(schema, prefix)


def _moved(node: Any, prefix: str) -> Any:  # noqa: ANN401
    match node:
        case dict():
            return {key: _reference(key, each, prefix) for key, each in node.items()}
        case list():
            return [_moved(each, prefix) for each in node]
    return node


def _reference(key: str, node: Any, prefix: str) -> Any:  # noqa: ANN401
    if key == "$ref" and isinstance(node, str):
        return node.replace("#/$defs/", f"#/components/schemas/{prefix}.")
    return _moved(node, prefix)


def page(specs: Iterable[ServiceSpec], *, mesh: str, url: str) -> str:
    """Return the same as a page: each method, what it takes and gives, and how to call it from a shell."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>Services of {html.escape(mesh)}</title>",
        f"<style>{_STYLE}</style><h1>Services of {html.escape(mesh)}</h1><p>{html.escape(_ARRAYS)} The same for",
        " programs: <a href=/v1/services/openapi.json>openapi.json</a>.</p>",
    ]
    for spec in specs:
        parts.append(f"<h2>{html.escape(spec.name)} <small>{html.escape(spec.version)}</small></h2>")
        parts.append(f"<p>{html.escape(spec.doc)}</p>")
        parts += [_method(spec, method, url) for method in spec.methods]
    if len(parts) == 4:
        parts.append("<p>No service is ready. <code>lepton-node service new</code> begins one.</p>")
    return "".join(parts)


def _method(spec: ServiceSpec, method: MethodSpec, url: str) -> str:
    takes = msgspec.json.decode(method.takes, type=dict[str, Any])
    definitions = takes.get("$defs", {})
    values = {name: _example(each, definitions) for name, each in takes.get("properties", {}).items()}
    example = msgspec.json.encode(values).decode()
    curl = f"curl {url}/services/{spec.name}/{method.name} -H 'Content-Type: application/json' -d '{example}'"
    said = "".join(
        f"<details><summary>{what}</summary><pre>{html.escape(_pretty(text))}</pre></details>"
        for what, text in (("takes", method.takes), ("gives", method.gives))
    )
    doc = html.escape(method.doc)
    return f"<h3><code>{html.escape(method.name)}</code></h3><p>{doc}</p><pre>{html.escape(curl)}</pre>{said}"


def _example(schema: Mapping[str, Any], definitions: Mapping[str, Any], depth: int = 0) -> Any:  # noqa: ANN401
    """Return a value that a schema might take; what is deeper than a few steps is left empty."""
    schema = definitions.get(str(schema.get("$ref", "")).removeprefix("#/$defs/"), schema)
    if "default" in schema:
        return schema["default"]
    if "enum" in schema:
        return schema["enum"][0]
    if "x-dtype" in schema:
        return [0, 0]
    if schema.get("type") == "object" and depth < _DEPTH_MAX:
        inside = schema.get("properties", {})
        needed = [name for name in schema.get("required", ()) if name in inside]
        return {name: _example(inside[name], definitions, depth + 1) for name in needed}
    return {"string": "", "integer": 0, "number": 0.5, "boolean": True, "array": []}.get(str(schema.get("type")), {})


def _pretty(text: str) -> str:
    return msgspec.json.format(text.encode(), indent=2).decode()
