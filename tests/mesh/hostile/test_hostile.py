"""Peers that speak libp2p and then misbehave. After each: the node lives, its memory is bounded, others are served, and
the log says who it was.
"""

import logging
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
import trio
from lepton.mesh import limits, mesh, tensors
from lepton.mesh.calls import Answer, Incoming, Method
from lepton.mesh.mesh import Mesh

from ..fakes import Note
from ..nodes import PATIENCE_S, Guest, guest, introduce, member, no_discovery, until
from .attacks import ATTACKS
from .double import ALICE, BOB, EVE, Attack, Numbers

pytestmark = pytest.mark.trio
# What both sides of an attack may take at its worst; most of it is eve's own queue. A node may hold 192 MiB for a peer.
GROWTH_BYTES_MAX = 48 * limits.MIB


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks that in earnest ring after 30 s, and no mDNS: who attacks whom is known."""
    monkeypatch.setattr(mesh, "open_discovery", no_discovery)
    for name in ("FRAME_TIMEOUT_S", "TRANSFER_STALL_S"):
        monkeypatch.setattr(limits, name, 1.0)
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_S", 3.0)  # on a busy machine a real handshake took more than 1 s


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


async def _echo(call: Incoming[Note]) -> Answer[Note]:
    return Answer(call.message, call.arrays)


async def _numbers(call: Incoming[Numbers]) -> None:
    tensors.require(call.arrays[0], dtype="float32", shape=(3,), what="A gradient")


async def _large(call: Incoming[Note]) -> Answer[Note]:
    return Answer(Note(), [np.zeros(limits.INLINE_BYTES_MAX, dtype=np.int8)])


async def _forever(call: Incoming[Note]) -> None:
    await trio.sleep_forever()


METHODS = (
    Method(name="echo", needs="mesh", takes=Note, handler=_echo),
    Method(name="numbers", needs="mesh", takes=Numbers, handler=_numbers),
    Method(name="large", needs="mesh", takes=Note, handler=_large),
    Method(name="forever", needs="mesh", takes=Note, handler=_forever),
)


@pytest.mark.parametrize("name", ATTACKS)
async def test_the_node_lives_and_others_are_served(name: str, caplog: pytest.LogCaptureFixture) -> None:
    attack = ATTACKS[name]
    caplog.set_level(logging.DEBUG, "lepton")  # who hangs up is news for who debugs
    async with member(ALICE) as alice, member(BOB) as bob, guest(EVE, alice) as eve:
        alice.calls.serve(*METHODS)
        introduce(bob, alice)
        await until(bob, lambda: bob.present)
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        with trio.fail_after(PATIENCE_S):
            await attack.do(eve, alice)
            await _served(bob)
            await _ends(attack, eve)
        _, peak = tracemalloc.get_traced_memory()
        assert peak - before < GROWTH_BYTES_MAX
        await _served(bob)
        await _forgotten(alice)
    if attack.says:
        assert any(_names_eve(line) and attack.says in line for line in caplog.messages), "\n".join(caplog.messages)


def _names_eve(line: str) -> bool:
    return EVE.peer_id[-8:] in line


async def _served(bob: Mesh) -> None:
    for size in (10, limits.INLINE_BYTES_MAX):
        text = np.arange(size, dtype=np.int32)
        answer = await bob.calls.call(ALICE.peer_id, "echo", Note(text="x"), Note, arrays=[text])
        assert np.array_equal(answer.arrays[0], text)
    assert ALICE.peer_id in bob.present


async def _ends(attack: Attack, eve: Guest) -> None:
    """An offender is hung up on by the victim; whoever was only a burden leaves by itself."""
    for connection in list(eve.transport._table.values()):
        if not attack.closes:
            await connection.aclose()
        await connection.closed.wait()


async def _forgotten(alice: Mesh) -> None:
    """Nothing is held for who is gone."""
    with trio.fail_after(PATIENCE_S):
        while alice._transport.budget.of(EVE.peer_id) or EVE.peer_id in alice._transport._alive:  # noqa: ASYNC110  others' tasks
            await trio.sleep(0.01)
    assert alice.present == {BOB.peer_id}
