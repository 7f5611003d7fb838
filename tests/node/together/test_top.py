"""What `top` is told by a real node: its links, its load once that is said, and its log."""

import logging
from pathlib import Path

import trio
from lepton.node.control import Control, serve_control
from lepton.node.seeing.load import LOAD, LoadRecord
from lepton.node.seeing.recent import LINES_MAX, kept
from lepton.node.top_screen import Screen

from .fakes import running, until


async def test_a_node_tells_what_it_sees(tmp_path: Path) -> None:
    async with running(tmp_path, "a", "b") as world, trio.open_nursery() as nursery:
        a, b = world.nodes["a"], world.nodes["b"]
        await nursery.start(serve_control, a, trio.Event())
        b.mesh.publish(LOAD, "self", LoadRecord(cpu=40, memory=50, process_mib=128))
        await until(lambda: any(record.owner == b.mesh.me for record, _ in a.mesh.live(LOAD, LoadRecord)))
        await until(lambda: b.mesh.me in a.mesh.probing.round_trips_s)
        logging.getLogger("lepton.test").warning("b said \x1b[2J\nsomething")
        said, _ = await Control(a.home.path).ask("top")
        nodes = {one["device"]: one for one in said["nodes"]}
        assert (nodes["a"]["this"], nodes["b"]["this"]) == (True, False)
        assert nodes["b"]["round_trip_ms"] > 0
        assert nodes["b"]["bytes_sent"] > 0
        assert (nodes["b"]["cpu"], nodes["b"]["memory"], nodes["b"]["process_mib"]) == (40, 50, 128)
        assert said["log"][-1].endswith("warning: b said  [2J something")  # and moves no cursor
        assert said["sessions"] == {"asked_here": 0, "tokens": 0, "on_stages_here": 0}
        Screen().drawn(said, lines=24)
        nursery.cancel_scope.cancel()


def test_the_log_is_bounded_and_let_go() -> None:
    log = logging.getLogger("lepton.test")
    with kept() as recent:
        for number in range(LINES_MAX + 10):
            log.warning("line %d", number)
        recent.emit(logging.LogRecord("lepton", logging.WARNING, "", 0, "wrong %d", ("number",), None))  # our mistake
    log.warning("later")
    assert len(recent.lines) == LINES_MAX
    assert recent.lines[-1].endswith(f"line {LINES_MAX + 9}")
