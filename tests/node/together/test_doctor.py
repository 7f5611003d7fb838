"""The doctor among real nodes on 127.0.0.1: what it finds with a node, without one, and of strangers and revoked."""

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import trio
from lepton.mesh.calls import Empty
from lepton.mesh.errors import Busy, LeptonError, UsageError
from lepton.mesh.grants import ROLES, issue
from lepton.mesh.identity import Identity
from lepton.node import Node
from lepton.node.control import serve_control
from lepton.node.diagnosis.checkup import (
    CHECKUP,
    CHECKUPS_MAX,
    SAMPLE,
    SAMPLE_BYTES_MAX,
    SAMPLED_BYTES_MAX,
    Ask,
    Sample,
    Seen,
)
from lepton.node.diagnosis.collecting import collect
from lepton.node.diagnosis.facts import Facts
from lepton.node.diagnosis.rules import diagnose
from lepton.node.home import Home

from .fakes import PATIENCE_S, World, running, until

LISTEN_S = 1.0  # of listening for answers that take a millisecond here, three times asked


@asynccontextmanager
async def controlled(node: Node) -> AsyncIterator[Home]:
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, node, trio.Event())
        yield node.home
        nursery.cancel_scope.cancel()


def names(facts: Facts) -> dict[str, str]:
    return {finding.id: finding.severity for finding in diagnose(facts)}


async def found(home: Home, name: str, **how: str) -> Facts:
    """Collect until a finding is there: an answer to mDNS may be late, and a busy machine later."""
    with trio.fail_after(PATIENCE_S):
        while name not in names(facts := await collect(home, listen_s=LISTEN_S, **how)):
            pass
    return facts


async def test_two_nodes_that_see_each_other_and_then_do_not(tmp_path: Path) -> None:
    async with running(tmp_path / "home", "a", "b") as world, controlled(world.nodes["a"]) as home:
        a, b = world.nodes["a"], world.nodes["b"]
        facts = await collect(home, peer="b", listen_s=0)
        assert facts.running is not None
        assert facts.running.device == "a"
        (peer,) = facts.peers
        assert (peer.id, peer.device, peer.here, peer.connected) == (b.mesh.me, "b", True, True)
        assert [one.outcome for one in peer.dial_back] == ["open"]
        assert peer.skew_s is not None
        assert peer.down_bytes_s
        assert peer.up_bytes_s
        said = names(facts)
        assert {said[name] for name in ("running", "peer-here", "reachable", "bandwidth")} == {"ok"}
        facts = await found(home, "announced")
        assert a.mesh.me in {one.peer for one in facts.hearing.voices}
        assert [(ear.interface, ear.echoed) for ear in facts.hearing.ears] == [("lo", True)]
        with pytest.raises(LeptonError, match=r"'x' names no peers of this node; it knows b"):
            await _only(collect(home, peer="x", listen_s=0))

        a.revoke(b.mesh.me, reason="lost")
        await until(lambda: not a.mesh.present)
        assert names(await found(home, "revoked-heard"))["revoked-heard"] == "note"  # its node still announces itself
        async with controlled(b) as other:
            await until(lambda: bool(b.status()["thrown_out"]))
            assert names(await collect(other, listen_s=0))["thrown-out"] == "bad"


async def _only(work: object) -> None:
    """Await what raises one error in groups."""
    try:
        await work  # type: ignore[misc]
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


async def test_without_a_node_it_greets_those_that_it_hears(tmp_path: Path) -> None:
    world, foreign = World(tmp_path / "home"), World(tmp_path / "foreign", Identity.generate())
    async with world.node("a") as a, foreign.node("z") as z:
        listening = a.mesh.addresses[0].replace("/ip4/", "").replace("/tcp/", ":")
        home = Home(world.furnish("b"))
        (home.path / "node.toml").write_text(f'interfaces = ["127.0.0.1"]\nlisten = ["{listening}"]\n')
        facts = await found(home, "peer-here", at=z.mesh.addresses[0])
        (peer,) = facts.peers
        assert (peer.id, peer.here) == (a.mesh.me, True)
        said = names(facts)
        assert said["not-running"] == "warn"
        assert said["port-taken"] == "bad"
        assert said["dial-fails"] == "bad"  # the address of another mesh's
        assert "another mesh" in next(one.what for one in diagnose(facts) if one.id == "dial-fails")
        assert names(await found(home, "other-mesh"))["other-mesh"] == "note"
        with pytest.raises(UsageError, match=r"measured by a running node"):
            await collect(home, peer="a", listen_s=0)


async def test_a_grant_that_has_expired_is_found_by_this_clock_and_refused_by_others(tmp_path: Path) -> None:
    world = World(tmp_path / "home")
    home = Home(world.furnish("b"))
    (home.path / "node.toml").write_text('interfaces = ["127.0.0.1"]\n')
    assert names(await collect(home, listen_s=0))["grant-ends-soon"] == "warn"  # a test's is good for an hour
    for left_s in (-10, 3600):
        me, serial = home.identity().peer_id, secrets.token_bytes(16)
        grant = issue(world.root, me, ROLES["admin"], expires=time.time() + left_s, serial=serial)
        home.save_chain((grant,))
        assert ("grant-expired" in names(await collect(home, listen_s=0))) == (left_s < 0)
    async with world.node("a") as a:  # whose clock is a day ahead
        standing = a.mesh.admission.admit
        a.mesh.admission.admit = lambda peer, chain, now: standing(peer, chain, now + 86400)  # type: ignore[method-assign]
        assert names(await found(home, "refused-grant-expired"))["refused-grant-expired"] == "bad"


async def test_before_any_mesh_nothing_is_made(tmp_path: Path) -> None:
    facts = await collect(Home(tmp_path / "nowhere"), listen_s=0)
    assert names(facts)["no-mesh"] == "note"
    assert not (tmp_path / "nowhere").exists()


async def test_members_measure_within_bounds(tmp_path: Path) -> None:
    async with running(tmp_path, "a", "b") as world:
        a, b = world.nodes["a"].mesh, world.nodes["b"].mesh
        seen = (await a.calls.call(b.me, CHECKUP, Ask(ports=(1,)), Seen)).message
        assert seen.outcomes == ("refused",)
        assert "/ip4/127.0.0.1/" in seen.seen_at
        piece = np.zeros(SAMPLE_BYTES_MAX, np.uint8)
        for _ in range(SAMPLED_BYTES_MAX // SAMPLE_BYTES_MAX):
            await a.calls.call(b.me, SAMPLE, Sample(), Empty, arrays=[piece])
        with pytest.raises(Busy, match=r"asked enough of this kind"):
            await a.calls.call(b.me, SAMPLE, Sample(wanted_bytes=1), Empty)
        for _ in range(CHECKUPS_MAX - 1):
            await a.calls.call(b.me, CHECKUP, Ask(), Seen)
        with pytest.raises(Busy, match=r"asked enough of this kind"):
            await a.calls.call(b.me, CHECKUP, Ask(), Seen)
        assert b.me in a.connected
