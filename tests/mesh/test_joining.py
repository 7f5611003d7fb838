"""Joining with an invite: who is asked, who is believed, and every way in which it can fail, in words."""

import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio
from lepton.mesh import joining, limits
from lepton.mesh import mesh as mesh_module
from lepton.mesh.admission import Admission
from lepton.mesh.codes import Code, code_of
from lepton.mesh.discovery import Sighting
from lepton.mesh.errors import LinkError, Refused
from lepton.mesh.identity import Identity
from lepton.mesh.invites import InviteBook
from lepton.mesh.joining import join_mesh
from lepton.mesh.mesh import Mesh
from lepton.mesh.messages import pack
from lepton.mesh.pake import Side
from lepton.mesh.protocol import JOIN, JoinAsk, JoinGranted, JoinHeld, JoinProof, Verdict, Welcome
from lepton.mesh.revocations import Revocation, open_revocation
from lepton.mesh.transport import Connection, Stream, open_transport

from .fakes import ROOT, credentials, grant, identity
from .nodes import LOCAL, PATIENCE_S, Anything, hear, member, no_discovery, say

ADMIN, BOB, CAROL, EVE = map(identity, ("admin", "bob", "carol", "eve"))
NOBODY = "/ip4/127.0.0.1/tcp/1"


@pytest.fixture(autouse=True)
def _without_mdns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_module, "open_discovery", no_discovery)


async def join(who: Identity, code: Code, *at: Mesh | str, timeout_s: float = PATIENCE_S) -> tuple[Revocation, ...]:
    places = [place if isinstance(place, str) else place.addresses[0] for place in at]
    joined = await join_mesh(who, code, at=places, timeout_s=timeout_s)
    assert joined.credentials.mesh_name == "home"
    Admission(joined.credentials, who.peer_id, time.time())
    return joined.revocations


def host_of(book: InviteBook | None = None) -> AbstractAsyncContextManager[Mesh]:
    return member(ADMIN, held=credentials(ADMIN, role="admin"), book=book)


async def test_one_invite_lets_in_as_many_as_it_says_and_tells_them_who_is_out() -> None:
    async with host_of() as host:
        host.revoke(identity("mallory").peer_id, reason="stolen")
        code = host.invite(role="member", uses=2, lifetime_s=3600.0)
        for who in (BOB, CAROL):
            (revocation,) = await join(who, code, host)
            assert open_revocation(revocation, ROOT.peer_id).sentence.subject == identity("mallory").peer_id
        with pytest.raises(Refused, match="used already"):
            await join(EVE, code, host)
        assert "used already" in host.refusals[EVE.peer_id]


async def test_an_invite_that_expired_on_the_way_says_so() -> None:
    book = InviteBook()
    async with host_of(book) as host:
        held, long_ago = host.authority(host.me).capabilities, time.time() - 100
        code = book.give(held=held, now=long_ago, lifetime_s=50, entropy=bytes(7))
        with pytest.raises(Refused, match="This invite has expired; ask for a new one"):
            await join(BOB, code, host)


async def test_an_invite_that_nobody_holds_says_so() -> None:
    async with host_of() as host, member(CAROL) as carol:
        given = host.invite(role="member", uses=1, lifetime_s=3600.0)
        other = code_of(0 if given.nameplate != "000" else 1, 5)
        with pytest.raises(Refused, match=r"No node that was asked \(.*, .*\) holds this invite; see that the node"):
            await join(BOB, other, host, carol)
        with pytest.raises(Refused, match=r"holds this invite.* Without an answer: /ip4/127.0.0.1/tcp/1: "):
            await join(BOB, other, host, carol, NOBODY)


async def test_who_holds_the_invite_is_found_among_many() -> None:
    async with host_of() as host, member(BOB) as bob, member(EVE) as eve:
        code = host.invite(role="member", uses=1, lifetime_s=3600.0)
        await join(CAROL, code, NOBODY, bob, bob, eve, host, host)


async def test_a_node_that_is_seen_under_two_addresses_is_asked_once() -> None:
    """Its second connection would take the place of the first, which is in the middle of the exchange."""
    async with host_of() as host:
        code = host.invite(role="member", uses=1, lifetime_s=3600.0)
        await join(BOB, code, host, host.addresses[0].replace("/ip4/127.0.0.1/", "/dns4/localhost/"))
        wrong = Code(code.nameplate, "ZZZZZZZZ")
        with pytest.raises(Refused, match="4 more tries"):
            await join(CAROL, wrong, host, host.addresses[0].replace("/ip4/127.0.0.1/", "/dns4/localhost/"))
        assert host.door.invites.snapshot()[0].tries_left == limits.INVITE_TRIES_MAX - 1


async def test_a_mistyped_code_that_the_check_let_pass_is_counted_and_kept() -> None:
    kept = list[int]()
    async with host_of() as host:
        host.door.on_invites_changed = lambda: kept.append(host.door.invites.snapshot()[0].tries_left)
        code = host.invite(role="member", uses=1, lifetime_s=3600.0)
        wrong = Code(code.nameplate, code.password[::-1] if code.password != code.password[::-1] else "00000000")
        for left in range(limits.INVITE_TRIES_MAX - 1, 0, -1):
            with pytest.raises(Refused, match=rf"mistyped or guessed \({left} more tries\)"):
                await join(identity(f"stranger {left}"), wrong, host)
        with pytest.raises(Refused, match="is closed: 5 wrong codes"):
            await join(EVE, wrong, host)
        with pytest.raises(Refused, match="is closed: 5 wrong codes"):
            await join(BOB, code, host)
        assert kept == [4, 3, 2, 1, 0]
        assert "is closed" in host.refusals[BOB.peer_id]


async def test_a_try_is_counted_before_it_is_answered() -> None:
    """The node dies while it writes the try down: then the guesser hears nothing."""

    def die() -> None:
        raise OSError(28, "No space left on device")

    async with host_of() as host:
        code = host.invite(role="member", uses=1, lifetime_s=3600.0)
        host.door.on_invites_changed = die
        with pytest.raises(LinkError, match="none could be asked"):
            await join(EVE, Code(code.nameplate, "ZZZZZZZZ"), host)
        assert host.door.invites.snapshot()[0].tries_left == limits.INVITE_TRIES_MAX - 1


async def test_nobody_there_says_what_to_look_at() -> None:
    code = code_of(1, 2)
    with pytest.raises(LinkError, match=r"Nodes were seen, but none could be asked: /ip4/127.0.0.1/tcp/1: .*refused"):
        await join(BOB, code, NOBODY)


async def test_the_address_of_another_peer_is_not_asked() -> None:
    async with host_of() as host:
        code = host.invite(role="member", uses=1, lifetime_s=3600.0)
        with pytest.raises(LinkError, match="lives there now"):
            await join(BOB, code, f"{host.addresses[0]}/p2p/{CAROL.peer_id}")
        await join(BOB, code, f"{host.addresses[0]}/p2p/{host.me}")


# -- a stranger that claims to hold the invite -------------------------------------------------------------------------


async def knows_no_code(stream: Stream) -> None:
    """It goes through the exchange with a code of its own making, as it must to test one guess."""
    ask = await hear(stream, JoinAsk)
    guess = Code(ask.nameplate, "ZZZZZZZZ")
    side = Side(guess, joiner=stream.peer_id, issuer=EVE.peer_id, joins=False, entropy=secrets.token_bytes)
    await say(stream, JoinHeld(share=side.share))
    proof = await hear(stream, JoinProof)
    side.receive(proof.share)
    assert not side.confirmed_by(proof.confirmation)
    chain = (*credentials(EVE, role="admin").chain, grant(EVE, BOB))
    verdict = Verdict(welcome=Welcome(mesh_name="home", root=ROOT.peer_id, chain=chain))
    await say(stream, JoinGranted(confirmation=side.confirmation, sealed=side.seal(pack(verdict))))


async def says_no_for_it(stream: Stream) -> None:
    await hear(stream, JoinAsk)
    await say(stream, JoinHeld(refused="This invite was used already."))


async def sends_no_point_of_the_curve(stream: Stream) -> None:
    await hear(stream, JoinAsk)
    await say(stream, JoinHeld(share=b"B" + b"\x02" * 32))


async def talks_nonsense(stream: Stream) -> None:
    await say(stream, Anything())


async def says_nothing(_stream: Stream) -> None:
    await trio.sleep_forever()


async def hangs_up(stream: Stream) -> None:
    stream.reset()


@pytest.mark.parametrize(
    "manner", [knows_no_code, says_no_for_it, sends_no_point_of_the_curve, talks_nonsense, says_nothing, hangs_up]
)
async def test_a_stranger_in_the_way_learns_nothing_and_stops_nobody(
    manner: Callable[[Stream], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers to any nameplate; the joiner goes on to the true holder."""

    async def welcome(connection: Connection) -> None:
        await manner(await connection.accept_stream(JOIN))

    async with host_of() as host, open_transport(EVE, LOCAL, on_connection=welcome, handlers={}) as eve:
        code = host.invite(role="member", uses=1, lifetime_s=3600.0)
        monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_S", 0.3)
        with pytest.raises((LinkError, Refused)):
            await join(BOB, code, eve.addresses[0])
        monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_S", PATIENCE_S)
        await join(BOB, code, eve.addresses[0], host)


@pytest.mark.parametrize("holder_too", [True, False])
async def test_a_no_of_somebody_unproven_gives_the_true_holder_a_little_longer(
    holder_too: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody on the network may say no; nobody waits out the whole search for it, and nobody is turned away by it."""
    said_no = trio.Event()

    async def refuse(connection: Connection) -> None:
        await says_no_for_it(await connection.accept_stream(JOIN))
        await connection.closed.wait()
        said_no.set()

    async with host_of() as host, open_transport(EVE, LOCAL, on_connection=refuse, handlers={}) as eve:
        code = host.invite(role="member", uses=1, lifetime_s=3600.0)

        @asynccontextmanager
        async def slowly(*, interfaces: Sequence[str]) -> AsyncIterator[trio.MemoryReceiveChannel[Sighting]]:
            send, receive = trio.open_memory_channel[Sighting](2)
            send.send_nowait(Sighting(eve.addresses))
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def later() -> None:
                    await said_no.wait()
                    if holder_too:
                        await send.send(Sighting(host.addresses))

                yield receive

        monkeypatch.setattr(joining, "open_search", slowly)
        if holder_too:
            await join(BOB, code)
        else:
            monkeypatch.setattr(limits, "JOIN_SECOND_OPINION_S", 0.1)
            with pytest.raises(Refused, match="used already"):
                await join(BOB, code, timeout_s=10 * PATIENCE_S)


async def test_a_man_in_the_middle_gets_no_one_in_and_costs_one_try() -> None:
    """Eve announces herself, takes the joiner's connection and passes every message on to the true holder."""
    async with host_of() as host:

        async def relay(connection: Connection) -> None:
            near = await connection.accept_stream(JOIN)
            far = await (await to_host()).open_stream(JOIN)
            for side, other, kind in ((near, far, JoinAsk), (far, near, JoinHeld), (near, far, JoinProof)):
                await say(other, await hear(side, kind))
            granted: JoinGranted = await hear(far, JoinGranted)
            passed.append(granted)
            await say(near, granted)

        async def let_in(_connection: Connection) -> None: ...

        async with (
            open_transport(EVE, LOCAL, on_connection=relay, handlers={}) as eve,
            open_transport(EVE, (), on_connection=let_in, handlers={}) as outward,
        ):
            passed = list[JoinGranted]()

            async def to_host() -> Connection:
                return await outward.dial(host.me, host.addresses, timeout_s=PATIENCE_S)

            code = host.invite(role="member", uses=1, lifetime_s=3600.0)
            with pytest.raises(Refused, match="mistyped or guessed"):
                await join(BOB, code, eve.addresses[0])
            (granted,) = passed
            assert granted.sealed == b""
            assert host.door.invites.snapshot()[0].tries_left == limits.INVITE_TRIES_MAX - 1
            assert "mistyped or guessed" in host.refusals[EVE.peer_id]


async def test_only_so_many_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of sightings costs a bounded number of dials, and a node seen twice is asked once."""
    asked = list[str]()

    @asynccontextmanager
    async def flood(*, interfaces: Sequence[str]) -> AsyncIterator[trio.MemoryReceiveChannel[Sighting]]:
        send, receive = trio.open_memory_channel[Sighting](100)
        async with send:
            for n in range(40):
                await send.send(Sighting((f"/ip4/127.0.0.1/tcp/{n % 20 + 1}",)))
        yield receive

    async def refuse(_self: object, addresses: tuple[str, ...]) -> None:
        asked.extend(addresses)

    monkeypatch.setattr(joining, "open_search", flood)
    monkeypatch.setattr(joining._Search, "_ask_at", refuse)
    monkeypatch.setattr(limits, "JOIN_ASKED_MAX", 7)
    with pytest.raises(LinkError, match="No node was seen"):
        await join_mesh(BOB, code_of(1, 2))
    assert len(asked) == len(set(asked)) == 7
