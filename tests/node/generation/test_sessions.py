"""Whole nodes in one process over loopback, with a toy for an engine: what machines say goes over the wire."""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import trio
from lepton.mesh.errors import Busy, LinkError, UsageError
from lepton.mesh.identity import PeerId
from lepton.mesh.mesh import Mesh
from lepton.mesh.revocations import revoke
from lepton.node import Node
from lepton.node.deployments import BlobRef, DeploymentRecord
from lepton.node.generation.asker import AskerConfig
from lepton.node.generation.messages import PROTOCOL
from lepton.node.generation.route import Run
from lepton.node.generation.sampling import Sampling, sample
from lepton.node.generation.sessions import Sessions
from lepton.node.picture import STAGE, StageRecord
from lepton.simulations.toy import LAYERS, ToyEngine

from ..together.fakes import World, running, until
from .fakes import undisturbed as _undisturbed

RUNS = ((0, 2), (2, 4), (4, 6))
RECORD = DeploymentRecord(
    version=1,
    kind="causal_lm",
    manifest=BlobRef(digest="0" * 64, size_bytes=1),
    weights_bytes=(1,) * LAYERS,
    cache_bytes=(16,) * LAYERS,
    sessions=9,
    positions=256,
)


undisturbed = partial(_undisturbed, draw=sample)


@dataclass
class Planned:
    assigned: Mapping[PeerId, Run]
    missing_bytes: int = 0
    fits_at: str = ""


@dataclass
class Pictured:
    """A view of one node whose plan is the test's."""

    mesh: Mesh
    assigned: dict[PeerId, Run]
    records: dict[str, DeploymentRecord] = field(default_factory=lambda: {"toy": RECORD})

    def deployments(self) -> dict[str, DeploymentRecord]:
        return self.records

    def plans(self) -> Mapping[str, Planned]:
        return {"toy": Planned(self.assigned)}

    def serving(self, name: str, version: int) -> dict[Run, list[PeerId]]:
        found: dict[Run, list[PeerId]] = {}
        for record, stage in self.mesh.live(STAGE, StageRecord):
            if (record.name, stage.version) == (name, version):
                found.setdefault((stage.first, stage.end), []).append(record.owner)
        return found

    def arithmetics(self, name: str, version: int) -> dict[PeerId, str]:
        said = self.mesh.live(STAGE, StageRecord)
        return {r.owner: stage.arithmetic for r, stage in said if (r.name, stage.version) == (name, version)}


@dataclass
class Serving:
    """Nodes that serve the toy."""

    world: World
    assigned: dict[PeerId, Run]
    sessions: dict[str, Sessions] = field(default_factory=dict)
    engines: list[ToyEngine] = field(default_factory=list)
    stops: dict[str, trio.CancelScope] = field(default_factory=dict)
    memory_bytes: int | None = None
    records: dict[str, DeploymentRecord] = field(default_factory=lambda: {"toy": RECORD})

    async def load(self, _name: str, _record: DeploymentRecord, run: Run) -> ToyEngine:
        engine = ToyEngine(*run)
        if not run[0]:
            engine.cache_bytes_per_position = 0  # as of an embedding alone
        if any(other.first == engine.first for other in self.engines):
            engine.arithmetic = "in another order"
        self.engines.append(engine)
        return engine

    def loaded(self, *names: str) -> bool:
        return all(self.sessions[name].host.current("toy") for name in names)

    async def serve(self, name: str, node: Node, task_status: trio.TaskStatus[None]) -> None:
        view, patience = Pictured(node.mesh, self.assigned, self.records), AskerConfig(trouble_s=20.0)
        self.sessions[name] = Sessions(node.mesh, view, self.load, patience, memory_bytes=self.memory_bytes)
        with trio.CancelScope() as self.stops[name]:
            task_status.started()
            await self.sessions[name].run()

    def given_back(self) -> bool:
        return not any(loaded.stage.sessions for one in self.sessions.values() for loaded in one.host.loaded)


@asynccontextmanager
async def serving(folder: Path, plan: Mapping[str, Run | None]) -> AsyncIterator[Serving]:
    async with running(folder, *plan) as world, trio.open_nursery() as nursery:
        assigned = {world.nodes[name].mesh.me: run for name, run in plan.items() if run is not None}
        serving = Serving(world, dict(assigned))
        for name, node in world.nodes.items():
            await nursery.start(serving.serve, name, node)
        sessions = serving.sessions.values()
        count = len(assigned)
        await until(lambda: all(sum(map(len, one.host._view.serving("toy", 1).values())) == count for one in sessions))
        yield serving
        nursery.cancel_scope.cancel()


async def collect(sessions: Sessions, prompt: list[int], count: int, **sampling: float) -> list[int]:
    with trio.fail_after(60):
        settings = Sampling(tokens_max=count, **sampling)  # type: ignore[arg-type]
        return [token.id async for token in sessions.generator.generate("toy", prompt, settings)]


async def test_sessions_go_through_three_nodes_and_are_given_back(tmp_path: Path) -> None:
    async with serving(tmp_path, dict(zip("abc", RUNS, strict=True)) | {"me": None}) as served:
        me, a = served.sessions["me"], served.sessions["a"]
        prompt = list(range(90))
        right = undisturbed(prompt, 20, Sampling())
        assert await collect(me, prompt, 20) == right
        assert await collect(a, prompt, 20) == right  # whose node holds a stage itself
        assert a.host.loaded[0].stage.counts.shared_positions == 64

        results: dict[int, list[int]] = {}

        async def one(number: int) -> None:
            results[number] = await collect(me, prompt[number:], 12, temperature=0.7, seed=number)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(one, number)
        warm = {n: Sampling(temperature=0.7, seed=n) for n in range(8)}
        assert results == {n: undisturbed(prompt[n:], 12, warm[n]) for n in range(8)}
        assert max(loaded.stage.counts.largest_batch for loaded in a.host.loaded) > 1

        async with me.generator.generate("toy", prompt, Sampling(tokens_max=100)) as generation:
            async for token in generation:
                if token.position == 99:
                    break
        await until(served.given_back)
        stop = right[3]
        generation = me.generator.generate("toy", prompt, Sampling(tokens_max=20), {stop})
        assert [token.id async for token in generation] == right[: right.index(stop) + 1]
        assert generation.finish == "stop"
        await until(served.given_back)

        with pytest.raises(UsageError, match="Did you mean 'toy'"):
            me.generator.generate("toi", prompt)
        with pytest.raises(UsageError, match="256 tokens; sessions of this model hold 256, answer included"):
            me.generator.generate("toy", [0] * 256)
        with pytest.raises(UsageError, match="There is no such token"):
            await collect(me, [5, 5000], 2)
        with pytest.raises(UsageError, match="is empty"):
            me.generator.generate("toy", [])
        await until(served.given_back)

        waiting = [me.generator.generate("toy", prompt, Sampling(tokens_max=200)) for _ in range(9)]
        for loaded in a.host.loaded:
            loaded.stage._config = type(loaded.stage._config)(
                cache_bytes_max=loaded.stage._config.cache_bytes_max, wait_s=0.1
            )
        with pytest.raises(Busy, match="has no memory for"):
            await collect(me, prompt, 150)
        for generation in waiting:
            generation.close()
        await until(served.given_back)


async def test_a_stage_that_goes_is_replaced_and_who_rounds_otherwise_is_told_of(tmp_path: Path) -> None:
    plan = {"a": RUNS[0], "b": RUNS[1], "b2": RUNS[1], "c": RUNS[2], "me": None}
    async with serving(tmp_path, plan) as served:
        me, prompt = served.sessions["me"], list(range(40))
        names = {node.mesh.me: name for name, node in served.world.nodes.items()}
        tokens = []
        async with me.generator.generate("toy", prompt, Sampling(tokens_max=60)) as generation:
            async for token in generation:
                tokens.append(token.id)
                if len(tokens) == 20:
                    gone = names[generation.route.peers[1]]
                    served.stops[gone].cancel()
                    await served.world.nodes[gone].mesh._transport.connections[served.world.nodes["a"].mesh.me].aclose()
        assert tokens == undisturbed(prompt, 60, Sampling())  # this toy's numbers are the same in any order
        assert len(generation.tally.pauses) >= 1
        (notice,) = generation.notices
        assert "(hashes and in another order) than it began with (hashes)" in notice


async def test_who_breaks_the_rules_of_sessions_is_hung_up_on(tmp_path: Path) -> None:
    async with serving(tmp_path, {"a": (0, 6), "me": None}) as served:
        a, me = served.world.nodes["a"].mesh, served.world.nodes["me"].mesh
        stream = await me.open_stream(a.me, PROTOCOL)
        await stream.send_all(b"\xff" * 64)
        with trio.fail_after(10):
            await stream.connection.closed.wait()
        with pytest.raises(LinkError):
            await me.open_stream(PeerId("12D3KooWNobody"), PROTOCOL)


async def test_who_is_thrown_out_gets_no_more_tokens_though_its_connection_is_still_open(tmp_path: Path) -> None:
    """It is told first and hung up on later; one that does not answer had a second more of everybody's work."""
    async with serving(tmp_path, {"a": (0, 6), "me": None}) as served:
        a, me = served.world.nodes["a"].mesh, served.world.nodes["me"].mesh
        a.revoking._end = lambda _peer, _reason: None  # nobody hangs up
        async with served.sessions["me"].generator.generate("toy", [1], Sampling(tokens_max=200)) as generation:
            await anext(generation)
            assert not served.given_back()
            root = served.world.root
            a.revoking.take([revoke(root, me.me, root=root.peer_id, reason="lost", now=time.time())])
            assert served.given_back()
            with trio.fail_after(10), pytest.raises(trio.BrokenResourceError):
                await (await me._transport.connections[a.me].open_stream(PROTOCOL)).receive_some()
        assert me.me in a._transport.connections
