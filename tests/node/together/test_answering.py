"""Answers come whole and right from whoever has the layers, whatever a peer does that lies, keeps silent or is late."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from lepton.mesh.calls import Answer, Empty, Incoming, Method
from lepton.mesh.errors import LinkError, UsageError
from lepton.node import Node
from lepton.node.blobs import fetching
from lepton.node.blobs.sharing import BlobHeld, Blobs, BlobWanted, ChunkWanted
from lepton.node.inference.messages import StageWork
from lepton.node.inference.session import Config

from .fakes import MLP, random_model, running, samples, unsharded, until


def publish(node: Node, name: str = "net", seed: int = 7, copies: int = 2) -> None:
    node.weights.publish(name, MLP, random_model(seed), version=seed, copies=copies)


def replace(node: Node, name: str, takes: type[Any], handler: Any) -> None:
    """Make a node answer one call in its own way."""
    node.mesh.calls.serve(Method(name=name, needs="infer", takes=takes, handler=handler, body_bytes_max=1 << 26))


async def test_a_model_that_no_node_can_hold_is_answered_by_all(tmp_path: Path) -> None:
    truth = random_model()
    async with running(tmp_path, "a", "b", "c") as world:
        a, b, c = world.nodes.values()
        publish(a)
        for node in world.nodes.values():
            await node.wait_served("net")
        runs = [node.serving.stages()["net"] for node in (a, b, c)]
        assert sorted(runs) == [(0, 1), (0, 1), (1, 2)]  # b and c had none of the weights
        for node, count in ((a, 1), (b, 257), (c, 700)):  # more than travel together
            x = samples(count)
            np.testing.assert_allclose(await node.predict("net", x), unsharded(truth, x), rtol=0, atol=1e-6)
        assert c.requests.counts.asked == 3

        for model, x, said in (
            ("nat", samples(1), "No model 'nat' is served in this mesh. Did you mean 'net'"),
            ("net", samples(2)[:, :63], r"Samples of this model have the shape \(64\); these are \(63,\), 2 of them"),
            ("net", samples(0), "0 of them"),
            ("net", np.full((1, 64), np.nan), "not finite numbers"),
            ("net", np.full((1, 64), np.inf), "not finite numbers"),
        ):
            with pytest.raises(UsageError, match=said):
                await a.predict(model, x)

        async with world.node("d") as late:  # comes later, takes its share, and answers too
            nodes = (a, b, c, late)
            await until(
                lambda: sorted(n.serving.stages().get("net", ()) for n in nodes) == [(0, 1), (0, 1), (1, 2), (1, 2)]
            )
            await late.wait_served("net")
            np.testing.assert_allclose(await late.predict("net", samples(9)), unsharded(truth, samples(9)), atol=1e-6)
            publish(b, seed=8)  # a new version under the same name
            await until(lambda: all(n.is_served("net") and n.status()["models"][0]["version"] == 8 for n in (a, late)))
            np.testing.assert_allclose(
                await late.predict("net", samples(9)), unsharded(random_model(8), samples(9)), atol=1e-6
            )
        await until(lambda: a.is_served("net") and len(a.mesh.present) == 2)
        expected = unsharded(random_model(8), samples(3))
        np.testing.assert_allclose(await a.predict("net", samples(3)), expected, atol=1e-6)


async def test_weights_come_from_whoever_has_them_and_from_nobody_who_lies(tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []  # by whom, whom

    async def claim(call: Incoming[BlobWanted]) -> Answer[BlobHeld]:
        return Answer(BlobHeld(whole=True))

    async def lie(call: Incoming[ChunkWanted]) -> Answer[Empty]:
        asked.append((call.caller, "liar"))
        return Answer(Empty(), (), bytes(call.message.ref.size_bytes))

    async def keep_silent(call: Incoming[ChunkWanted]) -> Answer[Empty]:
        asked.append((call.caller, "mute"))
        await trio.sleep_forever()
        raise AssertionError

    async with running(tmp_path, "owner", "liar", "mute", "reader", memory="100kB") as world:
        owner, liar, mute, reader = world.nodes.values()
        await until(lambda: len(reader.mesh.present) == 3)
        replace(liar, "blob.have", BlobWanted, claim)
        replace(liar, "blob.read", ChunkWanted, lie)
        replace(mute, "blob.have", BlobWanted, claim)
        replace(mute, "blob.read", ChunkWanted, keep_silent)
        reader.blobs.config = fetching.Config(late_s=0.1, give_up_s=0.3, strikes=1)
        replace(owner, "blob.have", BlobWanted, claim_late(owner.blobs))
        publish(owner, copies=4)
        await until(lambda: reader.serving.stages().get("net") == (0, 2))
        assert {whom for who, whom in asked if who == reader.mesh.me} == {"liar", "mute"}
        spec, layers = await reader.weights.whole("net")
        assert spec == MLP
        assert layers == (await owner.weights.whole("net"))[1]
        blob = tmp_path / "reader" / "blobs" / reader.view.models()["net"].layers[0].digest
        blob.write_bytes(b"damaged")  # found out when it is needed, and fetched again
        assert (await reader.weights.whole("net"))[1] == layers


def claim_late(blobs: Blobs) -> Any:
    """Say what is here only when the others were asked."""

    async def say(call: Incoming[BlobWanted]) -> Answer[BlobHeld]:
        await trio.sleep(0.2)
        return await blobs._say_what_is_here(call)

    return say


async def test_a_stage_that_accepts_work_and_never_answers_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swallowed: list[StageWork] = []

    async def swallow(call: Incoming[StageWork]) -> Answer[Empty]:
        swallowed.append(call.message)
        return Answer(Empty())

    async with running(tmp_path, "asker", "mute", "good", memory="100kB") as world:
        asker, mute, good = world.nodes.values()
        replace(mute, "infer.run", StageWork, swallow)
        publish(good, copies=3)
        await until(lambda: all(node.serving.stages().get("net") == (0, 2) for node in world.nodes.values()))
        await until(lambda: len(asker.view.serving("net", 7)[0, 2]) == 3)
        asker.requests._config = Config(attempt_timeout_s=2.0)  # `good` takes less

        def mute_first(peers: list[str]) -> str:
            return mute.mesh.me if mute.mesh.me in peers else peers[0]

        monkeypatch.setattr(asker.requests._rng, "choice", mute_first)
        np.testing.assert_allclose(
            await asker.predict("net", samples(5)), unsharded(random_model(), samples(5)), atol=1e-6
        )
        assert len(swallowed) == 1
        assert asker.requests.counts.reroutes == 1
        asker.requests._config = Config(attempt_timeout_s=0.1, deadline_s=0.5)
        monkeypatch.setattr(asker.requests._rng, "choice", lambda _: mute.mesh.me)  # nobody else is ever tried
        with pytest.raises(LinkError, match=r"No answer within 0.5 s: .* the last failed: the route .* brought no"):
            await asker.predict("net", samples(5))
        assert asker.requests.counts.failed == 1
        assert not asker.requests._waiting


async def test_too_little_memory_is_said(tmp_path: Path) -> None:
    async with running(tmp_path, "small", memory="10kB") as world:
        (small,) = world.nodes.values()
        publish(small)
        with pytest.raises(LinkError, match=r"not served after 0.2 s: no devices that are here can hold it: .* of mem"):
            await small.wait_served("net", timeout_s=0.2)
        assert not small.is_served("nothing")
