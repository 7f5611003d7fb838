"""One past those limits that have no better place: a little more is refused, a little longer is given up."""

import inspect
import logging

import pytest
import trio
from lepton.mesh import limits
from lepton.mesh import mesh as mesh_module
from lepton.mesh.calls import Answer, Calls, Incoming, Method
from lepton.mesh.codes import code_of
from lepton.mesh.errors import LinkError, PeerError, Refused, UsageError
from lepton.mesh.grants import Authority, Grant
from lepton.mesh.identity import PeerId
from lepton.mesh.joining import join_mesh
from lepton.mesh.membership import Hinted
from lepton.mesh.protocol import JOIN, JoinAsk, JoinHeld
from lepton.mesh.reconciling import Copy
from lepton.mesh.records import RecordStore
from lepton.mesh.revocations import Revocation, pages_of, revoke
from lepton.mesh.rpc.asking import _wait_for_the_reason
from lepton.mesh.tcp import Listener, parse_listen
from lepton.mesh.transport import Connection, Stream, open_transport
from lepton.mesh.yamux import HEADER, Flag, Kind, Yamux, YamuxConfig

from .fakes import NOW, ROOT, Note, identity
from .nodes import PATIENCE_S, hear, let_in, member, no_discovery, say, until

ALICE, BOB, EVE = map(identity, ("alice", "bob", "eve"))


def syn(first: int, count: int) -> bytes:
    ids = range(first, first + 2 * count, 2)
    return b"".join(HEADER.pack(0, Kind.WINDOW, Flag.SYN, each, 0) for each in ids)


def test_streams_beyond_what_may_be_are_refused_so_often_and_then_it_is_a_flood() -> None:
    machine = Yamux(initiator=False, now=0.0, config=YamuxConfig(pending_max=1))
    machine.receive([syn(1, 1)], 0.0)
    machine.receive([syn(3, limits.STREAM_REFUSALS_MAX)], 0.0)
    assert len(machine.streams) == 1
    later = 3 + 2 * limits.STREAM_REFUSALS_MAX
    machine.receive([syn(later, limits.STREAMS_PER_PEER_MAX)], 1.0)  # a second later so many more are no flood
    with pytest.raises(PeerError, match="without end"):
        machine.receive([syn(later + 2 * limits.STREAMS_PER_PEER_MAX, 1)], 1.0)


async def test_a_call_without_a_deadline_has_one(autojump_clock: object) -> None:
    async def connection_to(_peer: PeerId) -> Connection:
        raise AssertionError

    async def admit(_peer: PeerId) -> Authority:
        return me

    async def forever(_call: Incoming[Note]) -> Answer[Note]:
        return await trio.sleep_forever()

    me = Authority(ALICE.peer_id, ("test",), 2**53)
    calls = Calls(me, admit=admit, connection_to=connection_to, offend=lambda _peer, _why: None)  # type: ignore[arg-type]
    calls.serve(Method(name="m", needs="test", takes=Note, handler=forever))
    begin = trio.current_time()
    with pytest.raises(LinkError, match="did not answer"):
        await calls.call(ALICE.peer_id, "m", Note(), Note)
    assert trio.current_time() - begin == pytest.approx(limits.CALL_TIMEOUT_S)  # by a clock that jumps


async def test_the_reason_for_a_reset_is_waited_for_so_long(autojump_clock: object) -> None:
    begin = trio.current_time()
    with pytest.raises(LinkError, match="reset"):
        await _wait_for_the_reason(LinkError("reset"))
    assert trio.current_time() - begin == pytest.approx(limits.REASON_WAIT_S)


async def test_a_dial_that_nobody_answers_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mesh_module, "open_discovery", no_discovery)
    monkeypatch.setattr(limits, "DIAL_TIMEOUT_S", 0.2)
    caplog.set_level(logging.DEBUG, "lepton.mesh.mesh")
    mute = Listener(parse_listen("127.0.0.1:0"))  # the kernel takes the connection, and nobody says a word
    try:
        async with member(ALICE) as alice:
            alice._note(Hinted(BOB.peer_id, (str(mute.address),)))
            await until(alice, lambda: "no answer in 0.2 s" in caplog.text)
    finally:
        mute.close()


async def test_who_is_told_no_waits_for_a_second_opinion_and_not_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert inspect.signature(join_mesh).parameters["timeout_s"].default == limits.JOIN_TIMEOUT_S
    monkeypatch.setattr(limits, "JOIN_SECOND_OPINION_S", 0.2)
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_S", 10 * PATIENCE_S)

    async def no(stream: Stream) -> None:
        await hear(stream, JoinAsk)
        await say(stream, JoinHeld(refused="no"))

    async def silence(_stream: Stream) -> None:
        await trio.sleep_forever()

    async with (
        open_transport(BOB, on_connection=let_in, handlers={JOIN: no}) as one,
        open_transport(EVE, on_connection=let_in, handlers={JOIN: silence}) as other,
    ):
        places = [one.addresses[0], other.addresses[0]]
        with trio.fail_after(PATIENCE_S), pytest.raises(Refused, match="no"):
            await join_mesh(ALICE, code_of(1, 2), at=places, timeout_s=10 * PATIENCE_S)


async def test_joining_ends() -> None:
    async def silence(_stream: Stream) -> None:
        await trio.sleep_forever()

    async with open_transport(EVE, on_connection=let_in, handlers={JOIN: silence}) as other:
        with trio.fail_after(PATIENCE_S), pytest.raises(LinkError):
            await join_mesh(ALICE, code_of(1, 2), at=[other.addresses[0]], timeout_s=0.2)


def test_a_revocation_has_a_short_reason_and_keeps_so_many() -> None:
    most = "x" * limits.REVOCATION_REASON_CHARACTERS_MAX
    kept = tuple(bytes([number] * 16) for number in range(limits.KEPT_GRANTS_MAX))
    revoke(ROOT, EVE.peer_id, root=ROOT.peer_id, reason=most, now=NOW, keeps=kept)
    with pytest.raises(UsageError, match="at most"):
        revoke(ROOT, EVE.peer_id, root=ROOT.peer_id, reason=most + "x", now=NOW)
    with pytest.raises(UsageError, match="at most"):
        revoke(ROOT, EVE.peer_id, root=ROOT.peer_id, reason="", now=NOW, keeps=(*kept, bytes(16)))


def test_a_page_of_revocations_has_so_many_and_so_many_bytes() -> None:
    small = [Revocation(sentence=b"x", signature=bytes(64))] * (limits.REVOCATIONS_PER_PAGE_MAX + 1)
    assert list(map(len, pages_of(small))) == [limits.REVOCATIONS_PER_PAGE_MAX, 1]
    large = [Revocation(sentence=bytes(limits.REVOCATION_BYTES_MAX), signature=bytes(64))] * 4
    pages = pages_of(large)
    assert len(pages) == 2
    for page in pages:
        assert sum(len(item.sentence) for item in page) <= limits.REVOCATION_PAGE_BYTES_MAX


class Everybody:
    """Knows all owners."""

    def knows(self, _peer: PeerId) -> bool:
        return True

    def learn(self, _chains: object) -> None:
        raise AssertionError

    def chains(self, _peers: object) -> dict[PeerId, tuple[Grant, ...]]:
        return {}


def test_so_many_useless_records_are_remembered() -> None:
    store = RecordStore(BOB, 1)
    history = [store.publish("note", "x", Note(text=str(n))).signed for n in range(limits.USELESS_MAX + 2)]
    copy = Copy(RecordStore(ALICE, 1), Everybody())
    copy.take(history[-1:], {})
    copy.take(history[:-1], {})
    assert len(copy._useless) == limits.USELESS_MAX
