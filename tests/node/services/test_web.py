"""Services over HTTP: JSON and raw bytes in and out, events, and a status for each thing that can go wrong."""

import html
import http.client
import threading
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import msgspec
import pytest
import trio
from lepton.mesh.errors import Busy, UsageError
from lepton.mesh.rpc.methods import Answer
from lepton.mesh.tensors import Array
from lepton.node.services.calling.calling import Calling
from lepton.node.services.errors import InstanceLost, NotHere, ServiceError, TooLate
from lepton.node.services.messages import Asked, Given
from lepton.node.services.spec import MethodSpec, ServiceSpec
from lepton.node.services.writing.in_json import packed
from lepton.node.services.writing.values import decode
from lepton.node.web import services as web_services
from lepton.node.web.endpoint import Endpoint
from lepton.node.web.guard import Guard
from lepton.node.web.listen import Listen
from lepton.node.web.openapi import document, page
from lepton.node.web.server import open_server
from lepton.node.web.services import Services

from .hosts import FakeInstance, Net
from .test_client import IMAGE, clients

TOKEN = "a token of 24 characters"
JSON = {"Content-Type": "application/json"}
RAW = {"Content-Type": "application/octet-stream"}


@asynccontextmanager
async def served(token: str = "") -> AsyncIterator[tuple[int, FakeInstance, Net]]:
    _, one, net = clients(doc="Computes <b>.")
    services = Services(net.calling, mesh="home")
    listen = Listen("127.0.0.1", 0)
    endpoint = Endpoint(None, Guard(listen, token), owner="home", more=services.routes)  # type: ignore[arg-type]
    async with open_server(endpoint.app, listen) as server:
        try:
            yield server.listen.port, one, net
        finally:
            services.end()


async def ask(
    port: int, path: str, body: object = None, headers: dict[str, str] = JSON
) -> tuple[int, Any, http.client.HTTPResponse]:
    def run() -> tuple[int, Any, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        raw = body if isinstance(body, bytes | None) else msgspec.json.encode(body)
        connection.request("GET" if body is None else "POST", f"/v1/services{path}", raw, headers)
        answer = connection.getresponse()
        said: Any = answer.read()
        connection.close()
        if answer.getheader("content-type", "").startswith("application/json"):
            said = msgspec.json.decode(said)
        return answer.status, said, answer

    return await trio.to_thread.run_sync(run)


async def test_json_in_and_out() -> None:
    async with served() as (port, *_):
        assert (await ask(port, "/calc/add", {"x": 1, "y": 2}))[:2] == (200, 3)
        for image in (IMAGE.tolist(), packed(IMAGE)):
            status, said, answer = await ask(port, "/calc/frame", {"image": image})
            assert (status, said) == (200, {"corner": [2, 0], "mask": packed(IMAGE)})
            assert len(answer.getheader("x-request-id", "")) == 16
        assert (await ask(port, "/calc/sum", {"xs": [1, 2, 3], "y": 4}))[:2] == (200, 10)


async def test_a_call_for_this_device_alone_says_so_in_a_header() -> None:
    async with served() as (port, one, _):  # which runs elsewhere
        for method in ("add", "watch"):
            status, said, _ = await ask(port, f"/calc/{method}", {"x": 1}, {**JSON, "X-Where": "here"})
            assert (status, said["error"]["code"]) == (503, "mesh_unavailable"), said
        status, said, _ = await ask(port, "/calc/add", {"x": 1}, {**JSON, "X-Where": "there"})
        assert status == 422
        assert "'anywhere' or 'here'" in said["error"]["message"]
        assert not one.ran


async def test_raw_bytes_in_and_out() -> None:
    async with served() as (port, one, _):

        async def give_back(asked: Asked, arrays: Sequence[Array]) -> Answer[Given]:
            from lepton.node.services.writing.values import encode

            given, made = encode(decode(asked.value, arrays)["image"])
            return Answer(Given(value=given), made)

        one._work = give_back
        headers = {**RAW, "X-Shape": "2,3", "Accept": "application/octet-stream"}
        status, said, answer = await ask(port, "/calc/frame?name=yard", IMAGE.tobytes(), headers)
        assert (status, said) == (200, IMAGE.tobytes())
        assert (answer.getheader("x-dtype"), answer.getheader("x-shape")) == ("uint8", "2,3")
        for wrong in ({"X-Shape": "7"}, {"X-Shape": "-2,-3"}, {"X-Shape": "x"}, {"X-Dtype": "object"}):
            status, said, _ = await ask(port, "/calc/frame", IMAGE.tobytes(), {**RAW, **wrong})
            assert status == 422, said
            assert "is no array of" in said["error"]["message"]
        status, said, _ = await ask(port, "/calc/add", b"1", RAW)
        assert (status, said["error"]["message"]) == (
            422, "calc.add: a raw body stands for one parameter of bytes, or one array; this method wants JSON.",
        )  # fmt: skip


async def test_a_stream_comes_as_events() -> None:
    async with served() as (port, one, _):
        status, said, answer = await ask(port, "/calc/watch", {"x": 3})
        assert status == 200
        assert answer.getheader("content-type", "").startswith("text/event-stream")
        assert said == b"data: 0\n\ndata: 1\n\ndata: 2\n\ndata: [DONE]\n\n"
        one.dead = True
        status, said, _ = await ask(port, "/calc/watch", {"x": 3})
        assert status == 502


async def test_who_asks_a_method_with_get_is_told_how_it_is_asked() -> None:
    async with served() as (port, *_):
        status, said, _ = await ask(port, "/calc/add")
        assert status == 405
        assert "Method Not Allowed. Here it is asked by POST, as curl does with -d" in said["error"]["message"]


async def test_each_trouble_has_its_status() -> None:
    async with served() as (port, one, _):
        for path, body, expected, text in (
            ("/cal/add", {}, 404, "No service 'cal' runs in this mesh. Did you mean 'calc'"),
            ("/calc/ad", {}, 404, "'calc' has no method 'ad'. Did you mean 'add'"),
            ("/calc/add", b"{", 422, "calc.add: This is not valid JSON"),
            ("/calc/add", [1], 422, "has to be a JSON object"),
            ("/calc/frame", {"image": "x"}, 422, "$.image"),
            ("/calc/sum", {"xs": 3}, 422, "xs is a stream: give a list of its items"),
        ):
            status, said, _ = await ask(port, path, body)
            assert status == expected, said
            assert text in said["error"]["message"]

        error: Exception = Busy("full", 0.4)

        async def fail(asked: Asked, arrays: Sequence[Array]) -> Answer[Given]:
            raise error

        one._work = fail
        for error, expected in (
            (ServiceError("ValueError: no"), 500),
            (UsageError("y has to be positive"), 422),
            (InstanceLost("it ended"), 502),
            (TooLate("late"), 504),
        ):
            status, said, _ = await ask(port, "/calc/add", {"x": 1})
            assert status == expected, said
            assert str(error) in said["error"]["message"]


async def test_nobody_there_is_503_and_all_busy_is_429_with_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_args: object, **_options: object) -> None:
        raise error

    async with served() as (port, *_):
        monkeypatch.setattr(Calling, "ask", fail)
        error: Exception = NotHere("nobody took it")
        assert (await ask(port, "/calc/add", {"x": 1}))[0] == 503
        error = Busy("full", 0.4)
        status, _, answer = await ask(port, "/calc/add", {"x": 1})
        assert (status, answer.getheader("retry-after")) == (429, "1")


async def test_services_are_listed_and_described() -> None:
    async with served() as (port, *_):
        _, listed, _ = await ask(port, "")
        assert listed["data"][0]["id"] == "calc"
        assert listed["data"][0]["versions"] == [{"version": "1", "share": 100, "ready": 1}]
        _, told, _ = await ask(port, "/openapi.json")
        frame = told["paths"]["/v1/services/calc/frame"]["post"]
        assert frame["responses"]["200"]["content"]["application/json"]["schema"] == {
            "$ref": "#/components/schemas/calc.frame.gives.Box"
        }
        assert "calc.frame.gives.Box" in told["components"]["schemas"]
        assert frame["parameters"][0]["schema"]["enum"] == ["anywhere", "here"]
        _, said, answer = await ask(port, "/docs")
        policy = answer.getheader("content-security-policy", "")
        assert "default-src 'none'" in policy
        style = said.decode().partition("<style>")[2].partition("</style>")[0]
        assert f"'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'" in policy
        assert b"Computes &lt;b&gt;." in said
        assert b"Add two numbers." in said


def test_a_method_that_stays_on_its_device_is_described_as_such() -> None:
    method = MethodSpec(name="see", takes="{}", gives="{}", where="here")
    spec = ServiceSpec(name="eyes", version="1", entry="eyes:Eyes", methods=(method,))
    said = document([spec], mesh="home")["paths"]["/v1/services/eyes/see"]["post"]["parameters"]
    assert [(one["name"], one["schema"]) for one in said] == [("X-Where", {"enum": ["here"], "default": "here"})]


def test_an_example_of_a_call_has_all_that_a_structure_needs() -> None:
    who = {"type": "object", "properties": {"age": {"type": "integer"}, "ward": {"enum": ["a"]}}, "required": ["age"]}
    takes = {"type": "object", "properties": {"who": {"$ref": "#/$defs/Who"}}, "$defs": {"Who": who}}
    method = MethodSpec(name="see", takes=msgspec.json.encode(takes).decode(), gives="{}")
    spec = ServiceSpec(name="eyes", version="1", entry="eyes:Eyes", methods=(method,))
    assert html.escape("""-d '{"who":{"age":0}}'""") in page([spec], mesh="home", url="http://x/v1")


async def test_the_guard_stands_before_services_too() -> None:
    async with served(TOKEN) as (port, one, _):
        for path, body in (("", None), ("/openapi.json", None), ("/docs", None), ("/calc/add", {"x": 1})):
            assert (await ask(port, path, body))[0] == 401
            status, _, _ = await ask(port, path, body, {**JSON, "Authorization": f"Bearer {TOKEN}"})
            assert status == 200
        headers = {**JSON, "Authorization": f"Bearer {TOKEN}", "Origin": "http://evil.example"}
        assert (await ask(port, "/calc/add", {"x": 1}, headers))[0] == 403
        assert one.ran.total() == 1


async def test_a_body_that_is_too_large_is_413() -> None:
    async with served() as (port, *_):
        status, said, _ = await ask(port, "/calc/frame", bytes(33 * 1024 * 1024), RAW)
        assert (status, said["error"]["message"]) == (413, "A request has at most 33,554,432 bytes.")


async def test_a_long_body_is_read_beside_the_node_and_not_in_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    read_in: list[bool] = []
    read = web_services._from_json

    def watched(method: Any, body: bytes) -> dict[str, Any]:
        read_in.append(threading.current_thread() is ours)
        return read(method, body)

    ours = threading.current_thread()
    monkeypatch.setattr(web_services, "_from_json", watched)
    async with served() as (port, _, _):
        for spaces in (0, 100_000):
            status, said, _ = await ask(port, "/calc/add", b'{"x": 1,' + b" " * spaces + b'"y": 2}')
            assert (status, said) == (200, 3)
    assert read_in == [True, False]
