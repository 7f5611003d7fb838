"""A declaration becomes a spec, and everything that is wrong with one is told where it is made, with its place."""

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from lepton.mesh.errors import UsageError
from lepton.node.services import method, service
from lepton.node.services.spec import Needs
from lepton.node.services.writing.declaring import declared


@dataclass
class Detection:
    label: str
    mask: npt.NDArray[np.uint8] | None = None


@service("detector", version="1.2", memory="200MB", cores=0.5, models=("coco",), devices=("camera",))
class Detector:
    """Finds things."""

    def setup(self, mesh: object) -> None: ...

    @method(timeout_s=2, idempotent=True, session="user", concurrency=4, where="here")
    def detect(self, frame: npt.NDArray[np.uint8], user: str = "") -> list[Detection]:
        """Find things in one frame."""
        return [Detection(user)]

    @method(max_batch_size=8, max_wait_ms=5)
    def label(self, frame: list[torch.Tensor]) -> list[Literal["car", "person"]]:
        return ["car" for _ in frame]

    @method
    async def watch(self, seconds: float) -> AsyncIterator[Detection]:
        yield Detection(str(seconds))

    @method
    def count(self, to: int) -> Iterator[int]:
        yield from range(to)

    @method
    async def add(self, first: int, rest: AsyncIterator[int]) -> int:
        return first + sum([each async for each in rest])

    def not_called(self) -> None: ...


def test_a_class_is_described() -> None:
    spec = declared(Detector).spec
    assert (spec.name, spec.version, spec.doc) == ("detector", "1.2", "Finds things.")
    assert spec.entry.endswith("test_declaring:Detector")
    assert spec.needs == Needs(memory_bytes=200_000_000, cores=0.5, models=("coco",), devices=("camera",))
    assert {each.name: each.kind for each in spec.methods} == {
        "detect": "unary",
        "label": "unary",
        "watch": "server_stream",
        "count": "server_stream",
        "add": "client_stream",
    }
    detect, label, add = spec.method("detect"), spec.method("label"), spec.method("add")
    assert detect is not None
    assert label is not None
    assert add is not None
    assert (detect.timeout_s, detect.idempotent, detect.session, detect.concurrency) == (2, True, "user", 4)
    assert detect.where == "here"
    assert (detect.doc, label.batch_size_max, label.batch_wait_ms) == ("Find things in one frame.", 8, 5)
    assert add.streams == "rest"


def schema(name: str, part: str) -> Any:
    return msgspec.json.decode(getattr(declared(Detector).spec.method(name), part))


def test_schemas_show_parameters_arrays_and_streams() -> None:
    takes = schema("detect", "takes")
    assert takes["required"] == ["frame"]
    assert takes["properties"]["frame"]["x-dtype"] == "uint8"
    assert takes["properties"]["user"] == {"type": "string", "default": ""}
    gives = schema("detect", "gives")
    assert gives["items"] == {"$ref": "#/$defs/Detection"}
    assert gives["$defs"]["Detection"]["properties"]["mask"]["anyOf"][0]["x-dtype"] == "uint8"
    assert schema("label", "takes")["properties"]["frame"]["x-dtype"] == "any"  # one item: the batch is nobody's matter
    assert schema("label", "takes")["properties"]["frame"]["x-tensor"]
    assert schema("label", "gives")["enum"] == ["car", "person"]
    assert schema("count", "gives")["type"] == "integer"
    assert schema("add", "takes")["properties"]["rest"] == {
        "type": "array",
        "items": {"type": "integer"},
        "x-stream": True,
    }


def test_the_class_stays_as_it_is() -> None:
    assert Detector().detect(np.zeros(1, np.uint8), user="me") == [Detection("me")]
    assert declared(Detector).setup_takes_mesh


def test_methods_of_a_base_are_methods() -> None:
    @service("more", version="1")
    class More(Detector):
        @method
        def count(self, to: int) -> int:  # type: ignore[override]
            return to

    assert set(declared(More).methods) == set(declared(Detector).methods)
    assert declared(More).methods["count"].kind == "unary"
    with pytest.raises(UsageError, match="is no service"):
        declared(int)


def refused(body: dict[str, Any], **options: Any) -> str:
    cls = type("Thing", (), body)
    with pytest.raises(UsageError) as caught:
        service(**{"name": "thing", "version": "1", **options})(cls)
    return str(caught.value)


def fine(self: Any) -> None: ...


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "Not A Name"}, "name"),
        ({"version": "new"}, "version"),
        ({"memory": "much"}, "is not a size"),
        ({"cores": 0}, "needs.cores"),
        ({"models": tuple("abcdefghi")}, "needs.models"),
    ],
)
def test_a_service_out_of_bounds_is_refused(options: dict[str, Any], said: str) -> None:
    text = refused({"fine": method(fine)}, **options)
    assert text.startswith("Thing: ")
    assert said in text


class Strange: ...


def no_annotation(self: Any, x) -> int: ...  # type: ignore[no-untyped-def,empty-body]  # noqa: ANN001
def no_result(self: Any, x: int): ...  # type: ignore[no-untyped-def]  # noqa: ANN201
def strange_parameter(self: Any, x: list[Strange]) -> int: ...  # type: ignore[empty-body]
def strange_result(self: Any) -> Strange: ...  # type: ignore[empty-body]
def unclear(self: Any, x: npt.NDArray[np.float32] | bytes) -> int: ...  # type: ignore[empty-body]
def complex_array(self: Any, x: npt.NDArray[np.complex64]) -> int: ...  # type: ignore[empty-body]
def unknown(self: Any, x: "Nowhere") -> int: ...  # type: ignore[name-defined,empty-body]  # noqa: F821
def many(self: Any, *x: int) -> int: ...  # type: ignore[empty-body]
def no_self() -> int: ...  # type: ignore[empty-body]
async def both(self: Any, x: AsyncIterator[int]) -> AsyncIterator[int]:
    yield 1


async def two(self: Any, x: AsyncIterator[int], y: AsyncIterator[int]) -> int: ...  # type: ignore[empty-body]
def waits(self: Any, x: AsyncIterator[int]) -> int: ...  # type: ignore[empty-body]
def bare(self: Any) -> Iterator: ...  # type: ignore[type-arg,empty-body]
async def no_yield(self: Any) -> AsyncIterator[int]: ...  # type: ignore[empty-body]
def flat(self: Any, x: int) -> list[int]: ...  # type: ignore[empty-body]
def flat_result(self: Any, x: list[int]) -> int: ...  # type: ignore[empty-body]
def nothing(self: Any) -> list[int]: ...  # type: ignore[empty-body]
def optional(self: Any, x: list[int] = []) -> list[int]: ...  # type: ignore[empty-body]  # noqa: B006


@pytest.mark.parametrize(
    ("function", "options", "said"),
    [
        (no_annotation, {}, "does not say what its parameter 'x' is"),
        (no_result, {}, "does not say what it gives"),
        (strange_parameter, {}, "its parameter 'x' cannot travel: Strange is neither"),
        (strange_result, {}, "its result cannot travel: Strange is neither"),
        (unclear, {}, "its parameter 'x' cannot travel: Type unions containing a custom type"),
        (complex_array, {}, "its parameter 'x' cannot travel: arrays of complex64"),
        (unknown, {}, "name 'Nowhere' is not defined"),
        (many, {}, "takes *x: int: name every parameter"),
        (no_self, {}, "has to take `self` first"),
        (both, {}, "takes the stream 'x' and gives one"),
        (two, {}, "takes 2 streams, x, y"),
        (waits, {}, "takes the stream 'x', so it has to be an `async def`"),
        (bare, {}, "does not say"),
        (no_yield, {}, "gives a stream: write"),
        (flat, {"max_batch_size": 2}, "its parameter 'x' has to be a list"),
        (flat_result, {"max_batch_size": 2}, "its result has to be a list"),
        (nothing, {"max_batch_size": 2}, "nothing to batch"),
        (optional, {"max_batch_size": 2}, "can have no default"),
        (fine, {"session": "user"}, "session='user', but no parameter"),
        (fine, {"timeout_s": 0}, "timeout_s"),
        (fine, {"max_batch_size": 0}, "batch_size_max"),
        (fine, {"concurrency": 1000}, "concurrency"),
        (fine, {"max_wait_ms": "5"}, "batch_wait_ms"),
        (fine, {"where": "there"}, "where"),
    ],
)
def test_a_method_that_cannot_be_called_is_refused(function: Any, options: dict[str, Any], said: str) -> None:
    fresh = type(function)(function.__code__, function.__globals__, "asked", function.__defaults__)
    fresh.__annotations__ = function.__annotations__
    text = refused({"asked": method(**options)(fresh) if options else method(fresh)})
    assert text.startswith("Thing.asked")
    assert said in text


def test_a_class_that_cannot_be_hosted_is_refused() -> None:
    assert "put @method above one" in refused({"fine": lambda self: None})
    asked = method(fine)
    assert "has to work without arguments" in refused({"fine": asked, "__init__": lambda self, x: None})
    assert "Thing.setup takes 3" in refused({"fine": asked, "setup": lambda self, mesh, x: None})
    assert "Thing.close takes 2" in refused({"fine": asked, "close": lambda self, x: None})
    assert "at most 32" in refused({f"fine{number}": asked for number in range(33)})
    assert "[a-z]" in refused({"Upper": asked})
    assert "no plain method" in refused({"fine": staticmethod(asked)})


def test_declaring_a_service_loads_neither_torch_nor_libp2p() -> None:
    program = (
        "import sys; from lepton.node.services import service, method; import lepton.node.services.writing.values\n"
        "print(sorted(sys.modules.keys() & {'torch', 'libp2p', 'trio'}))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
