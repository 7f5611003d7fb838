"""The demonstration shows what it says, tells it in figures, and can be interrupted in every step."""

import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .fakes import ENVIRONMENT, Process, processes_of

DEMO = (sys.executable, "-m", "lepton.node.demo")
STEPS = ("Join", "Learn", "Answer", "Survive")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name, in which the demo makes its own: the paths of its sockets must fit the system."""
    with tempfile.TemporaryDirectory(prefix="lepton-test-") as name:
        yield Path(name)


def begin(folder: Path, *words: str | Path) -> Process:
    (folder / "tmp").mkdir(parents=True)
    return Process(folder, *DEMO, *words, env={**ENVIRONMENT, "TMPDIR": str(folder / "tmp")})


def assert_nothing_is_left(folder: Path) -> None:
    assert processes_of(folder) == []
    assert list((folder / "tmp").glob("lepton-*")) == []


def test_it_holds_in_figures(folder: Path) -> None:
    demo = begin(folder, "--json", folder / "figures.json")
    try:
        assert demo.ended() == 0, demo.out + demo.err
    finally:
        demo.end()
    assert [demo.out.count(f"held   {step}: ") for step in STEPS] == [1, 1, 1, 1]
    assert "Traceback" not in demo.err
    figures = json.loads((folder / "figures.json").read_text("utf-8"))
    assert list(figures) == [
        "nodes",
        "refused_without_invite",
        "accuracy_alone_mean",
        "accuracy_mesh_worst",
        "accuracy_mesh_mean",
        "accuracy_central",
        "bytes_sent_per_node_mean",
        "sharded_equals_unsharded",
        "requests",
        "requests_failed",
        "requests_wrong",
        "rounds_after_kill",
        "seconds",
    ]
    assert figures["nodes"] == 4
    assert figures["refused_without_invite"] is True
    assert figures["sharded_equals_unsharded"] is True
    assert figures["accuracy_central"] - 0.02 <= figures["accuracy_mesh_worst"] <= figures["accuracy_mesh_mean"] <= 1
    assert figures["accuracy_alone_mean"] < figures["accuracy_mesh_worst"]
    assert figures["bytes_sent_per_node_mean"] > 100_000
    assert figures["requests"] >= 100
    assert (figures["requests_failed"], figures["requests_wrong"]) == (0, 0)
    assert figures["rounds_after_kill"] > 0
    assert_nothing_is_left(folder)


def test_it_is_interrupted(folder: Path) -> None:
    """In two of its steps, at the same time, for a demo takes a while to get anywhere."""
    lines = {folder / "early": "kitchen made the mesh and is up", folder / "later": "Learn: "}
    demos = {inner: begin(inner) for inner in lines}
    try:
        for inner, demo in demos.items():
            demo.until_said(lines[inner])
            assert len(processes_of(inner)) >= 1
            demo.signal(signal.SIGINT)
            assert demo.ended() == 130
            assert demo.err == "demo: interrupted; all its nodes are stopped\n"
            assert_nothing_is_left(inner)
    finally:
        for demo in demos.values():
            demo.end()
