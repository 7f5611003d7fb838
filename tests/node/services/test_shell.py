"""The shell of what a host decides: the machine never hears of instances as they were before its own last word."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from lepton.node.config import ServicesConfig
from lepton.node.services.deciding import host, steps
from lepton.node.services.deciding.outlook import Picture
from lepton.node.services.records import Offering
from lepton.node.services.shell import Hosting

from .hosts import ME, FakeInstance, FakeInstances, release, spec


class Starting(FakeInstances):
    def start(self, wanted: Any) -> None:
        self.running[wanted.id] = FakeInstance(wanted.id)
        self.changed.set()
        self.changed = trio.Event()


class Machine:
    """Starts one instance with the first that it hears, and then looks for it in all that it is told of instances."""

    def __init__(self, *_: object) -> None:
        self.deadline = float("inf")
        self.heard: list[bool] = []
        self.started = False
        self.enough = trio.Event()

    def handle(self, event: steps.Event, now: float) -> list[steps.Effect]:
        del now
        if not self.started:
            self.started = True
            return [steps.Start("one", "calc", release())]
        if isinstance(event, steps.Instances):
            self.heard.append("one" in {its.id for its in event.all})
            self.enough.set()
        return []


@pytest.mark.parametrize("luck", range(12))  # in which order trio runs tasks
async def test_what_was_started_is_in_all_that_the_machine_hears_from_then_on(
    luck: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    del luck
    monkeypatch.setattr("lepton.node.services.shell.Host", Machine)
    monkeypatch.setattr("lepton.node.services.shell.picture_of", lambda _view: Picture())
    mesh: Any = SimpleNamespace(me=ME, changed=trio.Event())
    unpacked = SimpleNamespace(spec=spec(), folder=Path("/"), python=None)
    bundles: Any = {release().bundle.digest: unpacked}
    hosting = Hosting(mesh, None, bundles, Starting(), ServicesConfig(), Offering(memory_bytes=0, cores=0))  # type: ignore[arg-type]
    machine: Any = hosting.machine
    assert isinstance(machine, Machine)
    assert not isinstance(machine, host.Host)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hosting.run)
        with trio.fail_after(10):
            await machine.enough.wait()
        nursery.cancel_scope.cancel()
    assert machine.heard == [True] * len(machine.heard)
