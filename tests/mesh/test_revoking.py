"""Revocations over the real wire on 127.0.0.1: all hear, connections close, who was away learns of it first."""

import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from lepton.mesh import limits, membership
from lepton.mesh import mesh as mesh_module
from lepton.mesh import revoking as revoking_module
from lepton.mesh.admission import Credentials
from lepton.mesh.calls import Answer, Incoming, Method
from lepton.mesh.errors import LeptonError, LinkError, PeerError, Refused, UsageError
from lepton.mesh.finding import Finding
from lepton.mesh.identity import Identity
from lepton.mesh.mesh import Mesh
from lepton.mesh.protocol import HELLO, Hello, HelloAnswer
from lepton.mesh.records import RecordStore, SignedRecord
from lepton.mesh.revocations import Revocation, Said, grant_id, revoke

from .fakes import NOW, ROOT, Note, credentials, grant, identity
from .nodes import PATIENCE_S, closed, greet, guest, hear, introduce, member, no_discovery, say, until

ANNA, BEN, CARL, DORA, EVE = map(identity, ("anna", "ben", "carl", "dora", "eve"))
ADMIN = credentials(ANNA, role="admin")


@pytest.fixture(autouse=True)
def _without_mdns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_module, "open_discovery", no_discovery)
    monkeypatch.setattr(revoking_module, "_REPAIR_INTERVAL_S", 10 * PATIENCE_S)  # word of mouth alone
    monkeypatch.setattr(Finding, "_read", _look_nowhere)  # nor do they read of each other in records


async def _look_nowhere(_finding: Finding) -> None:
    await trio.sleep_forever()


@asynccontextmanager
async def line(*nodes: tuple[Identity, Credentials]) -> AsyncIterator[list[Mesh]]:
    """Members of whom each is connected to the next alone."""
    async with AsyncExitStack() as stack:
        meshes = [await stack.enter_async_context(member(who, held=held)) for who, held in nodes]
        for one, other in itertools.pairwise(meshes):
            introduce(one, other)
            await until(one, lambda one=one, other=other: other.me in one.present)  # type: ignore[misc]
        yield meshes


def by_root(*subjects: Identity) -> list[Revocation]:
    return [revoke(ROOT, who.peer_id, root=ROOT.peer_id, reason="lost", now=NOW) for who in subjects]


def knows(mesh: Mesh, *subjects: Identity) -> bool:
    return {who.peer_id for who in subjects} <= mesh.revoking._revocations.counting.keys()


async def test_a_revocation_reaches_those_who_are_not_connected_to_its_signer_and_closes_connections_there() -> None:
    held = [(ANNA, ADMIN), *((who, credentials(who)) for who in (BEN, CARL, EVE))]
    async with line(*held) as (anna, ben, carl, eve):
        eve.publish("note", "x", Note(text="still here"), durable=True)
        await until(anna, lambda: anna.live("note", Note))
        anna.revoke(EVE.peer_id, reason="lost on the bus")
        await until(carl, lambda: EVE.peer_id not in carl.present and carl.present)
        for mesh in (anna, ben, carl):
            await until(mesh, lambda mesh=mesh: knows(mesh, EVE))  # type: ignore[misc]
            assert mesh.live("note", Note) == []
            assert not mesh.authority(EVE.peer_id).allows("mesh")
        assert "was revoked by" in carl.refusals[EVE.peer_id]
        assert carl.refusals[EVE.peer_id].endswith("lost on the bus.")
        await until(eve, lambda: eve._admission.ended.endswith("lost on the bus."))  # it is told why, with the proof
        await until(eve, lambda: not eve.present)
        with pytest.raises(Refused, match="was revoked by"):
            await eve._admitted(CARL.peer_id)


async def test_a_call_under_way_ends_and_the_next_one_is_refused_with_the_reason() -> None:
    served = list[str]()

    async def wait(call: Incoming[Note]) -> Answer[Note]:
        served.append(call.message.text)
        await trio.sleep_forever()
        raise AssertionError

    async with member(ANNA, held=ADMIN) as anna, guest(EVE, anna) as eve:
        anna.calls.serve(Method(name="wait", needs="mesh", takes=Note, handler=wait))
        connection = await eve.enter()
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:

                async def call() -> None:
                    with pytest.raises(LinkError):
                        await eve.calls.call(ANNA.peer_id, "wait", Note(text="1"), Note, timeout_s=10 * PATIENCE_S)

                nursery.start_soon(call)
                await until(anna, lambda: served)
                anna.revoking._spawn = lambda *_: None  # nothing is closed yet
                anna.revoke(EVE.peer_id, reason="lost")
                with pytest.raises(Refused, match=r"was revoked by .*: lost"):
                    await eve.calls.call(ANNA.peer_id, "wait", Note(text="2"), Note)
                anna._offended(EVE.peer_id, "lost")
        await closed(connection)
        assert served == ["1"]


async def test_who_was_revoked_is_refused_at_the_door_with_the_reason_and_the_proof() -> None:
    async with member(ANNA, revocations=by_root(EVE)) as anna, guest(EVE, anna) as eve:
        connection = await eve.dial()
        answer = await greet(connection, credentials(EVE).chain)
        assert answer.refused.endswith("was revoked by the root key: lost.")
        assert answer.proof == tuple(by_root(EVE))
        await closed(connection)
        stranger = await eve.dial()
        assert (await greet(stranger, credentials(BEN).chain)).proof == ()  # nothing is told to a stranger


@pytest.mark.parametrize(("mine", "theirs"), [([EVE], []), ([], [EVE]), ([EVE], [DORA])])
async def test_two_that_greet_each_other_know_the_same_before_either_serves(
    mine: list[Identity], theirs: list[Identity]
) -> None:
    """Whoever dials, and whoever of the two knew: the first call finds the revoked out."""
    kept = {"anna": by_root(*mine), "ben": by_root(*theirs)}
    async with (
        member(ANNA, revocations=kept["anna"]) as anna,
        member(BEN, revocations=kept["ben"]) as ben,
    ):
        anna.revoking.keep(lambda items: kept.update(anna=list(items)))
        ben.revoking.keep(lambda items: kept.update(ben=list(items)))
        introduce(anna, ben)
        await until(anna, lambda: anna.present)
        for mesh in (anna, ben):
            assert knows(mesh, *mine, *theirs)
        assert set(kept["anna"]) == set(kept["ben"])  # and both keep it


async def test_a_node_that_was_away_hears_at_its_first_greeting_and_then_refuses_the_revoked() -> None:
    """Carl was away. He meets Ben, who knows, and from then on Eve gets nothing of him, whoever dials."""
    async with member(BEN, revocations=by_root(EVE)) as ben, member(CARL) as carl, guest(EVE, carl) as eve:
        introduce(carl, ben)
        await until(carl, lambda: carl.present)
        answer = await greet(await eve.dial(), credentials(EVE).chain)
        assert "was revoked by the root key" in answer.refused


async def test_who_dials_a_revoked_peer_tells_it_and_turns_away() -> None:
    async with member(ANNA, revocations=by_root(EVE)) as anna, member(EVE) as eve:
        introduce(anna, eve)
        await until(anna, lambda: "was revoked by the root key" in anna.refusals.get(EVE.peer_id, ""))
        await until(eve, lambda: eve._admission.ended)
        assert not anna.present


async def test_who_was_thrown_out_is_not_here_whatever_others_say() -> None:
    async with line((ANNA, ADMIN), (BEN, credentials(BEN))) as (anna, _ben):
        anna.admission.admit(EVE.peer_id, credentials(EVE).chain, NOW)
        anna._note(membership.Heard((EVE.peer_id,)))
        assert EVE.peer_id in anna.present
        anna.revoke(EVE.peer_id, reason="lost")
        assert EVE.peer_id not in anna.present


async def test_guests_of_a_revoked_admin_are_out_but_for_those_that_are_kept() -> None:
    of_ben = {who: (grant(ROOT, BEN, role="admin"), grant(BEN, who)) for who in (CARL, DORA)}
    held = {who: Credentials(mesh_name="home", root=ROOT.peer_id, chain=chain) for who, chain in of_ben.items()}
    async with (
        member(ANNA, held=ADMIN) as anna,
        member(CARL, held=held[CARL]) as carl,
        member(DORA, held=held[DORA]) as dora,
    ):
        introduce(anna, carl)
        introduce(anna, dora)
        await until(anna, lambda: len(anna.present) == 2)
        anna.revoke(BEN.peer_id, reason="left us", keeps=(grant_id(of_ben[CARL][1]),))
        await until(dora, lambda: "came in through" in dora._admission.ended)
        await until(anna, lambda: anna.present == {CARL.peer_id})
        assert not carl._admission.ended


async def test_what_was_lost_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revoking_module, "_REPAIR_INTERVAL_S", 0.02)
    async with line((ANNA, ADMIN), (BEN, credentials(BEN))) as (anna, ben):
        anna.revoking._revocations.merge(by_root(EVE))  # and nobody was told
        ben.revoking._revocations.merge(by_root(DORA))
        await until(ben, lambda: knows(ben, EVE, DORA) and knows(anna, EVE, DORA))


async def test_who_may_not_revoke_and_who_revoked_too_often_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with member(BEN) as ben:
        with pytest.raises(Refused, match="lacks the capability 'admin'"):
            ben.revoke(EVE.peer_id, reason="")
    async with member(BEN, root=ROOT) as ben:  # a member, but the root key is here
        ben.revoke(EVE.peer_id, reason="")
        assert "by the root key" in ben.revoking._revocations.why(EVE.peer_id)
        monkeypatch.setattr(limits, "REVOCATIONS_PER_BRANCH_MAX", 1)
        with pytest.raises(UsageError, match="No more revocations fit"):
            ben.revoke(DORA.peer_id, reason="")


FORGED = revoke(EVE, BEN.peer_id, root=EVE.peer_id, reason="of another mesh", now=NOW)


async def test_a_forged_revocation_costs_its_sender_the_connection() -> None:
    async with member(ANNA) as anna, guest(EVE, anna) as eve:
        connection = await eve.enter()
        with pytest.raises((LinkError, PeerError)):
            await eve.calls.call(ANNA.peer_id, "mesh.revocations", Said(revocations=(FORGED,)), Said)
        await closed(connection)
        assert "another mesh" in anna.refusals[EVE.peer_id]
        assert not knows(anna, BEN)


@pytest.mark.parametrize("message", [Note(text="no such field"), Said(revocations=(FORGED,))])
async def test_a_greeting_that_goes_on_with_lies_costs_the_connection(message: object) -> None:
    async with member(ANNA, revocations=by_root(DORA)) as anna, guest(EVE, anna) as eve:
        connection = await eve.dial()
        async with await connection.open_stream(HELLO) as stream:
            await say(stream, Hello(chain=credentials(EVE).chain))
            assert (await hear(stream, HelloAnswer)).revocations
            await say(stream, message)
            await closed(connection)
        await until(anna, lambda: EVE.peer_id in anna.refusals)
        assert not anna.present


async def test_a_greeting_that_leaves_out_what_it_owes_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that will not hear what this node knows is not let in."""
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_S", 0.3)
    async with member(ANNA, revocations=by_root(DORA)) as anna, guest(EVE, anna) as eve:
        connection = await eve.dial()
        stream = await connection.open_stream(HELLO)
        await say(stream, Hello(chain=credentials(EVE).chain))
        await closed(connection)
        assert not anna.present


async def test_records_of_the_revoked_that_were_on_disk_do_not_come_back() -> None:
    store = RecordStore(EVE, 1)
    said = store.publish("note", "x", Note(text="mine"), durable=True).signed
    async with member(ANNA, store=RecordStore(ANNA, 1, [said]), revocations=by_root(EVE)) as anna:
        assert anna.live("note", Note) == []


async def test_a_full_disk_does_not_keep_anybody_in(caplog: pytest.LogCaptureFixture) -> None:
    def full(_items: object) -> None:
        raise LeptonError("no space left")

    async with member(ANNA, held=ADMIN) as anna:
        anna.revoking.keep(full)
        anna.revoke(EVE.peer_id, reason="lost")
        assert knows(anna, EVE)
    assert "not kept across a restart: no space left" in caplog.text


def remembered(*owners: Identity) -> list[SignedRecord]:
    """What a disk holds of others after a restart: their durable records, without their grants."""
    kept = []
    for owner in owners:
        store = RecordStore(owner, 1)
        store.publish("note", "x", Note(text="deploy this"), durable=True)
        kept += store.durable()
    return kept


@pytest.mark.parametrize("known", [False, True])
async def test_who_was_revoked_while_this_node_was_off_is_forgotten_with_all_that_its_disk_has_of_it(
    known: bool,
) -> None:
    """Before a peer shows its grant nothing is known of it but its records; they stayed for good, and counted."""
    revocations = by_root(EVE)
    store = RecordStore(BEN, 2, remembered(EVE, CARL))
    async with member(BEN, store=store, revocations=revocations if known else ()) as ben:
        ben.revoking.take(revocations)
        assert ben.store.owners() - {BEN.peer_id} == {CARL.peer_id}
