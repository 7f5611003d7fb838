"""A language model over two nodes, asked by Python, by the owner's commands, and by the official client."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import trio
from lepton.mesh.errors import LeptonError, LinkError, Refused, UsageError
from lepton.node.control import Control, serve_control
from lepton.node.generation.engine import Piece
from lepton.node.language.engine import load_engine
from lepton.node.language.folder import read_config, read_layers
from lepton.node.language.tokenizer import LanguageTokenizer, read_files

from .fakes import PATIENCE_S, World, running

STORIES = Path(__file__).parents[4] / "shared/data/models/stories260K/hf"
ONCE = "Once upon a time"
TERMS: dict[str, Any] = {"name": "tales", "precision": "float32", "sessions": 2, "positions": 128}
PART = "1MB"  # of 1.2 MB of weights and 0.3 MB of caches

pytestmark = pytest.mark.skipif(not STORIES.exists(), reason="the trained model of ../shared/data is not here")


def alone(prompt: str, count: int) -> str:
    """What one process says, greedily."""
    config = read_config(STORIES)
    engine = load_engine(config, 0, config.blocks + 2, read_layers(STORIES, config))
    tokenizer = LanguageTokenizer(read_files(STORIES), config.eos)
    tokens, cache = tokenizer.encode(prompt), engine.new_cache()
    for _ in range(count):
        (logits,) = engine.run([Piece(cache=cache, x=np.array(tokens[cache.length :], np.int32), wants_logits=True)])
        assert logits is not None
        tokens.append(int(np.argmax(logits)))
    return tokenizer.decode(tokens)[len(prompt) :]


@contextlib.asynccontextmanager
async def serving(folder: Path, **roles: str) -> AsyncIterator[World]:
    async with running(folder, "a", "b", memory=PART, roles=roles) as world:
        await world.nodes["a"].serve(STORIES, **TERMS)
        for node in world.nodes.values():
            await node.wait_served("tales", timeout_s=PATIENCE_S)
        yield world


async def test_a_model_over_two_devices_says_what_one_process_says(tmp_path: Path) -> None:
    said = alone(ONCE, 24)
    async with serving(tmp_path) as world:
        a, b = world.nodes["a"], world.nodes["b"]
        (deployment,) = b.status()["deployments"]
        assert sorted(device for stage in deployment["stages"] for device in stage["devices"]) == ["a", "b"]
        with trio.fail_after(PATIENCE_S):
            assert await b.model("tales").text(ONCE, tokens_max=24) == said
        assert a.web is not None
        assert b.web is not None
        for url in (a.web.url, b.web.url):
            await trio.to_thread.run_sync(_ask_as_a_program, url, said)


def _ask_as_a_program(url: str, said: str) -> None:
    with openai.OpenAI(base_url=url, api_key="none", timeout=PATIENCE_S) as client:
        assert [model.id for model in client.models.list()] == ["tales"]
        asked: Any = {"model": "tales", "prompt": ONCE, "max_tokens": 24, "temperature": 0}
        assert client.completions.create(**asked).choices[0].text == said
        assert "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)) == said
        drawn = client.completions.create(**asked | {"temperature": 1, "seed": 3, "n": 2})
        again = client.completions.create(**asked | {"temperature": 1, "seed": 4})
        assert drawn.choices[1].text == again.choices[0].text != drawn.choices[0].text
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            client.chat.completions.create(model="tales", messages=[{"role": "user", "content": "x"}])
        with pytest.raises(openai.BadRequestError, match="sessions of 'tales' hold 128"):
            client.completions.create(**asked | {"prompt": "word " * 200})


async def test_the_owners_commands_serve_and_generate(tmp_path: Path) -> None:
    async with running(tmp_path, "a", "b", memory=PART) as world, trio.open_nursery() as nursery:
        a = world.nodes["a"]
        await nursery.start(serve_control, a, trio.Event())
        control = Control(a.home.path)
        steps: list[Any] = []
        asked = {"source": str(STORIES), **TERMS}
        await control.ask("serve", asked | {"dry_run": True}, on_progress=steps.append)
        assert [list(step) for step in steps] == [["reading"], ["offer"]]
        assert sum(stage["bytes"] for stage in steps[1]["offer"]["stages"]) == steps[1]["offer"]["weights_bytes"]
        assert a.status()["deployments"] == []
        with trio.fail_after(PATIENCE_S):
            result, _ = await control.ask("serve", asked | {"dry_run": False}, on_progress=steps.append)
        assert result["name"] == "tales"
        assert a.is_served("tales")
        pieces: list[Any] = []
        said, _ = await control.ask(
            "generate", {"name": "tales", "prompt": ONCE, "tokens_max": 8}, on_progress=pieces.append
        )
        assert "".join(piece["text"] for piece in pieces) == alone(ONCE, 8)
        assert (said["finish"], said["tokens"]) == ("length", 8)
        with pytest.raises(UsageError, match=r"There is no setting 'colour'"):
            await control.ask("generate", {"name": "tales", "prompt": ONCE, "colour": 8})
        with pytest.raises(LeptonError, match=r"serve: there is no key 'replica'. Did you mean 'replicas'"):
            await control.ask("serve", asked | {"dry_run": False, "replica": 2})
        await control.ask("unserve", {"name": "tales"})
        assert a.status()["deployments"] == []
        with pytest.raises(UsageError, match=r"No model 'tales' is deployed"):
            await control.ask("unserve", {"name": "tales"})
        nursery.cancel_scope.cancel()


async def test_what_does_not_fit_is_not_deployed_and_says_what_would(tmp_path: Path) -> None:
    async with running(tmp_path, "a", memory="500kB") as world:
        a = world.nodes["a"]
        with pytest.raises(LeptonError, match=r"cannot hold 'tales' at float32: .* are missing. At int8 it would fit"):
            await a.serve(STORIES, **TERMS | {"positions": 16})
        with pytest.raises(LeptonError, match=r"cannot hold 'tales' at int4: .* Add a device, give them more memory"):
            await a.serve(STORIES, **TERMS | {"positions": 512, "precision": "auto"})
        with pytest.raises(UsageError, match=r"made for 512 positions, and 513 were asked for"):
            await a.serve(STORIES, **TERMS | {"positions": 513})
        with pytest.raises(UsageError, match=r"neither a folder that is here nor a model's name"):
            await a.serve(tmp_path / "nowhere", name="tales")
        assert a.status()["deployments"] == []
        with pytest.raises(LinkError, match=r"'tales' is not served"):
            await a.wait_served("tales", timeout_s=0.01)


async def test_serving_takes_a_grant_of_who_asks_for_it(tmp_path: Path) -> None:
    async with running(tmp_path, "a", "b", memory="4MB", roles={"b": "client"}) as world:
        with pytest.raises(Refused, match=r"lacks the capability 'train:tales'.* `invite --role client,host:tales`"):
            await world.nodes["b"].serve(STORIES, **TERMS)


async def test_memory_of_who_may_not_hold_a_model_is_not_counted_and_it_is_said(tmp_path: Path) -> None:
    async with running(tmp_path, "a", "b", memory=PART, roles={"b": "client"}) as world:
        with pytest.raises(LeptonError, match=r"1 device that is here offers memory and may not hold it.*host:tales"):
            await world.nodes["a"].serve(STORIES, **TERMS)


async def test_what_goes_between_devices_is_rounded_on_request(tmp_path: Path) -> None:
    async with running(tmp_path, "a", "b", memory=PART) as world:
        a, b = world.nodes["a"], world.nodes["b"]
        await a.serve(STORIES, **TERMS, activations="int8")
        await b.wait_served("tales", timeout_s=PATIENCE_S)
        with trio.fail_after(PATIENCE_S):
            assert (await b.model("tales").text(ONCE, tokens_max=12)).startswith(", there was a little")
        (record,) = b.view.deployments().values()
        assert (record.activations, record.width_bytes) == ("int8", 64 + 4)  # a scale beside 64 numbers
        with pytest.raises(UsageError, match="int4"):
            await a.serve(STORIES, **TERMS, activations="int4")  # type: ignore[arg-type]
