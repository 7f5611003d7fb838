"""How members find each other where mDNS does not reach, over the real transport on addresses of 127.0.0.0/8."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from lepton.mesh import finding, limits, membership, surroundings
from lepton.mesh import mesh as mesh_module
from lepton.mesh.calls import Answer, Incoming, Method
from lepton.mesh.errors import LinkError, UsageError
from lepton.mesh.finding import reachable_at
from lepton.mesh.mesh import Mesh
from lepton.mesh.neighbours import places
from lepton.mesh.records import RecordStore
from lepton.mesh.surroundings import watch

from .fakes import Note, identity
from .nodes import PATIENCE_S, introduce, member, no_discovery, until

ALICE, BOB, CAROL, DAVE = map(identity, ("alice", "bob", "carol", "dave"))
BRISK = membership.Config(look_interval_s=0.1, redial_first_s=0.02, redial_most_s=0.2)


@pytest.fixture(autouse=True)
def _without_mdns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_module, "open_discovery", no_discovery)


def place_of(mesh: Mesh) -> str:
    """Where a node listens, as people write it."""
    _, _, host, _, port = mesh.addresses[0].split("/")
    return f"{host}:{port}"


# -- where a node can be reached ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listening", "ips", "expected"),
    [
        (["/ip4/0.0.0.0/tcp/4001"], ["192.0.2.7", "2001:db8::7"], ["/ip4/192.0.2.7/tcp/4001"]),
        (["/ip6/::/tcp/4001"], ["192.0.2.7", "2001:db8::7", "fe80::7"], ["/ip6/2001:db8::7/tcp/4001"]),
        (["/ip4/127.0.0.1/tcp/9"], ["192.0.2.7"], ["/ip4/127.0.0.1/tcp/9"]),
        (["/ip4/0.0.0.0/tcp/1", "/ip4/192.0.2.7/tcp/1"], ["192.0.2.7"], ["/ip4/192.0.2.7/tcp/1"]),
        ([], ["192.0.2.7"], []),
    ],
)
def test_a_node_says_where_others_reach_it(listening: list[str], ips: list[str], expected: list[str]) -> None:
    assert list(reachable_at(listening, ips)) == expected


def test_a_machine_with_many_addresses_names_no_more_than_a_record_may() -> None:
    many = [f"192.0.2.{n}" for n in range(100)]
    assert len(reachable_at(["/ip4/0.0.0.0/tcp/1"], many)) == limits.HINTED_ADDRESSES_MAX


# -- from one address to all -------------------------------------------------------------------------------------------


async def test_one_address_of_one_member_is_enough_to_meet_all() -> None:
    async with (
        member(ALICE) as alice,
        member(BOB, bootstrap=(place_of(alice),)) as bob,
        member(CAROL, bootstrap=(place_of(alice),)) as carol,
    ):
        await until(bob, lambda: bob.connected == {alice.me, carol.me})
        await until(carol, lambda: carol.connected == {alice.me, bob.me})
        await until(bob, lambda: [place.peer for place in bob.finding.places] == [alice.me])
        assert [place.trouble for place in bob.finding.places] == [""]


async def test_an_address_may_be_a_name() -> None:
    async with member(ALICE) as alice:
        port = place_of(alice).rpartition(":")[2]
        async with member(BOB, bootstrap=(f"localhost:{port}",)) as bob:
            await until(bob, lambda: bob.connected == {alice.me})


async def test_an_address_at_which_nobody_of_the_mesh_lives_is_named_with_the_reason() -> None:
    async with member(ALICE, bootstrap=("127.0.0.1:1", "no-such-name.invalid:4001"), pace=BRISK) as alice:
        await until(alice, lambda: all(place.trouble for place in alice.finding.places))
        refused, unknown = alice.finding.places
        assert "refused" in refused.trouble
        assert "no-such-name.invalid has no address" in unknown.trouble


async def test_the_address_of_this_node_itself_is_told_as_such() -> None:
    async with member(ALICE) as alice:
        alice.finding._bootstrap.add(alice.addresses)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alice.finding._look, nursery)
            await until(alice, lambda: "this node itself" in alice.finding.places[0].trouble)
            nursery.cancel_scope.cancel()


async def test_what_is_no_address_is_told_at_once() -> None:
    with pytest.raises(UsageError, match="'kitchen' is no address of a node"):
        async with member(ALICE, bootstrap=("kitchen",)):
            raise AssertionError


async def test_a_member_that_starts_later_is_met_all_the_same() -> None:
    async with member(ALICE) as alice:
        place = place_of(alice)
    async with member(BOB, bootstrap=(place,), pace=BRISK) as bob:
        await until(bob, lambda: bob.finding.places[0].trouble)
        async with member(ALICE, listen=(place,)) as alice:
            await until(bob, lambda: bob.connected == {alice.me})
        await until(bob, lambda: not bob.present)
        async with member(ALICE, listen=(place,), store=RecordStore(ALICE, 2)) as alice:
            await until(bob, lambda: bob.connected == {alice.me})


# -- a machine that moves or sleeps ------------------------------------------------------------------------------------


class Hotspot:
    """A network of its own between one address of 127.0.0.0/8 and a node, which can go away without a word."""

    def __init__(self, nursery: trio.Nursery, listener: trio.SocketListener, to_port: int) -> None:
        self._nursery, self._listener, self._to_port = nursery, listener, to_port
        self._open = True
        host, port = listener.socket.getsockname()
        self.address = f"/ip4/{host}/tcp/{port}"

    async def run(self) -> None:
        await trio.serve_listeners(self._carry, [self._listener], handler_nursery=self._nursery)

    async def _carry(self, near: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream("127.0.0.1", self._to_port)
        async with near, far, trio.open_nursery() as both:
            both.start_soon(self._pass_on, near, far)
            both.start_soon(self._pass_on, far, near)

    async def _pass_on(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        try:
            async for data in source:
                if not self._open:
                    await trio.sleep_forever()
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await trio.sleep_forever()

    def vanish(self) -> None:
        self._open = False


@asynccontextmanager
async def hotspot(host: str, to_port: int) -> AsyncIterator[Hotspot]:
    [listener] = await trio.open_tcp_listeners(0, host=host)
    async with trio.open_nursery() as nursery:
        made = Hotspot(nursery, listener, to_port)
        nursery.start_soon(made.run)
        yield made
        nursery.cancel_scope.cancel()


async def test_a_laptop_that_moves_to_another_network_is_reached_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connections lead nowhere from one moment to the next; it probes them, and says where it is now."""
    monkeypatch.setattr(surroundings, "CHECK_S", 0.01)
    monkeypatch.setattr(limits, "PROBE_TIMEOUT_S", 0.2)
    where = [("127.0.0.2",)]
    monkeypatch.setattr(finding, "local_addresses", lambda: where[0])
    async with member(ALICE, listen=("0.0.0.0:0",), interfaces=(), pace=BRISK) as alice, member(BOB, pace=BRISK) as bob:
        port = int(alice.addresses[0].rpartition("/")[2])
        async with hotspot("127.0.0.4", port) as old:
            bob._note(membership.Hinted(alice.me, (old.address,)))
            await until(alice, lambda: alice.connected == {bob.me})
            await until(bob, lambda: f"/ip4/127.0.0.2/tcp/{port}" in bob._members.book.addresses(alice.me))
            first = alice._transport.connections[bob.me]
            old.vanish()
            where[0] = ("127.0.0.3",)
            with trio.fail_after(PATIENCE_S):
                await first.closed.wait()
            await until(bob, lambda: f"/ip4/127.0.0.3/tcp/{port}" in bob._members.book.addresses(alice.me)[:1])
            await until(alice, lambda: alice.connected == {bob.me})
            bob.publish("note", "x", Note(text="still here"))
            await until(alice, lambda: alice.live("note", Note))


async def test_connections_that_still_carry_something_outlive_a_sleep(caplog: pytest.LogCaptureFixture) -> None:
    async with member(ALICE, pace=BRISK) as alice, member(BOB, pace=BRISK) as bob:
        introduce(alice, bob)
        await until(alice, lambda: alice.connected)
        await until(bob, lambda: bob.connected)
        with caplog.at_level(logging.INFO):
            alice.finding._moved("the machine slept for 3600 s")
        connection = alice._transport.connections[bob.me]
        for _ in range(3):
            await alice._probe(bob.me)
        assert not connection.closed.is_set()
        assert "slept for 3600 s" in caplog.text


async def test_sleep_is_seen_by_two_clocks_that_part_and_a_move_by_the_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(surroundings, "CHECK_S", 0.001)
    slept_s, ips = [0.0], list[tuple[str, ...]]([("192.0.2.1",)])
    send, receive = trio.open_memory_channel[str](10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, send.send_nowait, lambda: ips[0], lambda: trio.current_time() + slept_s[0])
        with trio.fail_after(PATIENCE_S):
            await trio.sleep(0.02)
            slept_s[0] += surroundings.SLEPT_S / 2  # clocks drift, and are set
            await trio.sleep(0.02)
            slept_s[0] += 3600.0
            assert "slept for 3600 s" in await receive.receive()
            ips[0] = ()
            assert "are now none" in await receive.receive()
            ips[0] = ("198.51.100.1", "192.0.2.9")
            assert "192.0.2.9, 198.51.100.1" in await receive.receive()
            nursery.cancel_scope.cancel()
    assert receive.statistics().current_buffer_used == 0


def test_the_clock_that_goes_on_while_a_machine_sleeps_is_no_calendar() -> None:
    assert surroundings.since_boot() > 0.0


# -- calls to members that are not connected ---------------------------------------------------------------------------


async def echo(call: Incoming[Note]) -> Answer[Note]:
    return Answer(call.message)


ECHO = Method(name="echo", needs="mesh", takes=Note, handler=echo)
# Two members are a large mesh, with a single ring, and what is not wanted goes soon.
FEW = membership.Config(
    look_interval_s=0.05, redial_first_s=0.02, whole_most=1, whole_again=0, rings=1, linger_s=0.1,
    reach_interval_s=600.0,
)  # fmt: skip


async def test_a_call_to_a_member_that_is_not_connected_dials_it_once_and_the_connection_goes_when_idle() -> None:
    """Four on one ring: each has two neighbours, and one member that is here and not connected."""
    around = sorted((ALICE, BOB, CAROL, DAVE), key=lambda who: places(who.peer_id, 1))
    async with (
        member(around[0], pace=FEW) as caller,
        member(around[1], pace=FEW) as right,
        member(around[2], pace=FEW) as opposite,
        member(around[3], pace=FEW) as left,
    ):
        opposite.calls.serve(ECHO)
        everybody = [caller, right, opposite, left]
        for one in everybody:
            one._note(membership.Heard(tuple(other.me for other in everybody)))
            for other in everybody:
                one._note(membership.Hinted(other.me, other.addresses, signed=True))
        for turn in range(2):
            await until(caller, lambda: caller.connected == {right.me, left.me})
            assert opposite.me in caller.present
            answers = list[str]()

            async def call(text: str, answers: list[str] = answers) -> None:
                answers.append((await caller.calls.call(opposite.me, "echo", Note(text=text), Note)).message.text)

            async with trio.open_nursery() as nursery:
                for n in range(5):
                    nursery.start_soon(call, f"{turn}.{n}")
            assert sorted(answers) == [f"{turn}.{n}" for n in range(5)]
        await until(opposite, lambda: opposite.connected == {right.me, left.me})
        assert caller.me in opposite.present  # it was told that the other stays where it is


async def test_a_call_to_a_member_that_is_heard_of_and_cannot_be_reached_fails_within_its_deadline() -> None:
    async with member(ALICE, pace=FEW) as alice, member(BOB, pace=FEW) as bob:
        introduce(alice, bob)
        await until(alice, lambda: alice.connected)
        for where in ((), ("/ip4/127.0.0.1/tcp/1",)):
            alice._note(membership.Heard((DAVE.peer_id,)))
            if where:
                alice._note(membership.Hinted(DAVE.peer_id, where, signed=True))
            with pytest.raises(LinkError):
                await alice.calls.call(DAVE.peer_id, "echo", Note(), Note, timeout_s=5.0)
        with pytest.raises(LinkError, match="not connected"):
            await alice.calls.call(CAROL.peer_id, "echo", Note(), Note)
