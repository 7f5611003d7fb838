"""What a log line looks like in both forms, and that nobody can forge one."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import trio
from lepton.node.seeing import logs, request


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("lepton")
    before = root.handlers[:], root.level, ours.level, request.log.level
    yield
    root.handlers[:], root.level, ours.level, request.log.level = before


def logged(form: logs.Format, *, verbose: bool = False) -> io.StringIO:
    stream = io.StringIO()
    logs.configure(form, verbose=verbose, stream=stream)["node"] = "12D3KooWme"
    return stream


def test_a_line_of_json_has_its_parts_its_node_and_its_request() -> None:
    stream = logged("json")
    with request.entering("POST /v1/completions") as id_:
        logging.getLogger("lepton.mesh.door").warning("refused %s: %s", "Eve", 'a "reason"\n{"event": "forged"}')
    said = json.loads(stream.getvalue())
    assert list(said)[:4] == ["timestamp", "level", "logger", "event"]
    assert said["event"] == 'refused Eve: a "reason"\n{"event": "forged"}'
    assert (said["level"], said["node"], said["request"]) == ("warning", "12D3KooWme", id_)
    assert stream.getvalue().count("\n") == 1


def test_a_line_for_people_cannot_be_forged_and_takes_no_terminal() -> None:
    stream = logged("text")
    logging.getLogger("lepton.x").warning("refused: %s", "a\n2026-01-01 INFO lepton: all is well \x1b[2J\u2028")
    (line,) = stream.getvalue().splitlines()
    assert "a\\n2026" in line
    assert "\x1b" not in line
    assert "WARNING lepton.x: refused" in line


def test_an_error_keeps_its_traceback_in_both_forms() -> None:
    for form in ("json", "text"):
        stream = logged(form)
        try:
            raise KeyError("lost")
        except KeyError:
            logging.getLogger("lepton.x").exception("it failed")
        assert "KeyError" in stream.getvalue()
        assert "it failed" in stream.getvalue()


def test_requests_are_shown_where_that_is_asked_for() -> None:
    shown = {}
    for form, verbose in (("json", False), ("text", False), ("text", True)):
        stream = logged(form, verbose=verbose)  # type: ignore[arg-type]
        with request.following(b"\x01" * 16, "session.stage", model="tales"):
            pass
        shown[form, verbose] = stream.getvalue()
    assert json.loads(shown["json", False])["request"] == "01" * 8
    assert shown["text", False] == ""
    assert "model=tales" in shown["text", True]


def test_what_a_client_brings_as_an_id_is_taken_only_in_our_form() -> None:
    with request.entering("x", "0123456789abcdef") as id_:
        assert id_ == request.current() == "0123456789abcdef"
        with request.entering("inner", "ffffffffffffffff") as inner:
            assert inner == id_
    for given in ("", "ABCDEF0123456789", "0" * 15, "0" * 17, "../../etc", "0123456789abcde\n"):
        with request.entering("x", given) as id_:
            assert id_ != given
            assert len(id_) == 16
    assert request.current() == ""


async def test_sessions_begin_with_their_request_in_every_task_and_thread_of_it() -> None:
    found = []

    async def begin() -> None:
        found.append(request.session_id())
        found.append(await trio.to_thread.run_sync(request.session_id))

    with request.entering("x") as id_:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin)
            nursery.start_soon(begin)
    assert {session.hex()[:16] for session in found} == {id_}
    assert len(set(found)) == 4
    assert {len(session) for session in found} == {16}
    assert request.session_id()[:8] != request.session_id()[:8]
