"""Joining with an invite: who is asked, who is believed, and every way in which it can fail, in words."""

import time
from collections.abc import Awaitable, Callable

import pytest
import trio
from lepton.mesh import joining, limits
from lepton.mesh import mesh as mesh_module
from lepton.mesh.admission import Admission
from lepton.mesh.discovery import Hint
from lepton.mesh.errors import LinkError, Refused, UsageError
from lepton.mesh.grants import ROLES, Grant
from lepton.mesh.identity import Identity
from lepton.mesh.invites import Invite, InviteBook, read_code
from lepton.mesh.joining import join_mesh
from lepton.mesh.mesh import Mesh
from lepton.mesh.protocol import JOIN, JoinAsk, JoinGranted, JoinHeld, JoinSecret
from lepton.mesh.transport import Connection, Stream, open_transport

from .fakes import ROOT, credentials, grant, identity
from .nodes import LOCAL, PATIENCE_S, Anything, hear, introduce, member, no_discovery, say

ADMIN, BOB, CAROL, EVE = map(identity, ("admin", "bob", "carol", "eve"))


ALL = ROLES["admin"]


@pytest.fixture(autouse=True)
def _without_mdns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_module, "open_discovery", no_discovery)
    monkeypatch.setattr(joining, "open_discovery", no_discovery)


async def join(who: Identity, invite: Invite, *helpers: Mesh | Hint, timeout_s: float = PATIENCE_S) -> None:
    hints = tuple(helper if isinstance(helper, Hint) else Hint(helper.me, helper.addresses) for helper in helpers)
    held = await join_mesh(who, invite, interfaces=("127.0.0.1",), hints=hints, timeout_s=timeout_s)
    Admission(held, who.peer_id, time.time())


async def test_one_invite_lets_in_as_many_as_it_says() -> None:
    async with member(ADMIN, held=credentials(ADMIN, role="admin")) as host:
        invite = host.invite("home", role="member", uses=2, lifetime_s=3600.0)
        for who in (BOB, CAROL):
            await join(who, invite, host)
        with pytest.raises(Refused, match="used already"):
            await join(EVE, invite, host)
        assert "used already" in host.refusals[EVE.peer_id]


async def test_an_invite_that_expired_on_the_way_says_so() -> None:
    book = InviteBook()
    async with member(ADMIN, held=credentials(ADMIN, role="admin"), book=book) as host:
        long_ago = time.time() - 100
        invite = book.give(
            "home", ROOT.peer_id, held=host.authority(host.me).capabilities, now=long_ago, lifetime_s=50,
            secret=bytes(16),
        )  # fmt: skip
        with pytest.raises(Refused, match="This invite has expired; ask for a new one"):
            await join(BOB, invite, host)
        with pytest.raises(UsageError, match="has expired"):
            read_code(invite.code(), time.time())


async def test_an_invite_that_nobody_knows_says_so() -> None:
    async with member(ADMIN, held=credentials(ADMIN, role="admin")) as host, member(CAROL) as carol:
        host.invite("home", role="member", uses=1, lifetime_s=3600.0)
        other = InviteBook().give(
            "home", ROOT.peer_id, held=ALL, now=time.time(),
            secret=bytes(16),
        )  # fmt: skip
        with pytest.raises(Refused, match=r"no node of 'home' knows it .*does not hold this invite"):
            await join(BOB, other, host, carol, timeout_s=0.5)


async def test_who_holds_the_invite_is_found_among_many() -> None:
    async with (
        member(ADMIN, held=credentials(ADMIN, role="admin")) as host,
        member(BOB) as bob,
        member(EVE) as eve,
    ):
        introduce(bob, eve)
        invite = host.invite("home", role="member", uses=1, lifetime_s=3600.0)
        gone = Hint(identity("gone").peer_id, ("/ip4/127.0.0.1/tcp/1",))
        myself = Hint(CAROL.peer_id, eve.addresses)
        await join(CAROL, invite, gone, myself, bob, bob, eve, host)


async def test_nobody_there_says_what_to_look_at() -> None:
    invite = InviteBook().give("home", ROOT.peer_id, held=ALL, now=time.time(), secret=bytes(16))
    with pytest.raises(LinkError, match=r"No node of the mesh 'home' was seen within 0\.05 s. Is the node"):
        await join(BOB, invite, timeout_s=0.05)
    gone = Hint(ADMIN.peer_id, ("/ip4/127.0.0.1/tcp/1",))
    with pytest.raises(LinkError, match=r"Nodes of 'home' were seen, but none could be asked: .*refused"):
        await join(BOB, invite, gone, timeout_s=0.3)


# -- a stranger that answers to the mesh's name ------------------------------------------------------------------------


async def claims_to_hold_it(stream: Stream) -> None:
    await hear(stream, JoinAsk)
    await say(stream, JoinHeld(held=True, chain=(grant(EVE, EVE, role="admin"),)))
    secrets_seen.append(await hear(stream, JoinSecret))


async def may_not_invite(stream: Stream) -> None:
    await hear(stream, JoinAsk)
    await say(stream, JoinHeld(held=True, chain=credentials(EVE).chain))
    secrets_seen.append(await hear(stream, JoinSecret))


async def gives_nothing_of_worth(stream: Stream) -> None:
    await hear(stream, JoinAsk)
    await say(stream, JoinHeld(held=True, chain=credentials(EVE, role="admin").chain))
    await hear(stream, JoinSecret)
    forged: tuple[Grant, ...] = (grant(CAROL, BOB),)
    await say(stream, JoinGranted(chain=forged))


async def talks_nonsense(stream: Stream) -> None:
    await say(stream, Anything())


async def says_nothing(_stream: Stream) -> None:
    await trio.sleep_forever()


async def hangs_up(stream: Stream) -> None:
    stream.reset()


secrets_seen = list[JoinSecret]()


@pytest.mark.parametrize(
    "manner",
    [claims_to_hold_it, may_not_invite, gives_nothing_of_worth, talks_nonsense, says_nothing, hangs_up],
)
async def test_a_stranger_in_the_way_sees_no_secret_and_stops_nobody(
    manner: Callable[[Stream], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It announced itself under the mesh's name; the joiner goes on to the true holder."""
    secrets_seen.clear()

    async def welcome(connection: Connection) -> None:
        await manner(await connection.accept_stream(JOIN))

    async with (
        member(ADMIN, held=credentials(ADMIN, role="admin")) as host,
        open_transport(EVE, LOCAL, on_connection=welcome, handlers={}) as eve,
    ):
        invite = host.invite("home", role="member", uses=1, lifetime_s=3600.0)
        stranger = Hint(EVE.peer_id, eve.addresses)
        monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_S", 0.3)
        with pytest.raises((LinkError, Refused)):
            await join(BOB, invite, stranger, timeout_s=1.0)
        monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_S", PATIENCE_S)
        await join(BOB, invite, stranger, host)
    assert secrets_seen == []
