"""A device leaves in mid-answer and nobody else has its layers: they are loaded elsewhere, and the answer goes on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from lepton.node.generation.engine import Piece
from lepton.node.generation.sampling import Sampling
from lepton.node.language.engine import load_engine
from lepton.node.language.folder import read_config, read_layers

from .fakes import PATIENCE_S, World, running, until

STORIES = Path(__file__).parents[4] / "shared/data/models/stories260K/hf"
TERMS: dict[str, Any] = {"name": "tales", "precision": "float32", "sessions": 2, "positions": 200}
PART = "1200kB"  # of 1.2 MB of weights and 0.5 MB of caches
PROMPT = [1, 403, 407, 261, 378]

pytestmark = pytest.mark.skipif(not STORIES.exists(), reason="the trained model of ../shared/data is not here")


def alone(count: int) -> list[int]:
    """What one process says, greedily."""
    config = read_config(STORIES)
    engine = load_engine(config, 0, config.blocks + 2, read_layers(STORIES, config))
    tokens, cache = list(PROMPT), engine.new_cache()
    for _ in range(count):
        (logits,) = engine.run([Piece(cache=cache, x=np.array(tokens[cache.length :], np.int32), wants_logits=True)])
        assert logits is not None
        tokens.append(int(np.argmax(logits)))
    return tokens[len(PROMPT) :]


async def test_a_session_goes_on_when_the_only_device_with_its_layers_leaves(tmp_path: Path) -> None:
    stop = trio.Event()

    async def guest(world: World, task_status: trio.TaskStatus[None]) -> None:
        async with world.node("b", memory=PART):
            task_status.started()
            await stop.wait()

    async with running(tmp_path, "a", memory=PART) as world, trio.open_nursery() as nursery:
        await nursery.start(guest, world)
        await world.acquainted()
        a = world.nodes["a"]
        await a.serve(STORIES, **TERMS)
        await a.wait_served("tales", timeout_s=PATIENCE_S)
        async with world.node("c", memory=PART) as c:
            await world.acquainted()
            await until(lambda: len(a.mesh.present) == 2)
            tokens = []
            with trio.fail_after(PATIENCE_S * 2):
                async with a.sessions.generator.generate("tales", PROMPT, Sampling(tokens_max=150)) as generation:
                    async for token in generation:
                        tokens.append(token.id)
                        if len(tokens) == 10:
                            assert len(generation.route.peers) == 2
                            assert not c.sessions.host.loaded  # it came after the plan was made, which stays
                            stop.set()
            assert tokens == alone(150)
            assert c.mesh.me in generation.route.peers
            assert generation.tally.attempts > 1


async def test_layers_stay_loaded_while_the_mesh_is_short_of_a_device_that_may_come_back(tmp_path: Path) -> None:
    async with running(tmp_path, "a", memory=PART) as world:
        a = world.nodes["a"]
        async with world.node("b", memory=PART) as b:
            await world.acquainted()
            await a.serve(STORIES, **TERMS)
            await a.wait_served("tales", timeout_s=PATIENCE_S)
            (held,) = a.sessions.host.loaded
            assert b.sessions.host.loaded
        await until(lambda: "memory for serving are missing" in a.sessions.host.trouble.get("tales", ""))
        assert a.sessions.host.loaded == [held]
        async with world.node("b", memory=PART) as b:
            await a.wait_served("tales", timeout_s=PATIENCE_S)
            with trio.fail_after(PATIENCE_S):
                tokens = [
                    token.id async for token in b.sessions.generator.generate("tales", PROMPT, Sampling(tokens_max=8))
                ]
            assert tokens == alone(8)
            assert a.sessions.host.loaded == [held]  # and was not loaded again
