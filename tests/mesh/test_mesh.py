"""Members and strangers over the real wire on 127.0.0.1: who gets in, what spreads, and what one peer can cost others.

Nodes are introduced by the tests themselves; that they find each other by mDNS is tried in ``test_joining.py``.
"""

import secrets
import struct
from contextlib import AsyncExitStack

import pytest
import trio
from lepton.mesh import limits, membership, spreading
from lepton.mesh import mesh as mesh_module
from lepton.mesh.admission import Credentials
from lepton.mesh.calls import PROTOCOL as CALLS
from lepton.mesh.calls import Answer, Incoming, Method
from lepton.mesh.codes import Code
from lepton.mesh.errors import LeptonError, LinkError, PeerError, Refused
from lepton.mesh.frames import encode
from lepton.mesh.grants import ROLES, issue
from lepton.mesh.identity import Identity
from lepton.mesh.messages import pack
from lepton.mesh.pake import Side
from lepton.mesh.protocol import HELLO, JOIN, JoinAsk, JoinGranted, JoinHeld, JoinProof
from lepton.mesh.records import RecordStore, SignedRecord
from lepton.mesh.rpc.headers import Control, RequestHeader
from lepton.mesh.signed import id_of
from lepton.mesh.swaps import Compare, Compared, Swap, Swapped
from lepton.mesh.tensors import TensorSpec
from lepton.mesh.transport import Connection

from .fakes import FOREVER, ROOT, SERIAL, Note, credentials, grant, identity
from .nodes import PATIENCE_S, Anything, Guest, closed, greet, guest, hear, introduce, member, no_discovery, say, until

ALICE, BOB, CAROL, EVE = map(identity, ("alice", "bob", "carol", "eve"))


@pytest.fixture(autouse=True)
def _without_mdns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_module, "open_discovery", no_discovery)


def notes(mesh: mesh_module.Mesh) -> dict[tuple[str, str], str]:
    return {(record.owner, record.name): value.text for record, value in mesh.live("note", Note)}


OFTEN = spreading.Config(interval_s=0.05, timeout_s=0.05)


async def echo(call: Incoming[Note]) -> Answer[Note]:
    return Answer(call.message, call.arrays)


ECHO = Method(name="echo", needs="mesh", takes=Note, handler=echo)


async def test_what_goes_wrong_in_the_block_comes_out_of_it() -> None:
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with member(ALICE):
            raise ZeroDivisionError


# -- members -----------------------------------------------------------------------------------------------------------


async def test_members_see_each_other_and_what_each_says() -> None:
    gone = list[str]()
    async with member(ALICE) as alice:
        alice.on_absent.append(gone.append)
        alice.publish("note", "before", Note(text="1"))
        async with member(BOB) as bob:
            bob.publish("note", "passing", Note(text="b"))
            bob.publish("kept", "durable", Note(text="k"), durable=True)
            introduce(alice, bob)
            introduce(bob, alice)  # both dial at once
            await until(bob, lambda: notes(bob) == notes(alice) and len(notes(bob)) == 2)
            assert alice.present == {BOB.peer_id}
            assert bob.present == {ALICE.peer_id}
            assert alice.root == bob.root == ROOT.peer_id
            assert bob.authority(ALICE.peer_id).allows("infer:*")
            alice.publish("note", "after", Note(text="2"))
            await until(bob, lambda: (ALICE.peer_id, "after") in notes(bob))
            alice.withdraw("note", "before")
            alice.withdraw("note", "never said")
            await until(bob, lambda: (ALICE.peer_id, "before") not in notes(bob))
        await until(alice, lambda: not alice.present)
        assert gone == [BOB.peer_id]
        assert notes(alice) == {(ALICE.peer_id, "after"): "2"}
        assert [record.owner for record, _ in alice.live("kept", Note)] == [BOB.peer_id]
    alice.publish("note", "to nobody", Note())


async def test_an_address_that_the_user_gave_needs_no_discovery() -> None:
    async with member(ALICE) as alice, member(BOB, bootstrap=alice.addresses) as bob:
        await until(bob, lambda: bob.present == {ALICE.peer_id})


async def test_what_is_said_in_a_rush_arrives_whole() -> None:
    """One push may overtake another, and a head that then skipped one would hide it for good."""
    async with member(ALICE) as alice, member(BOB) as bob:
        introduce(alice, bob)
        await until(alice, lambda: alice.present)
        for n in range(40):
            alice.publish("note", f"n{n}", Note(text=str(n)))
            if n % 7 == 0:
                await trio.lowlevel.checkpoint()
        await until(bob, lambda: len(notes(bob)) == 40)
        assert notes(bob) == notes(alice)


async def test_more_than_one_message_holds_is_read_in_one_go() -> None:
    seldom = spreading.Config(interval_s=600.0)
    async with member(ALICE, talk=seldom) as alice, member(BOB, talk=seldom) as bob:
        for n in range(100):
            alice.publish("note", f"n{n}", Note(text="x" * 3000))
        introduce(bob, alice)
        await until(bob, lambda: len(notes(bob)) == 100)


async def test_word_of_a_third_reaches_those_who_never_met_it() -> None:
    async with member(BOB) as bob, member(CAROL) as carol:
        async with member(ALICE) as alice:
            alice.publish("kept", "x", Note(text="from alice"), durable=True)
            introduce(alice, bob)
            await until(bob, lambda: bob.live("kept", Note))
        introduce(carol, bob)
        await until(carol, lambda: carol.live("kept", Note))
        assert carol.authority(ALICE.peer_id).subject == ALICE.peer_id  # its grant came with its word


async def test_a_record_of_another_form_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    async with member(ALICE) as alice:
        alice.publish("note", "good", Note(text="x"))
        alice.publish("note", "bad", Anything(other=2))
        assert list(notes(alice).values()) == ["x"]
    assert "published a bad note record" in caplog.text


async def test_calls_work_and_a_bug_in_a_handler_ends_no_node() -> None:
    async def divide(call: Incoming[Note]) -> Answer[Note]:
        return Answer(Note(text=str(1 / len(call.message.text))))

    async with member(ALICE) as alice, member(BOB) as bob:
        bob.calls.serve(ECHO, Method(name="divide", needs="mesh", takes=Note, handler=divide))
        with pytest.raises(LinkError, match="is not connected"):
            await alice.calls.call(BOB.peer_id, "echo", Note(), Note)
        introduce(alice, bob)
        await until(alice, lambda: alice.present)
        with pytest.raises(LinkError, match="raised ZeroDivisionError"):
            await alice.calls.call(BOB.peer_id, "divide", Note(), Note)
        assert (await alice.calls.call(BOB.peer_id, "divide", Note(text="xx"), Note)).message.text == "0.5"
        assert alice.present == {BOB.peer_id}
        assert bob.refusals == {}


async def test_a_call_to_a_peer_that_disappears_ends_with_its_connection() -> None:
    async def never(_call: Incoming[Note]) -> Answer[Note]:
        called.set()
        await trio.sleep_forever()
        raise AssertionError

    called = trio.Event()
    errors = list[LeptonError]()

    async def call(frm: mesh_module.Mesh) -> None:
        with pytest.raises(LinkError) as caught:
            await frm.calls.call(BOB.peer_id, "never", Note(), Note, timeout_s=10 * PATIENCE_S)
        errors.append(caught.value)

    async with member(ALICE) as alice:
        with trio.fail_after(PATIENCE_S):  # long before the call's own deadline
            async with trio.open_nursery() as nursery, member(BOB) as bob:
                bob.calls.serve(Method(name="never", needs="mesh", takes=Note, handler=never))
                introduce(alice, bob)
                await until(alice, lambda: alice.present)
                nursery.start_soon(call, alice)
                await called.wait()
        assert len(errors) == 1


async def test_a_member_that_restarts_is_dialled_again() -> None:
    async with member(ALICE, pace=membership.Config(redial_first_s=0.01, redial_most_s=0.1)) as alice:
        async with member(BOB) as bob:
            introduce(alice, bob)
            await until(alice, lambda: alice.present)
        await until(alice, lambda: not alice.present)
        async with member(BOB, store=RecordStore(BOB, 2)) as bob:
            bob.publish("note", "x", Note(text="again"))
            introduce(alice, bob)
            await until(alice, lambda: (BOB.peer_id, "x") in notes(alice))


async def test_a_peer_that_no_longer_answers_is_dropped() -> None:
    async with (
        member(ALICE, talk=OFTEN) as alice,
        guest(EVE, alice) as frozen,
    ):
        connection = await frozen.enter()  # and answers nothing
        await closed(connection)
        await until(alice, lambda: not alice.present)


# -- invites -----------------------------------------------------------------------------------------------------------


async def test_a_node_whose_grants_are_full_length_gives_no_invites_that_nobody_would_take() -> None:
    people = [ROOT, identity("admin 1"), identity("admin 2"), ALICE]
    chain = tuple(grant(people[n], people[n + 1], role="admin") for n in range(limits.GRANT_CHAIN_MAX))
    held = Credentials(mesh_name="home", root=ROOT.peer_id, chain=chain)
    async with member(ALICE, held=held) as alice:
        with pytest.raises(Refused, match="a chain of 3 links"):
            alice.invite(role="member", uses=1, lifetime_s=60.0)


async def test_who_may_not_invite_is_told() -> None:
    async with member(ALICE) as alice:
        with pytest.raises(Refused, match="may not invite a member"):
            alice.invite(role="member", uses=1, lifetime_s=60.0)


# -- strangers ---------------------------------------------------------------------------------------------------------


def self_signed(who: Identity) -> Credentials:
    own = issue(who, who.peer_id, ROLES["admin"], expires=FOREVER, serial=SERIAL)
    return Credentials(mesh_name="home", root=ROOT.peer_id, chain=(own,))


async def test_a_stranger_with_a_grant_of_its_own_making_is_refused_in_words_and_hung_up_on() -> None:
    async with member(ALICE) as alice, guest(EVE, alice) as eve:
        connection = await eve.dial()
        answer = await greet(connection, self_signed(EVE).chain)
        assert "of another mesh or forged" in answer.refused
        assert answer.chain == ()  # it is not shown who belongs to this mesh
        await closed(connection)
        assert alice.present == frozenset()
        assert "of another mesh or forged" in alice.refusals[EVE.peer_id]


@pytest.mark.parametrize("chain", ["none", "expired", "of somebody else"])
async def test_other_grants_that_do_not_hold_are_refused_too(chain: str) -> None:
    shown = {
        "none": (),
        "expired": (grant(ROOT, EVE, expires=1.0),),
        "of somebody else": credentials(BOB).chain,
    }[chain]
    async with member(ALICE) as alice, guest(EVE, alice) as eve:
        connection = await eve.dial()
        answer = await greet(connection, shown)
        assert answer.refused
        await closed(connection)
        assert alice.present == frozenset()


async def test_who_dials_somebody_that_is_no_member_refuses_it() -> None:
    """Both sides check: here a member dials a peer that answers its greeting with a forged grant."""
    async with member(ALICE) as alice, member(BOB) as bob:
        bob._admission._chains[BOB.peer_id] = self_signed(BOB).chain
        introduce(alice, bob)
        await until(alice, lambda: BOB.peer_id in alice.refusals)
        assert alice.present == frozenset()
        introduce(bob, alice)
        await until(bob, lambda: "of another mesh or forged" in bob.refusals.get(ALICE.peer_id, ""))
        assert bob.present == frozenset()


async def call_without_a_word(connection: Connection) -> None:
    stream = await connection.open_stream(CALLS)
    await say(stream, RequestHeader(call=1, method="echo", timeout_s=5.0))
    await hear(stream, Anything)


async def test_a_call_before_the_greeting_costs_the_connection_and_nobody_else_anything() -> None:
    async with member(ALICE) as alice, member(BOB) as bob, guest(EVE, alice) as eve:
        alice.calls.serve(ECHO)
        introduce(bob, alice)
        await until(bob, lambda: bob.present)
        connection = await eve.dial()
        with pytest.raises((LinkError, trio.BrokenResourceError)):
            await call_without_a_word(connection)
        await closed(connection)
        assert alice.present == {BOB.peer_id}
        assert (await bob.calls.call(ALICE.peer_id, "echo", Note(text="x"), Note)).message.text == "x"


OTHERS = [CALLS, "/ipfs/id/1.0.0", "/ipfs/ping/1.0.0", "/meshsub/1.1.0", "/plaintext/2.0.0", "/lepton/hello/2"]


@pytest.mark.parametrize("protocol", OTHERS)
@pytest.mark.parametrize("first", ["nothing", "a hello that was refused", "an attempt to join"])
async def test_before_a_grant_is_shown_only_the_join_protocol_answers(
    protocol: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_S", 1.0)  # how long an attempt to join may take

    async def try_the_door(connection: Connection) -> None:
        if first == "a hello that was refused":
            assert "of another mesh or forged" in (await greet(connection, self_signed(EVE).chain)).refused
        elif first == "an attempt to join":
            joining = await connection.open_stream(JOIN)
            await say(joining, JoinAsk(nameplate=code.nameplate))
            assert (await hear(joining, JoinHeld)).share  # this one may be tried, here and now
        stream = await connection.open_stream(protocol)
        await say(stream, RequestHeader(call=1, method="echo", timeout_s=5.0))
        await hear(stream, Anything)

    async with member(ALICE, held=credentials(ALICE, role="admin")) as alice, guest(EVE, alice) as eve:
        code = alice.invite(role="member", uses=1, lifetime_s=3600.0)
        connection = await eve.dial()
        with pytest.raises((LinkError, PeerError, trio.BrokenResourceError, trio.ClosedResourceError)):
            await try_the_door(connection)
        await closed(connection)
        assert alice.connected == frozenset()


@pytest.mark.parametrize(
    "data", [b"\xff" * 8, struct.pack(">II", 3, 0) + b"\xc1\xc1\xc1", b"\x00", b"", pack(Anything())]
)
@pytest.mark.parametrize("protocol", [HELLO, JOIN])
async def test_a_greeting_of_garbage_costs_the_connection(protocol: str, data: bytes) -> None:
    async with member(ALICE) as alice, guest(EVE, alice) as eve:
        connection = await eve.dial()
        stream = await connection.open_stream(protocol)
        await stream.send_all(data)
        await stream.send_eof()
        await closed(connection)
        assert alice.present == frozenset()


async def test_a_stranger_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_S", 0.2)
    async with member(ALICE) as alice, guest(EVE, alice) as eve:
        await closed(await eve.dial())


async def test_strangers_at_the_door_are_few_and_who_said_nothing_for_longest_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "STRANGERS_MAX", 1)
    async with member(ALICE) as alice, guest(EVE, alice) as first, guest(CAROL, alice) as second:
        waiting = await first.dial()
        await until(alice, lambda: len(alice.door._strangers))
        await second.enter()  # it greets in time
        await closed(waiting)
        assert alice.present == {CAROL.peer_id}


async def test_a_flood_of_strangers_keeps_no_member_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that Alice knows from earlier may even be slow: it is not pushed out."""
    monkeypatch.setattr(limits, "STRANGERS_MAX", 2)
    monkeypatch.setattr("lepton.mesh.transport.HANDSHAKES_MAX", 4)
    async with member(ALICE) as alice, AsyncExitStack() as flood:
        async with guest(BOB, alice) as earlier:
            await earlier.enter()
        bob = await flood.enter_async_context(guest(BOB, alice))
        slow = await bob.dial()
        for n in range(8):
            stranger = await flood.enter_async_context(guest(identity(f"stranger {n}"), alice))
            await stranger.dial()  # and says nothing
        assert not (await greet(slow, credentials(BOB).chain)).refused
        await until(alice, lambda: BOB.peer_id in alice.present)
        newcomer = await flood.enter_async_context(guest(CAROL, alice))
        await newcomer.enter()
        assert alice.present == {BOB.peer_id, CAROL.peer_id}


async def test_an_unknown_invite_is_not_held_and_a_wrong_secret_is_refused() -> None:
    async with member(ALICE, held=credentials(ALICE, role="admin")) as alice, guest(EVE, alice) as eve:
        code = alice.invite(role="member", uses=1, lifetime_s=3600.0)
        connection = await eve.dial()
        async with await connection.open_stream(JOIN) as stream:
            await say(stream, JoinAsk(nameplate="000" if code.nameplate != "000" else "001"))
            assert await hear(stream, JoinHeld) == JoinHeld()
        await closed(connection)
        connection = await eve.dial()
        async with await connection.open_stream(JOIN) as stream:
            await say(stream, JoinAsk(nameplate=code.nameplate))
            held: JoinHeld = await hear(stream, JoinHeld)
            guess = Code(code.nameplate, "ZZZZZZZZ")
            side = Side(guess, joiner=EVE.peer_id, issuer=ALICE.peer_id, joins=True, entropy=secrets.token_bytes)
            side.receive(held.share)
            await say(stream, JoinProof(share=side.share, confirmation=side.confirmation))
            granted: JoinGranted = await hear(stream, JoinGranted)
            assert "mistyped or guessed (4 more tries)" in granted.refused
            assert granted.sealed == b""  # nothing that could be tried at home
            assert granted.confirmation == b""
        await closed(connection)
        assert "mistyped or guessed" in alice.refusals[EVE.peer_id]


def test_refusals_are_bounded_and_the_latest_stay() -> None:
    from lepton.mesh.admission import Admission
    from lepton.mesh.invites import InviteBook

    admission = Admission(credentials(ALICE), ALICE.peer_id, 0.0)
    mesh = mesh_module.Mesh(ALICE, admission, RecordStore(ALICE, 1), InviteBook(), mesh_module.MeshConfig())
    for n in range(3 * limits.STRANGERS_MAX):
        mesh.door.refuse(identity(f"stranger {n}").peer_id, "no grant")
        mesh.door.refuse(EVE.peer_id, f"for the {n}th time")
    assert len(mesh.refusals) <= limits.STRANGERS_MAX
    assert mesh.refusals[EVE.peer_id] == f"for the {n}th time"


# -- members that break the protocol -----------------------------------------------------------------------------------


FLOATS = TensorSpec(dtype="float32", shape=(2,))
OPENING = b"".join(encode(pack(Control())))
REQUEST = pack(RequestHeader(call=1, method="echo", timeout_s=5.0, payload_bytes=1))
WITH_TENSOR = pack(RequestHeader(call=1, method="echo", timeout_s=5.0, payload_bytes=1, tensors=(FLOATS,)))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(struct.pack(">II", 2, 0) + b"\xc1\xc1", id="malformed opening"),
        pytest.param(OPENING + struct.pack(">II", 2, 0) + b"\xc1\xc1", id="malformed header"),
        pytest.param(OPENING + struct.pack(">II", 2**31, 0), id="oversized frame"),
        pytest.param(OPENING + struct.pack(">II", len(REQUEST), 1) + REQUEST, id="truncated frame"),
        pytest.param(
            OPENING + struct.pack(">II", len(WITH_TENSOR), 8) + WITH_TENSOR + b"\x80" + bytes(7), id="wrong length"
        ),
    ],
)
async def test_what_is_malformed_costs_its_sender_the_connection_and_nothing_else(data: bytes) -> None:
    async with member(ALICE) as alice, member(BOB) as bob, guest(EVE, alice) as eve:
        alice.calls.serve(ECHO)
        introduce(bob, alice)
        await until(bob, lambda: bob.present)
        connection = await eve.enter()
        await eve.send(connection, data)
        await closed(connection)
        await until(alice, lambda: alice.present == {BOB.peer_id})
        assert EVE.peer_id in alice.refusals
        assert (await bob.calls.call(ALICE.peer_id, "echo", Note(text="x"), Note)).message.text == "x"


async def test_who_sends_too_slowly_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FRAME_TIMEOUT_S", 0.2)
    async with member(ALICE) as alice, guest(EVE, alice) as eve:
        connection = await eve.enter()
        stream = await connection.open_stream(CALLS)
        await stream.send_all(b"\x00")
        await closed(connection)
        await until(alice, lambda: "said nothing for 0.2 s" in alice.refusals.get(EVE.peer_id, ""))


def forged() -> SignedRecord:
    record = RecordStore(BOB, 1).publish("note", "x", Note(text="forged"))
    return SignedRecord(content=record.signed.content, signature=EVE.sign("record", record.signed.content))


async def lie(eve: Guest, compared: Compared, swapped: Swapped) -> list[Swap]:
    """Answer every exchange with these; returns what is asked."""
    asked = list[Swap]()

    async def compare(_call: Incoming[Compare]) -> Answer[Compared]:
        return Answer(compared)

    async def swap(call: Incoming[Swap]) -> Answer[Swapped]:
        asked.append(call.message)
        return Answer(swapped)

    eve.calls.serve(Method(name="mesh.compare", needs="mesh", takes=Compare, handler=compare))
    eve.calls.serve(Method(name="mesh.swap", needs="mesh", takes=Swap, handler=swap))
    eve.served = eve.calls.answer
    return asked


FINGERPRINT = bytes(16)
BOBS_CHAIN = {BOB.peer_id: credentials(BOB).chain}
LIES = {
    "a forged record": Swapped(fingerprint=FINGERPRINT, records=(forged(),), chains=BOBS_CHAIN),
    "bytes that are no record": Swapped(
        fingerprint=FINGERPRINT, records=(SignedRecord(content=b"x", signature=bytes(64)),)
    ),
}


@pytest.mark.parametrize("name", LIES)
async def test_a_lie_in_an_exchange_costs_the_liar_the_connection(name: str) -> None:
    async with member(ALICE, talk=spreading.Config(interval_s=0.05)) as alice, guest(EVE, alice) as eve:
        await lie(eve, Compared(fingerprint=FINGERPRINT, news=id_of(forged())), LIES[name])
        await closed(await eve.enter())
        await until(alice, lambda: not alice.present)
        assert notes(alice) == {}
        assert EVE.peer_id in alice.refusals


async def test_a_list_of_ids_that_is_cut_short_costs_its_sender_the_connection() -> None:
    async with member(ALICE, talk=spreading.Config(interval_s=0.05)) as alice, guest(EVE, alice) as eve:
        await lie(eve, Compared(fingerprint=FINGERPRINT, news=b"short"), Swapped(fingerprint=FINGERPRINT))
        await closed(await eve.enter())
        await until(alice, lambda: "A list of ids" in alice.refusals.get(EVE.peer_id, ""))


async def test_a_forged_record_in_a_push_costs_its_sender_the_connection() -> None:
    async with member(ALICE) as alice, guest(EVE, alice) as eve:
        connection = await eve.enter()
        push = Swap(records=(forged(),), chains=BOBS_CHAIN)
        with pytest.raises(LinkError):
            await eve.calls.call(ALICE.peer_id, "mesh.swap", push, Swapped)
        await closed(connection)
        assert notes(alice) == {}


async def test_who_says_two_things_at_once_is_named_and_not_hung_up_on() -> None:
    """It may have restored a backup without knowing."""
    lives = [RecordStore(EVE, 1).publish("note", "x", Note(text=text)).signed for text in ("one", "other")]
    async with member(ALICE) as alice, guest(EVE, alice) as eve:
        await eve.enter()
        for said in lives:
            await eve.calls.call(ALICE.peer_id, "mesh.swap", Swap(records=(said,)), Swapped)
        assert "signed two records of one version" in alice.refusals[EVE.peer_id]
        assert EVE.peer_id in alice.present
        assert set(alice.store.contradictions[EVE.peer_id]) == set(lives)


async def test_what_is_durable_is_on_the_disk_before_anybody_hears_of_it() -> None:
    order = list[str]()
    async with (
        member(ALICE, keep=lambda records: order.append(f"kept {len(records)}")) as alice,
        guest(EVE, alice) as eve,
    ):
        asked = await lie(eve, Compared(fingerprint=FINGERPRINT), Swapped(fingerprint=FINGERPRINT))
        await eve.enter()
        alice.publish("note", "passing", Note(text="p"))
        assert order == []
        alice.publish("task", "t", Note(text="t"), durable=True)
        assert order == ["kept 1"]
        await until(alice, lambda: asked)
        assert order == ["kept 1"]


async def test_a_disk_that_takes_nothing_is_told_to_who_publishes() -> None:
    def full(_records: object) -> None:
        raise LeptonError("records.msgpack: cannot be written: No space left on device")

    async with member(ALICE, keep=full) as alice, member(BOB) as bob:
        introduce(alice, bob)
        await until(bob, lambda: bob.present)
        with pytest.raises(LeptonError, match="No space left"):
            alice.publish("task", "t", Note(text="t"), durable=True)
        alice.publish("note", "x", Note(text="x"))  # is of the moment
        await until(bob, lambda: (ALICE.peer_id, "x") in notes(bob))


async def test_what_others_say_durably_is_kept_soon() -> None:
    kept = list[int]()
    soon = spreading.Config(save_after_s=0.01, interval_s=0.05)
    async with (
        member(ALICE) as alice,
        member(BOB, keep=lambda records: kept.append(len(records)), talk=soon) as bob,
    ):
        introduce(alice, bob)
        await until(bob, lambda: bob.present)
        alice.publish("task", "t", Note(text="t"), durable=True)
        await until(bob, lambda: kept == [1])
