"""A successor is loaded where there is room; else its predecessor drains for a while, or stops if it is alone."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from lepton.node.config import parse_size, size_text
from lepton.node.deployed import shortage
from lepton.node.generation import host
from lepton.node.generation.room import Takes, lacking_bytes, stays, waits_for
from lepton.node.generation.sampling import Sampling
from lepton.node.picture import STAGE, StageRecord

from ..together.fakes import running, until
from .test_sessions import RECORD, RUNS, Serving, undisturbed

HEAVY = msgspec.structs.replace(RECORD, weights_bytes=(100_000,) * len(RECORD.weights_bytes))
RUN_BYTES = 2 * (100_000 + 16 * RECORD.sessions * RECORD.positions)
STEPS = 5  # of a stage, before it is held up


@given(st.integers(0, 998 * 10**9))
def test_a_size_for_people_is_never_less_than_it_is_and_no_more_than_a_hundredth_more(size: int) -> None:
    said = parse_size(size_text(size))
    assert size * 0.999999 <= said <= max(size * 1.0101, size)


def test_sizes_and_shortages_read_well() -> None:
    assert [size_text(size) for size in (0, 999, 1000, 1001, 123_456, 999_001, 1_234_567_890)] == [
        "0 B", "999 B", "1 kB", "1.01 kB", "124 kB", "1 MB", "1.24 GB",
    ]  # fmt: skip
    text = "no devices that are here can hold it: 1.24 GB of memory for serving are missing"
    assert shortage(1_234_567_890) == text
    assert shortage(1_234_567_890, "int8") == text + "; at int8 it would fit"


def test_what_drains_may_exceed_memory_by_its_caches_and_no_more() -> None:
    old, new = Takes(100, 40), Takes(80, 20)
    assert lacking_bytes(240, [(old, False)], new) == 0
    assert lacking_bytes(239, [(old, False)], new) == 1
    assert lacking_bytes(200, [(old, True)], new) == 0
    assert lacking_bytes(199, [(old, True)], new) == 1
    assert lacking_bytes(None, [(old, False)], new) == 0
    assert "when the session on older layers has ended, which frees 1 MB" in waits_for(2, 3, 10**6, 1)
    assert "when 3 sessions on older layers have ended" in waits_for(2, 3, 10**6, 3)


class Gate:
    """Holds up a stage after some steps, until it is opened."""

    def __init__(self, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self._left, self._run = STEPS, engine.run
        monkeypatch.setattr(engine, "run", self)

    def __call__(self, pieces: Sequence[Any]) -> Any:
        self._left -= 1
        if self._left <= 0:
            assert self.open.wait(60)
        return self._run(pieces)


@pytest.mark.parametrize("case", ["its sessions end in time", "they last too long", "nobody else serves"])
async def test_a_successor_without_room_waits_for_its_predecessor_or_stops_it(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case == "they last too long":
        monkeypatch.setattr(host, "_ROOM_S", 0.0)
    plan = {"a": RUNS[0], "b": RUNS[1], "c": RUNS[2], "me": None}
    if case != "nobody else serves":
        plan["a2"] = RUNS[0]
    async with running(tmp_path, *plan) as world, trio.open_nursery() as nursery:
        assigned = {world.nodes[name].mesh.me: run for name, run in plan.items() if run is not None}
        served = Serving(world, dict(assigned), memory_bytes=RUN_BYTES + 1000, records={"toy": HEAVY})
        for name, node in world.nodes.items():
            await nursery.start(served.serve, name, node)
        me = served.sessions["me"]
        await until(lambda: sum(map(len, me.host._view.serving("toy", 1).values())) == len(assigned))

        generation = me.generator.generate("toy", list(range(40)), Sampling(tokens_max=60))
        first = next(name for name, node in world.nodes.items() if node.mesh.me == generation.route.peers[0])
        moved = served.sessions[first].host
        (old,) = moved.loaded
        gate = Gate(old.engine, monkeypatch)
        await until(lambda: old.stage.sessions == 1)
        served.assigned[world.nodes[first].mesh.me] = RUNS[1]
        if case == "nobody else serves":
            served.assigned[world.nodes["b"].mesh.me] = RUNS[0]
        for node in world.nodes.values():
            node.mesh.publish(STAGE, "nudge", StageRecord(version=0, first=0, end=1))
        if case == "its sessions end in time":
            await until(lambda: "the session on older layers has ended" in moved.trouble.get("toy", ""))
            assert moved.loaded == [old]
            assert not moved.current("toy")
        else:
            await until(lambda: old not in moved.loaded)
        gate.open.set()
        with trio.fail_after(60):
            tokens = [token.id async for token in generation]
        assert tokens == undisturbed(list(range(40)), 60, Sampling())
        assert (generation.tally.attempts > 1) == (case != "its sessions end in time")
        await until(lambda: [one.run for one in moved.loaded] == [RUNS[1]])
        assert not moved.trouble
        nursery.cancel_scope.cancel()


def test_layers_stay_while_one_is_missing_but_not_in_the_way_of_others_nor_of_a_new_version() -> None:
    held = {"tales": (3, (0, 4)), "songs": (1, (2, 5))}
    assert stays("tales", 3, held, {})
    assert stays("tales", 3, held, {"songs": (2, 5)})
    assert not stays("tales", 4, held, {})
    assert not stays("tales", 3, held, {"songs": (0, 2)})
    assert not stays("tales", 3, held, {"poems": (0, 1)})
    assert not stays("poems", 3, held, {})
