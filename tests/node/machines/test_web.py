"""What a client asks is read exactly or refused by the field's name, and a guard lets through what it should."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.errors import Busy, LeptonError, LinkError, PeerError, Refused, UsageError
from lepton.node.generation.sampling import Sampling
from lepton.node.web.guard import Guard
from lepton.node.web.listen import Listen, parse_listen
from lepton.node.web.replies import NoToken, error_body
from lepton.node.web.requests import (
    CHOICES_MAX,
    TooLarge,
    WrongField,
    read_chat,
    read_completion,
    read_embedding,
)

TURN = {"role": "user", "content": "x"}


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m"} | fields).encode()


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"max_token": 3}, "max_token", r"There is no field 'max_token'. Did you mean 'max_tokens'"),
        ({"max_tokens": 0}, "max_tokens", r"max_tokens: Expected `int` >= 1"),
        ({"n": CHOICES_MAX + 1}, "n", r"n: Expected `int` <= 16"),
        ({"temperature": 2.1}, "temperature", r"temperature: Expected `float` <= 2"),
        ({"top_p": 0}, "top_p", r"top_p: Expected `float` > 0"),
        ({"stop": ["a"] * 9}, "stop", r"stop: Expected `array` of length <= 8"),
        ({"stop": "a" * 257}, "stop[0]", r"stop\[0\]: Expected `str` of length <= 256"),
        ({"stop": ""}, "stop", r"stop: Expected `str` of length >= 1"),
        ({"stream": "yes"}, "stream", r"stream: Expected `bool`, got `str`"),
        ({"echo": True}, "echo", r"echo is not supported here; leave it out"),
        ({"logprobs": 0}, "logprobs", r"logprobs is not supported here"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", r"Use repetition_penalty"),
        ({"best_of": 2}, "best_of", r"Ask for n and choose"),
        ({"prompt": []}, "prompt", r"give a text, a list of texts, token ids, or a list of such lists"),
        ({"prompt": [-1]}, "prompt", r"give a text"),
        ({"prompt": ["a", 1]}, "prompt", r"give a text"),
        ({"prompt": [[]]}, "prompt", r"give a text"),
        ({"prompt": ["a"] * 9, "n": 2}, "prompt", r"9 prompts, n=2: at most 16 texts at once"),
        ({"model": 3}, "model", r"model: Expected `str`, got `int`"),
    ],
)
def test_a_field_that_cannot_be_is_named(fields: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(WrongField, match=said) as raised:
        read_completion(body(**{"prompt": "x"} | fields))
    assert raised.value.field == field


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], r"messages: Expected `array` of length >= 1"),
        ([{"role": "tool", "content": "x"}], r"messages\[0\].role: Invalid enum value 'tool'"),
        ([TURN, {"role": "assistant", "tool_calls": []}], r"messages\[1\]: Object contains unknown field `tool_calls`"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], r"Invalid value 'image_url'"),
        (None, r"Object missing required field `messages`"),
    ],
)
def test_a_conversation_has_roles_and_text(messages: Any, said: str) -> None:
    with pytest.raises(WrongField, match=said):
        read_chat(body(messages=messages))


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b'"x"', b"[" * 100_000])
def test_what_is_no_object_is_refused(data: bytes) -> None:
    for read in (read_chat, read_completion, read_embedding):
        with pytest.raises(WrongField, match=r"The body is not"):
            read(data)


@given(st.binary() | st.dictionaries(st.text(), st.integers() | st.text()).map(lambda d: json.dumps(d).encode()))
def test_nothing_but_a_wrong_field_comes_of_any_bytes(data: bytes) -> None:
    for read in (read_chat, read_completion, read_embedding):
        with pytest.raises(WrongField):
            read(data)


def test_what_asks_for_nothing_is_passed_over() -> None:
    asked = read_chat(
        body(
            messages=[TURN, {"role": "assistant", "content": "y", "refusal": None}],
            user="me",
            logprobs=False,
            tools=[],
            tool_choice="auto",
            frequency_penalty=0,
            presence_penalty=0.0,
            response_format={"type": "text"},
            metadata={"a": "b"},
            stop=None,
            temperature=0,
            seed=5,
            max_tokens=7,
            top_k=-1,
        )
    )
    assert asked.sampling == Sampling(seed=5, tokens_max=7)
    assert (asked.n, asked.stream, asked.include_usage) == (1, False, False)


def test_choices_of_one_answer_draw_differently() -> None:
    asked = read_completion(body(prompt=["a", "b"], n=2, seed=2**63 - 2))
    assert [(prompt, sampling.seed) for prompt, sampling in asked.choices] == [
        ("a", 2**63 - 2), ("a", 2**63 - 1), ("b", 0), ("b", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (UsageError("x"), 400, "invalid_request_error"),
        (TooLarge("x"), 413, "invalid_request_error"),
        (NoToken("x"), 401, "invalid_request_error"),
        (Refused("x"), 403, "permission_error"),
        (Busy("x"), 429, "rate_limit_error"),
        (LinkError("x"), 503, "server_error"),
        (PeerError("x"), 503, "server_error"),
        (LeptonError("x"), 500, "server_error"),
    ],
)
def test_errors_have_the_status_that_clients_know(error: LeptonError, status: int, kind: str) -> None:
    code, said = error_body(error)
    assert (code, said["error"]["type"], said["error"]["message"]) == (status, kind, "x")


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("127.0.0.1:7533", Listen("127.0.0.1", 7533)),
        ("localhost:0", Listen("127.0.0.1", 0)),
        ("[::1]:80", Listen("::1", 80)),
        ("10.0.0.2:7533", Listen("10.0.0.2", 7533)),
    ],
)
def test_where_to_listen_is_read(text: str, listen: Listen) -> None:
    assert parse_listen(text) == listen


@pytest.mark.parametrize("text", ["", "7533", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "kitchen:80", "::1:x"])
def test_what_is_no_place_to_listen_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not ADDRESS:PORT"):
        parse_listen(text)


def test_an_endpoint_for_others_wants_a_long_token() -> None:
    for place, token in (("10.0.0.2", ""), ("192.168.1.20", ""), ("127.0.0.1", "short")):
        with pytest.raises(UsageError, match=r"token"):
            Guard(Listen(place, 1), token)
    assert Listen("::1", 80).url == "http://[::1]:80/v1"


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("listen", "headers", "is_let_in"),
    [
        ("127.0.0.1", {"host": "127.0.0.1:7533"}, True),
        ("127.0.0.1", {"host": "localhost"}, True),
        ("127.0.0.1", {"host": "[::1]:7533"}, True),
        ("127.0.0.1", {"host": "127.0.0.1.evil.example:7533"}, False),
        ("127.0.0.1", {"host": "evil.example"}, False),
        ("127.0.0.1", {}, False),
        ("127.0.0.9", {"host": "127.0.0.9:80"}, True),
        ("127.0.0.1", {"host": "localhost:1", "origin": "http://localhost:1"}, True),
        ("127.0.0.1", {"host": "localhost:1", "origin": "http://localhost:2"}, False),
        ("127.0.0.1", {"host": "localhost:1", "origin": "null"}, False),
        ("10.0.0.2", {"host": "kitchen.local:80", "authorization": "bearer " + "t" * 16}, True),
        ("10.0.0.2", {"host": "kitchen.local:80", "authorization": "Bearer " + "t" * 15}, False),
        ("10.0.0.2", {"host": "kitchen.local:80"}, False),
    ],
)
def test_the_guard_lets_in_programs_of_this_device_or_with_the_token(
    listen: str, headers: dict[str, str], is_let_in: bool
) -> None:
    guard = Guard(Listen(listen, 1), "" if listen.startswith("127") else "t" * 16)
    for method, more in (("GET", {}), ("POST", JSON)):
        if is_let_in:
            guard.check(method, headers | more)
        else:
            with pytest.raises(Refused):
                guard.check(method, headers | more)


@pytest.mark.parametrize("path_is_open", [False, True])
@pytest.mark.parametrize("token", ["", "t" * 16])
def test_another_sites_page_gets_no_picture_script_or_frame_but_a_link_may_be_followed(
    token: str, path_is_open: bool
) -> None:
    guard = Guard(Listen("127.0.0.1", 1), token)
    ours = {"host": "127.0.0.1:1", "authorization": f"Bearer {token}"}
    link = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    for site in ("cross-site", "same-site", "new-word"):
        for more in ({}, link | {"sec-fetch-dest": "iframe"}, {"sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}):
            with pytest.raises(Refused, match="Other sites"):
                guard.check("GET", ours | {"sec-fetch-site": site} | more, is_open=path_is_open)
        with pytest.raises(Refused, match="Other sites"):
            guard.check("POST", ours | JSON | link | {"sec-fetch-site": site}, is_open=path_is_open)
        guard.check("GET", ours | link | {"sec-fetch-site": site}, is_open=path_is_open)
    for site in ("none", "same-origin"):
        guard.check("GET", ours | {"sec-fetch-site": site}, is_open=path_is_open)


def test_a_body_is_declared_as_json() -> None:
    guard = Guard(Listen("127.0.0.1", 1), "")
    guard.check("POST", {"host": "localhost", "content-type": "Application/JSON; charset=utf-8"})
    for kind in ({}, {"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}):
        with pytest.raises(UsageError, match=r"Content-Type: application/json"):
            guard.check("POST", {"host": "localhost"} | kind)
