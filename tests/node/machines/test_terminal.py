"""Nothing that others said moves a terminal's cursor, rings its bell, or breaks what draws tables."""

import json

import pytest
from click.testing import CliRunner
from lepton.mesh.errors import LinkError
from lepton.node import __main__ as command_line
from lepton.node import authority_commands, command, control, service_fleet
from lepton.node.terminal import all_harmless, harmless, harmless_json

EVIL = "[/x] [red]\x1b]0;owned\x07 \x9b2J\r\u202eover\n\x00"


def test_what_a_terminal_obeys_is_written_out_and_the_rest_stays() -> None:
    assert harmless("Grüße\t🙂\nzwei") == "Grüße\t🙂\nzwei"
    assert harmless("\x1b[2J\x9bm\r\u202e\x7f") == r"\x1b[2J\x9bm\r\u202e\x7f"
    assert all_harmless({"\x07": ["\x1b", 1, None, {"a": "\x00"}]}) == {r"\x07": [r"\x1b", 1, None, {"a": r"\x00"}]}


def test_json_keeps_its_value() -> None:
    text = json.dumps({"said": EVIL}, ensure_ascii=False)
    assert json.loads(harmless_json(text)) == {"said": EVIL}
    assert not set(harmless_json(text)) & set("\x1b\x9b\x07\u202e\x7f")


def seems_running(monkeypatch: pytest.MonkeyPatch, result: object, *progress: object) -> None:
    class Control:
        def __init__(self, home: object) -> None: ...

        async def ask(self, *_: object, on_progress: object = None) -> tuple[object, list[object]]:
            for each in progress:
                assert callable(on_progress)
                on_progress(each)
            if isinstance(result, Exception):
                raise result
            return result, []

    monkeypatch.setattr(control, "Control", Control)


def test_logs_and_errors_of_others_are_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    seems_running(monkeypatch, LinkError(EVIL), {"device": EVIL, "lines": [EVIL, "second"]})
    found = CliRunner().invoke(service_fleet.logs, ["eyes"])
    assert found.exit_code == command.EXIT_FAILED
    assert not set(found.output) & set("\x1b\x9b\x07\x00\u202e")
    assert "second" in found.output
    assert r"\x1b]0;owned" in found.output


def test_what_devices_are_called_is_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    member = {
        "id": "12D3KooWabcdefgh", "device": EVIL, "role": "member", "invited_by": "x", "expires": 0, "this": True,
        "here": True, "capabilities": [],
    }  # fmt: skip
    gone = {"id": "12D3KooWabcdefgh", "device": EVIL, "by": "x", "issued": 0, "reason": EVIL}
    shown = {
        "mesh": EVIL, "id": "x", "me": "12D3KooWabcdefgh", "role": "member", "expires": 0, "root_key_here": False,
        "members": [member], "revoked": [gone],
    }  # fmt: skip
    seems_running(monkeypatch, shown)
    found = CliRunner().invoke(authority_commands.mesh_show, [])
    assert found.exit_code == 0, found.exception
    assert "[/x]" in found.output

    status = {
        "mesh": EVIL, "me": "12D3KooWabcdefgh", "web": None, "thrown_out": None, "models": [], "deployments": [],
        "tasks": [], "revoked": [], "refusals": {"12D3KooWabcdefgh": EVIL}, "bootstrap": [],
        "peers": [{"id": "12D3KooWabcdefgh", "here": True, "device": EVIL, "memory_bytes": 1, "data": [EVIL]}],
    }  # fmt: skip
    seems_running(monkeypatch, status)
    found = CliRunner().invoke(command_line.main, ["status"])
    assert found.exit_code == 0, found.exception
    assert "[/x]" in found.output
    assert not set(found.output) & set("\x1b\x9b\x07\x00\u202e")
