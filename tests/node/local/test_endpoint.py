"""The endpoint as the official client sees it: texts, streams, errors, tokens, and what a client may not do."""

import http.client
import json
import logging
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import openai
import pytest
import trio
import trio.testing
from lepton.mesh.errors import LeptonError, LinkError, UsageError
from lepton.node.generation.sampling import Sampling
from lepton.node.web.attendance import BODY_BYTES_MAX, Attendance
from lepton.node.web.endpoint import Endpoint
from lepton.node.web.guard import Guard
from lepton.node.web.listen import Listen
from lepton.node.web.models import ModelInfo, Part, Prompt, Turn, Vectors
from lepton.node.web.server import open_server

TOKEN = "sixteen-letters-or-more"
T = TypeVar("T")
MODELS = (
    ModelInfo(name="tales", kind="causal_lm", created_s=1_700_000_000, fingerprint="0123456789"),
    ModelInfo(name="minilm", kind="program", created_s=0, fingerprint="abc"),
)


@dataclass
class Fake:
    """Models that answer with what they were asked, a word at a time."""

    asked: list[tuple[Prompt, Sampling]] = field(default_factory=list)
    error: LeptonError | None = None  # raised after two words
    hangs: bool = False  # after two words
    hanging: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)

    def models(self) -> Sequence[ModelInfo]:
        return MODELS

    async def generate(self, name: str, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Part, None]:
        self.asked.append((prompt, sampling))
        words = ["Once", " upon", " a", " time", f" {sampling.seed}"]
        given = words[: sampling.tokens_max]
        try:
            for count, word in enumerate(given, 1):
                await trio.lowlevel.checkpoint()
                if count == 3 and self.error is not None:
                    raise self.error
                if count == 3 and self.hangs:
                    self.hanging.set()
                    await trio.sleep_forever()
                end = "length" if len(given) < len(words) else "stop"
                finish: Any = end if count == len(given) else None
                yield Part(text=word, prompt_tokens=len(prompt), tokens=count, finish=finish)
        finally:
            self.ended.set()

    async def embed(self, name: str, texts: Sequence[str]) -> Vectors:
        await trio.lowlevel.checkpoint()
        values = np.array([[len(text), 0.5] for text in texts], dtype=np.float32)
        return Vectors(values=values, tokens=sum(len(text) for text in texts))


@asynccontextmanager
async def served(fake: Fake, *, token: str = "", **settings: Any) -> AsyncIterator[str]:
    """The endpoint on a free port: its base URL."""
    listen = Listen("127.0.0.1", 0)
    endpoint = Endpoint(fake, Guard(listen, token), owner="home", **settings)
    async with open_server(endpoint.app, listen) as server:
        try:
            yield server.listen.url
        finally:
            endpoint.end()


async def ask(url: str, question: Callable[[openai.OpenAI], T], *, token: str = TOKEN) -> T:
    def run() -> T:
        with openai.OpenAI(base_url=url, api_key=token, max_retries=0) as client:
            return question(client)

    with trio.fail_after(60):
        return await trio.to_thread.run_sync(run)


def address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").removesuffix("/v1").partition(":")
    return host, int(port)


@dataclass
class Said:
    status: int
    headers: dict[str, str]
    text: str


async def plain(url: str, path: str, body: bytes = b"", **headers: str) -> Said:
    """Ask without the official client, which would not send what is wrong."""

    def run() -> Said:
        connection = http.client.HTTPConnection(*address(url), timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST" if body else "GET", f"/v1/{path}", body or None, named)
        answer = connection.getresponse()
        said = Said(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode())
        connection.close()
        return said

    return await trio.to_thread.run_sync(run)


async def begun(url: str, **asked: Any) -> trio.SocketStream:
    """A request that has been sent, and of whose answer nothing is read yet."""
    stream = await trio.open_tcp_stream(*address(url))
    body = json.dumps({"model": "tales", "prompt": "x"} | asked).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    await stream.send_all(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return stream


async def read_until(stream: trio.SocketStream, end: bytes) -> bytes:
    data = b""
    with trio.fail_after(60):
        while end not in data:
            piece = await stream.receive_some()
            assert piece, data
            data += piece
    return data


async def test_models_are_listed() -> None:
    async with served(Fake()) as url:
        models = await ask(url, lambda client: list(client.models.list()))
        assert [(model.id, model.object, model.owned_by) for model in models] == [
            ("tales", "model", "home"),
            ("minilm", "model", "home"),
        ]
        assert (await ask(url, lambda client: client.models.retrieve("tales"))).created == 1_700_000_000


async def test_a_conversation_is_answered_whole() -> None:
    fake = Fake()
    async with served(fake) as url:
        answer = await ask(
            url,
            lambda client: client.chat.completions.create(
                model="tales",
                messages=[
                    {"role": "developer", "content": "Be kind."},
                    {"role": "user", "content": [{"type": "text", "text": "A "}, {"type": "text", "text": "tale."}]},
                ],
                n=2,
                seed=7,
                temperature=0,
                top_p=0.5,
                stop="END",
                extra_body={"top_k": 3, "repetition_penalty": 1.5},
            ),
        )
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert (answer.model, answer.system_fingerprint) == ("tales", "fp_0123456789")
    assert [choice.message.content for choice in answer.choices] == ["Once upon a time 7", "Once upon a time 8"]
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (2, 10, 12)
    assert min(fake.asked, key=lambda asked: asked[1].seed) == (
        (Turn("system", "Be kind."), Turn("user", "A tale.")),
        Sampling(
            seed=7, top_p=0.5, top_k=3, repetition_penalty=1.5, stop=("END",), tokens_max=1_000_000, temperature=0.0
        ),
    )


async def test_a_conversation_is_answered_as_it_comes() -> None:
    async with served(Fake()) as url:
        chunks = await ask(
            url,
            lambda client: list(
                client.chat.completions.create(
                    model="tales",
                    messages=[{"role": "user", "content": "Go on"}],
                    stream=True,
                    stream_options={"include_usage": True},
                    max_completion_tokens=2,
                )
            ),
        )
    assert {(chunk.object, chunk.id) for chunk in chunks} == {("chat.completion.chunk", chunks[0].id)}
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    assert [(delta.role, delta.content) for delta in deltas] == [
        ("assistant", ""),
        (None, "Once"),
        (None, " upon"),
        (None, None),
    ]
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices] == [None, None, None, "length"]
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * 4
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 2


async def test_events_have_the_exact_shape() -> None:
    async with served(Fake()) as url:
        body = b'{"model": "tales", "prompt": "x", "stream": true, "max_tokens": 1, "seed": 1}'
        answer = await plain(url, "completions", body, content_type="application/json; charset=utf-8")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    first, last, rest = answer.text.split("\n\n")
    said = json.loads(first.removeprefix("data: "))
    assert said.pop("id").startswith("cmpl-")
    assert said.pop("created") > 1_700_000_000
    choice = {"text": "Once", "index": 0, "logprobs": None, "finish_reason": "length"}
    assert said == {
        "object": "text_completion",
        "model": "tales",
        "system_fingerprint": "fp_0123456789",
        "choices": [choice],
    }
    assert (last, rest) == ("data: [DONE]", "")


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [(1, 2)]), ([[1], [2, 3]], [(1,), (2, 3)])],
)
async def test_every_form_of_a_prompt_is_completed(prompt: Any, texts: list[Prompt]) -> None:
    fake = Fake()
    async with served(fake) as url:
        answer = await ask(
            url, lambda client: client.completions.create(model="tales", prompt=prompt, n=2, seed=-1, max_tokens=5)
        )
    assert [asked for asked, _ in sorted(fake.asked, key=lambda one: texts.index(one[0]))] == [
        text for text in texts for _ in range(2)
    ]
    assert [choice.index for choice in answer.choices] == list(range(2 * len(texts)))
    assert answer.choices[0].text == f"Once upon a time {2**63 - 1}"
    assert answer.choices[1].text == "Once upon a time 0"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(len(text) for text in texts)


async def test_without_a_seed_every_answer_has_its_own() -> None:
    fake = Fake()
    async with served(fake) as url:
        for _ in range(2):
            await ask(url, lambda client: client.completions.create(model="tales", prompt="x"))
    assert fake.asked[0][1].seed != fake.asked[1][1].seed
    assert fake.asked[0][1].temperature == 1.0
    assert fake.asked[0][1].tokens_max == 16


async def test_texts_become_vectors() -> None:
    async with served(Fake()) as url:
        packed = await ask(url, lambda client: client.embeddings.create(model="minilm", input=["a", "bcd"]))
        plain = await ask(
            url, lambda client: client.embeddings.create(model="minilm", input="bcd", encoding_format="float")
        )
        with pytest.raises(openai.NotFoundError, match=r"serves no model 'tales' that makes vectors"):
            await ask(url, lambda client: client.embeddings.create(model="tales", input="x"))
    assert [(one.index, one.embedding) for one in packed.data] == [(0, [1.0, 0.5]), (1, [3.0, 0.5])]
    assert plain.data[0].embedding == [3.0, 0.5]
    assert packed.usage.prompt_tokens == 4


async def test_what_goes_wrong_before_the_first_word_is_a_status() -> None:
    chat: Any = {"model": "tales", "messages": [{"role": "user", "content": "x"}]}
    fake = Fake(error=UsageError("The prompt has 9 tokens and the model 8."))
    async with served(fake) as url:

        def create(**changes: Any) -> Callable[[openai.OpenAI], Any]:
            return lambda client: client.chat.completions.create(**chat | changes)

        with pytest.raises(openai.BadRequestError, match=r"The prompt has 9 tokens") as bad:
            await ask(url, create())
        assert bad.value.type == "invalid_request_error"
        with pytest.raises(
            openai.NotFoundError, match=r"no model 'tale' that makes text. Did you mean 'tales'"
        ) as none:
            await ask(url, create(model="tale"))
        assert none.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError, match=r"logprobs is not supported here") as field_:
            await ask(url, create(logprobs=True))
        assert field_.value.param == "logprobs"
        fake.error = LinkError("The layers 3 to 5 are on no device.")
        with pytest.raises(openai.InternalServerError, match=r"layers 3 to 5") as link:
            await ask(url, create())
        assert link.value.status_code == 503
        with pytest.raises(openai.NotFoundError, match=r"POST /v1/responses: Not Found. Here are /v1/models"):
            await ask(url, lambda client: client.responses.create(model="tales", input="x"))


async def test_what_goes_wrong_later_is_the_last_event() -> None:
    async with served(Fake(error=LinkError("The layers 3 to 5 are on no device."))) as url:
        words: list[str] = []

        def read(client: openai.OpenAI) -> None:
            chunks = client.completions.create(model="tales", prompt="x", stream=True)
            words.extend(chunk.choices[0].text for chunk in chunks)

        with pytest.raises(openai.APIError, match=r"layers 3 to 5 are on no device"):
            await ask(url, read)
        assert words == ["Once", " upon"]


async def test_our_own_mistake_is_logged_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Fake):
        def models(self) -> Sequence[ModelInfo]:
            raise RuntimeError("a secret of the inside")

    async with served(Broken()) as url:
        for question in (
            lambda client: client.models.list(),
            lambda client: client.completions.create(model="tales", prompt="x"),
        ):
            with pytest.raises(openai.InternalServerError, match=r"The node could not do this") as raised:
                await ask(url, question)
            assert "secret" not in str(raised.value)
    assert "a secret of the inside" in caplog.text
    caplog.clear()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_ends_its_session(stream: bool) -> None:
    fake = Fake(hangs=True)
    async with served(fake) as url:
        async with await begun(url, stream=stream) as connection:
            if stream:
                await read_until(connection, b"upon")
            with trio.fail_after(60):
                await fake.hanging.wait()
            assert not fake.ended.is_set()
        with trio.fail_after(60):
            await fake.ended.wait()


async def test_a_model_that_says_nothing_is_given_up() -> None:
    async with served(Fake(hangs=True), part_wait_s=0.05) as url:
        with pytest.raises(openai.InternalServerError, match=r"'tales' gave nothing for 0.05 s"):
            await ask(url, lambda client: client.completions.create(model="tales", prompt="x"))


async def test_requests_beyond_what_may_be_are_told_to_come_back() -> None:
    attendance = Attendance(requests_max=1, waiting_max=0)
    async with served(Fake(hangs=True), attendance=attendance) as url, await begun(url, stream=True) as connection:
        await read_until(connection, b"upon")
        with pytest.raises(openai.RateLimitError, match=r"Too many requests wait already") as busy:
            await ask(url, lambda client: client.completions.create(model="tales", prompt="x"))
        assert busy.value.response.headers["retry-after"] == "5"


async def test_a_body_has_a_largest_size() -> None:
    async with served(Fake()) as url:
        for size, status in ((BODY_BYTES_MAX, 400), (BODY_BYTES_MAX + 1, 413)):
            answer = await plain(url, "completions", b"x" * size, content_type="application/json")
            assert answer.status == status, answer.text


async def test_the_token_is_asked_for() -> None:
    async with served(Fake(), token=TOKEN) as url:
        assert len(await ask(url, lambda client: list(client.models.list()))) == 2
        with pytest.raises(openai.AuthenticationError, match=r"wants its token as the API key"):
            await ask(url, lambda client: client.models.list(), token="none")
        for wrong in (f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer é", ""):
            assert (await plain(url, "models", authorization=wrong)).status == 401


async def test_a_web_page_is_refused() -> None:
    async with served(Fake()) as url:
        assert (await plain(url, "models", host="LOCALHOST")).status == 200
        rebound = await plain(url, "models", host="evil.example")
        assert (rebound.status, "127.0.0.1 or localhost" in rebound.text) == (403, True)
        assert (await plain(url, "models", origin="http://evil.example")).status == 403
        assert (await plain(url, "completions", b"{}", content_type="text/plain")).status == 400


async def test_who_waits_at_the_end_is_told() -> None:
    async with served(Fake(hangs=True)) as url:
        streaming, waiting = await begun(url, stream=True), await begun(url)
        await read_until(streaming, b"upon")
    assert b"The node is stopping" in await read_until(streaming, b"0\r\n\r\n")
    assert b"HTTP/1.1 503" in await read_until(waiting, b"The node is stopping")
    await streaming.aclose()
    await waiting.aclose()


async def test_a_client_that_reads_nothing_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(Fake):
        async def generate(self, name: str, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Part, None]:
            while True:
                yield Part(text="x" * 1_000_000, prompt_tokens=1, tokens=1)
                await trio.lowlevel.checkpoint()

    monkeypatch.setattr("lepton.node.web.server.FAREWELL_S", 0.05)
    with trio.fail_after(60):
        async with served(Endless()) as url:
            connection = await begun(url, stream=True)
            await trio.testing.wait_all_tasks_blocked(0.05)
    await connection.aclose()


async def test_connections_beyond_what_may_be_are_closed() -> None:
    listen = Listen("127.0.0.1", 0)
    endpoint = Endpoint(Fake(), Guard(listen, ""), owner="home")
    async with (
        open_server(endpoint.app, listen, connections_max=1) as server,
        await trio.open_tcp_stream("127.0.0.1", server.listen.port),
    ):
        await trio.testing.wait_all_tasks_blocked(0.05)
        async with await trio.open_tcp_stream("127.0.0.1", server.listen.port) as second:
            with trio.fail_after(60), suppress(trio.BrokenResourceError):  # closed, perhaps with a reset
                assert await second.receive_some() == b""


async def test_who_begins_a_request_and_does_not_end_it_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lepton.node.web.server.KEEP_ALIVE_S", 0.1)
    async with served(Fake()) as url, await trio.open_tcp_stream("127.0.0.1", urlsplit(url).port or 0) as stream:
        await stream.send_all(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        with trio.fail_after(60), suppress(trio.BrokenResourceError):
            assert await stream.receive_some() == b""


async def test_a_port_that_is_taken_is_replaced_or_named(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = Listen("127.0.0.1", taken.getsockname()[1])
        endpoint = Endpoint(Fake(), Guard(listen, ""), owner="home")
        with caplog.at_level(logging.INFO):
            async with open_server(endpoint.app, listen, or_any_port=True) as server:
                assert server.listen.port != listen.port
        assert f"port {listen.port} is taken" in caplog.text
        with pytest.raises(LeptonError, match=rf"cannot listen on 127.0.0.1:{listen.port}: Address already in use"):
            async with open_server(endpoint.app, listen):
                raise AssertionError


async def test_of_two_that_begin_at_once_one_takes_another_port() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listen = Listen("127.0.0.1", free.getsockname()[1])
    ports, both = set(), trio.Event()

    async def serve() -> None:
        endpoint = Endpoint(Fake(), Guard(listen, ""), owner="home")
        async with open_server(endpoint.app, listen, or_any_port=True) as server:
            ports.add(server.listen.port)
            if len(ports) == 2:
                both.set()
            await both.wait()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            nursery.start_soon(serve)
