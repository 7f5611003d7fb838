"""Probes over the real wire: who is silent is dropped, who is merely busy is not, and a forged statement costs dear."""

from dataclasses import replace
from functools import partial

import pytest
from lepton.mesh import mesh as mesh_module
from lepton.mesh import probing
from lepton.mesh.calls import Answer, Empty, Incoming, Method
from lepton.mesh.errors import Busy, LinkError
from lepton.mesh.liveness import Config, Liveness
from lepton.mesh.rumours import Probe, ProbeFor, SignedWords, Statement, Tell

from .fakes import ROOT, identity
from .nodes import closed, guest, introduce, member, no_discovery, until

ALICE, BOB, EVE = map(identity, ("alice", "bob", "eve"))
QUICK = Config(period_s=0.1, timeout_s=0.05, retry_s=0.02, suspicion_s=0.2, round_s=0.1)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_module, "open_discovery", no_discovery)
    monkeypatch.setattr(probing, "Liveness", partial(Liveness, config=QUICK))


async def test_who_greets_and_is_silent_then_loses_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    async with member(ALICE) as alice, guest(EVE, alice) as eve:
        connection = await eve.enter()
        await closed(connection)
        await until(alice, lambda: not alice.present)
    assert "answered neither this node nor others that tried" in caplog.text


async def test_two_that_answer_know_that_each_other_lives_and_what_it_stated() -> None:
    async with member(ALICE) as alice, member(BOB) as bob:
        introduce(alice, bob)
        await until(alice, lambda: alice.probing.machine._lives.get(BOB.peer_id))
        life = alice.probing.machine._lives[BOB.peer_id]
        await until(alice, lambda: life.signature)
        assert life.incarnation == bob.probing.machine.incarnation > 0
        assert alice.probing.machine.alive == alice.present == {BOB.peer_id}
        await until(alice, lambda: alice.probing.round_trips_s)
        assert 0 < alice.probing.round_trips_s[BOB.peer_id] < 5
        alice.probing.machine.neighbours.clear()
        assert alice.probing.round_trips_s == {}


async def test_who_is_too_busy_to_answer_a_probe_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    # Longer than this process stands still on a busy machine; thirty probes take longer yet.
    patient = partial(Liveness, config=replace(QUICK, suspicion_s=1.0))
    monkeypatch.setattr(probing, "Liveness", patient)
    asked = list[int]()

    async def busy(call: Incoming[Probe]) -> Answer[Empty]:
        asked.append(call.message.number)
        raise Busy("This guest answers as many calls as it takes.")

    async with member(ALICE) as alice, guest(EVE, alice) as eve:
        eve.calls.serve(
            Method(name="mesh.probe", needs="mesh", takes=Probe, handler=busy),
            Method(name="mesh.probe_for", needs="mesh", takes=ProbeFor, handler=busy),
        )
        eve.served = eve.calls.answer
        await eve.enter()
        await until(alice, lambda: len(asked) > 30)
        assert alice.present == {EVE.peer_id}


async def test_a_statement_in_another_s_name_costs_the_connection() -> None:
    async with member(ALICE) as alice, member(BOB) as bob, guest(EVE, alice) as eve:
        introduce(alice, bob)
        await until(alice, lambda: alice.present)
        connection = await eve.enter()
        mine = SignedWords(EVE, ROOT.peer_id).state(1)
        forged = Statement(peer=BOB.peer_id, incarnation=2**40, signature=mine.signature)
        lie = Tell(incarnation=1, signature=mine.signature, statements=(forged,))
        with pytest.raises(LinkError):
            await eve.calls.call(ALICE.peer_id, "mesh.tell", lie, Empty)
        await closed(connection)
        await until(alice, lambda: alice.present == {BOB.peer_id})
        assert "forged" in alice.refusals[EVE.peer_id]
