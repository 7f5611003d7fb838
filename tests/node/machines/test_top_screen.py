"""How `top` draws: everything in 80 columns, rates from two looks, and no more lines than the terminal has."""

import io
from typing import Any

from lepton.node.top_screen import Screen
from rich.console import Console

NODE: dict[str, Any] = {
    "id": "12D3aaaaaaaa", "device": "kitchen", "role": "admin", "this": True, "connected": False, "round_trip_ms": None,
    "bytes_sent": 0, "bytes_received": 0, "cpu": 70, "memory": 95, "process_mib": 320, "sessions": 0,
}  # fmt: skip
OTHER = NODE | {"id": "12D3bbbbbbbb", "device": "attic", "this": False, "connected": True, "round_trip_ms": 0.9}
SILENT = OTHER | {"id": "12D3cccccccc", "device": "[red]x", "connected": False, "round_trip_ms": None, "cpu": None}
TASK = {
    "name": "digits", "policy": "trusted", "rounds": 100, "nodes": {
        "12D3aaaaaaaa": {"state": "training", "round": 4, "accuracy": 0.5},
        "12D3bbbbbbbb": {"state": "training", "round": 6, "accuracy": 0.9},
    },
}  # fmt: skip
SERVICE = {
    "name": "detector", "versions": ["1.0", "1.1"], "replicas": 2, "states": {"ready": 1, "failed": 1},
    "on": ["12D3bbbbbbbb"], "running": 3, "queue_ms": 12.4, "restarts": 5, "trouble": "it ran out of memory",
}  # fmt: skip
SAID: dict[str, Any] = {
    "at_s": 100.0, "mesh": "home", "device": "kitchen", "nodes": [OTHER, NODE, SILENT], "models": [
        {"name": "digits", "layers": 2, "served": True, "trouble": "", "stages": [
            {"first": 0, "end": 2, "peers": ["12D3bbbbbbbb"]}]},
    ],
    "deployments": [{"name": "tales", "served": False, "trouble": "1 MB is missing", "stages": []}],
    "services": [SERVICE], "tasks": [TASK], "sessions": {"asked_here": 2, "tokens": 100, "on_stages_here": 0},
    "requests": {"asked": 7, "failed": 1}, "refusals": {"12D3dddddddd": "why"}, "thrown_out": None,
    "log": [f"12:00:{n:02} warning: line {n} " + "x" * 200 for n in range(20)],
}  # fmt: skip


def shown(*looks: dict[str, Any], lines: int | None = None) -> list[str]:
    """The last of several looks, as a terminal of 80 columns has it."""
    console = Console(file=io.StringIO(), width=80, height=24, color_system=None)
    screen = Screen(console)
    for said in looks:
        drawn = screen.drawn(said, lines=lines)
    console.print(drawn)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_task_of_which_nobody_says_anything_any_more_is_done_if_its_model_is_there() -> None:
    told = {"name": "digits", "policy": "trusted", "rounds": 100, "version": 2, "nodes": {}}
    model = SAID["models"][0]
    for version, state in ((1, "no node yet"), (2, "done")):
        lines = shown(SAID | {"tasks": [told], "models": [model | {"version": version}], "log": []})
        (line,) = [line for line in lines if "trusted" in line]
        assert line.split() == ["digits", "trusted", "0", *state.split()]


def test_everything_is_there_and_fits() -> None:
    lines = shown(SAID)
    assert all(len(line) <= 80 for line in lines)
    text = "\n".join(lines)
    assert "1 refusal" in " ".join(text.split())
    for words in (
        "home seen by kitchen", "3 nodes", "7 requests, 1 failed", "kitchen (this)", "0.9 ms", "[red]x",
        "by others", "?", "70%", "320 MiB", "0 to 1", "served", "1 MB is missing", "1/2, 1 failed", "12 ms",
        "detector: it ran out of memory", "4 to 6 of 100", "50.0%", "90.0%", "line 19",
    ):  # fmt: skip
        assert words in text, text
    assert text.index("kitchen (this)") < text.index("attic")  # this device first


def test_rates_come_from_what_changed_between_two_looks() -> None:
    moved = OTHER | {"bytes_sent": 3_000_000, "bytes_received": 5_000}
    later = SAID | {"at_s": 102.0, "nodes": [NODE, moved], "sessions": {"asked_here": 1, "tokens": 160}}
    text = "\n".join(shown(SAID, later))
    assert "1 session, 30 tokens/s" in text
    assert "1.5 MB/s" in text
    assert "2.5 kB/s" in text
    anew = later | {"at_s": 103.0, "nodes": [NODE, OTHER], "sessions": {"asked_here": 0, "tokens": 0}}
    again = "\n".join(shown(SAID, later, anew))  # the connection is another, and the node was started again
    assert "B/s" not in again
    assert "tokens/s" not in again


def test_the_log_has_what_the_tables_leave() -> None:
    lines = shown(SAID, lines=40)
    assert len(lines) == 40
    assert len(shown(SAID | {"log": []}, lines=40)) < 40
    assert not [line for line in shown(SAID, lines=10) if "warning" in line]


def test_many_nodes_are_cut_short() -> None:
    nodes = [OTHER | {"id": f"12D3{n:08}", "device": f"d{n}"} for n in range(30)]
    assert any("and 18 more" in line for line in shown(SAID | {"nodes": nodes}))
