"""mDNS: what an announcement may say, what an outsider sees of it, and that it is all that two nodes need."""

import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from lepton.mesh import discovery, surroundings
from lepton.mesh.admission import Admission
from lepton.mesh.announcements import NONCE_BYTES, Seal
from lepton.mesh.codes import code_of
from lepton.mesh.discovery import (
    SERVICE_TYPE,
    Announcement,
    Hint,
    Sighting,
    local_addresses,
    multiaddress,
    open_discovery,
    open_search,
    read_hint,
    read_sighting,
)
from lepton.mesh.errors import LinkError, Refused, UsageError
from lepton.mesh.identity import public_key_of
from lepton.mesh.joining import join_mesh
from zeroconf import ServiceInfo
from zeroconf._dns import DNSText
from zeroconf._protocol.incoming import DNSIncoming

from .fakes import ROOT, Note, credentials, identity
from .nodes import PATIENCE_S, member, until

ADMIN, BOB, CAROL = map(identity, ("admin", "bob", "carol"))
ALICE = identity("alice").peer_id
LOOPBACK = ("127.0.0.1",)
SEAL, OTHER = Seal(ROOT.peer_id), Seal(identity("another root").peer_id)


def announced(
    sealed: bytes | None, *, port: int | None = 4000, addresses: tuple[str, ...] = ("10.0.0.7",)
) -> ServiceInfo:
    return ServiceInfo(
        SERVICE_TYPE, f"x.{SERVICE_TYPE}", port=port, properties={b"s": sealed}, parsed_addresses=list(addresses)
    )


def sealed(seal: Seal = SEAL, port: int = 4000) -> bytes:
    return seal.close(ALICE, port, bytes(NONCE_BYTES))


def test_an_announcement_of_this_mesh_is_a_hint() -> None:
    info = announced(sealed(), addresses=("10.0.0.7", "fd00::1"))
    assert read_hint(info, SEAL) == Hint(ALICE, ("/ip4/10.0.0.7/tcp/4000", "/ip6/fd00::1/tcp/4000"))


@pytest.mark.parametrize(
    "info",
    [
        announced(None),
        announced(b""),
        announced(b"\xff" * 74),
        announced(sealed(OTHER)),  # another mesh
        announced(sealed(port=4001)),  # copied from elsewhere
        announced(sealed(), port=0),
        announced(sealed(), port=None),
        announced(sealed(), addresses=()),
    ],
)
def test_anything_else_is_passed_over(info: ServiceInfo) -> None:
    assert read_hint(info, SEAL) is None


def test_a_stranger_sees_only_that_somebody_is_there() -> None:
    assert read_sighting(announced(sealed(OTHER))) == Sighting(("/ip4/10.0.0.7/tcp/4000",))
    assert read_sighting(announced(None, port=0)) is None
    assert read_sighting(announced(None, addresses=())) is None


def test_addresses_are_written_as_libp2p_does() -> None:
    assert multiaddress("127.0.0.1", 1) == "/ip4/127.0.0.1/tcp/1"
    assert multiaddress("::1", 2) == "/ip6/::1/tcp/2"
    assert multiaddress("fe80::1%eth0", 3) == "/ip6zone/eth0/ip6/fe80::1/tcp/3"


def test_what_is_announced_everywhere_can_be_reached_from_elsewhere() -> None:
    for address in local_addresses():
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        assert not address.startswith(("127.", "::1"))
        socket.inet_pton(family, address)


def test_an_address_of_one_link_is_worth_something_with_its_zone_alone() -> None:
    info = announced(sealed(), addresses=("fe80::1",))
    assert read_hint(info, SEAL) is None  # as heard over IPv4, which does not say on which link
    info = ServiceInfo(
        SERVICE_TYPE, info.name, port=4000, properties={b"s": sealed()}, parsed_addresses=["fe80::1"], interface_index=3
    )
    assert read_hint(info, SEAL) == Hint(ALICE, ("/ip6zone/3/ip6/fe80::1/tcp/4000",))


@pytest.mark.parametrize(
    ("listening", "said"),
    [
        (("/ip4/0.0.0.0/tcp/4000", "/ip6/::/tcp/4000"), ("10.0.0.7", "fe80::7")),
        (("/ip4/0.0.0.0/tcp/4000", "/ip6/::/tcp/4001"), ("10.0.0.7",)),
        (("/ip6/::/tcp/4000",), ("fe80::7",)),
        (("/ip4/10.0.0.7/tcp/4000",), ("10.0.0.7",)),
        (("/ip6zone/eth0/ip6/fe80::7/tcp/4000",), ("fe80::7",)),
        (("/ip4/127.0.0.1/tcp/4000",), ()),
    ],
)
def test_only_addresses_with_the_port_that_is_told_are_announced(
    listening: tuple[str, ...], said: tuple[str, ...]
) -> None:
    assert Announcement(ALICE, listening).at(("10.0.0.7", "fe80::7")) == (4000, said)


async def test_two_nodes_and_an_invite_find_each_other_by_mdns_alone() -> None:
    used = list[None]()
    async with member(ADMIN, held=credentials(ADMIN, role="admin")) as host:
        host.door.on_invites_changed = lambda: used.append(None)
        code = host.invite(role="trainer", uses=1, lifetime_s=3600.0)
        held = (await join_mesh(BOB, code, interfaces=LOOPBACK)).credentials
        assert used == [None]
        assert held.mesh_name == "home"
        assert held.root == ROOT.peer_id
        assert Admission(held, BOB.peer_id, time.time()).me.allows("train:digits")
        with pytest.raises(Refused, match="This invite was used already; ask for a new one"):
            await join_mesh(CAROL, code, interfaces=LOOPBACK)
        host.publish("note", "x", Note(text="hello"))
        async with member(BOB, held=held) as bob:  # nobody introduces them
            await until(bob, lambda: [value.text for _, value in bob.live("note", Note)] == ["hello"])
            assert bob.present == {ADMIN.peer_id}
            assert host.present == {BOB.peer_id}


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "no-such-interface"])
async def test_an_interface_that_is_not_there_is_named(address: str) -> None:
    with pytest.raises(UsageError, match=f"Cannot use the interface {address} for discovery"):
        await join_mesh(BOB, code_of(1, 2), interfaces=(address,))


async def test_nobody_there_says_what_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "SERVICE_TYPE", f"_lepton-{secrets.token_hex(3)}._tcp.local.")
    with pytest.raises(LinkError, match=r"No node was seen within 0\.05 s. Is the node .* --at\."):
        await join_mesh(BOB, code_of(1, 2), interfaces=LOOPBACK, timeout_s=0.05)


# -- what an outsider sees ---------------------------------------------------------------------------------------------


@contextmanager
def listening_in() -> Iterator[trio.socket.SocketType]:
    """Hear all multicast on the loopback, as anybody on a network can."""
    raw = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    raw.bind(("224.0.0.251", 5353))
    joining = struct.pack("4s4s", socket.inet_aton("224.0.0.251"), socket.inet_aton("127.0.0.1"))
    raw.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joining)
    try:
        yield trio.socket.from_stdlib_socket(raw)
    finally:
        raw.close()


class Observer:
    """What was seen on the wire, by the port that an announcement names: whole packets, names, texts."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.packets: list[bytes] = []
        self.instances: list[str] = []  # of the node at this port, in order of appearance
        self.gone: set[str] = set()
        self.seen: dict[str, set[object]] = {}  # instance: everything else that was said under or with it

    def take(self, packet: bytes) -> None:
        records = DNSIncoming(packet).answers()
        names = {r.name for r in records if getattr(r, "port", None) == self.port}
        for name in names - set(self.instances):
            self.instances.append(name)
            self.seen[name] = set()
        for record in records:
            alias = getattr(record, "alias", "")
            if alias in self.instances and record.ttl == 0:
                self.gone.add(alias)
        if names:
            self.packets.append(packet)
            (name,) = names
            for record in records:
                said = record.text if isinstance(record, DNSText) else getattr(record, "server", None)
                self.seen[name] |= {record.name, said} - {SERVICE_TYPE, None}


async def test_what_an_outsider_sees_names_nobody_and_repeats_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rotations of one node that has a mesh, a model and a task, as every device on its network can record them.

    Addresses and the port stay the same, and link what was seen; everything else is drawn anew.
    """
    monkeypatch.setattr(discovery, "LIFETIME_S", 0.5)
    said: tuple[bytes, ...] = (
        b"home", b"digits", b"train", ADMIN.peer_id.encode(), ADMIN.public_key, ROOT.peer_id.encode(), ROOT.public_key,
        socket.gethostname().encode() + b".",
    )  # fmt: skip
    with listening_in() as outside:
        async with member(ADMIN, held=credentials(ADMIN, role="admin")) as host:
            host.publish("model", "digits", Note(text="weights"))
            host.publish("task", "digits-train", Note(text="rounds"))
            observer = Observer(int(host.addresses[0].rpartition("/")[2]))
            with trio.fail_after(PATIENCE_S):
                while len(observer.gone) < 2:
                    observer.take(await outside.recv(9000))
    assert len(observer.instances) >= 3
    for packet in observer.packets:
        for secret in said:
            assert secret not in packet
    seen = [observer.seen[name] for name in observer.instances[:3]]
    assert all(len(things) >= 3 for things in seen)  # the instance, its host, its sealed value
    assert seen[0] & seen[1] == seen[1] & seen[2] == seen[0] & seen[2] == set()


async def test_a_new_name_comes_before_the_old_one_goes_and_peers_stay_in_touch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(discovery, "LIFETIME_S", 0.5)
    port = secrets.randbelow(50000) + 1024
    said = Announcement(ALICE, (multiaddress("127.0.0.1", port),))
    with listening_in() as outside:
        observer = Observer(port)
        async with (
            open_discovery(ROOT.peer_id, interfaces=LOOPBACK, announce=said),
            open_discovery(ROOT.peer_id, interfaces=LOOPBACK) as hints,
            open_discovery(identity("another root").peer_id, interfaces=LOOPBACK) as others,
            open_search(interfaces=LOOPBACK) as sightings,
        ):
            with trio.fail_after(PATIENCE_S):
                expected = Hint(ALICE, (multiaddress("127.0.0.1", port),))
                assert await hints.receive() == expected
                while not observer.gone:
                    observer.take(await outside.recv(9000))
                    assert observer.gone < set(observer.instances) or not observer.gone
                assert await hints.receive() == expected  # under its second name
                while (await sightings.receive()).addresses != expected.addresses:
                    pass
            with pytest.raises(trio.WouldBlock):
                others.receive_nowait()


async def test_a_node_whose_addresses_change_appears_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """It left one network for another: its old name is gone before it speaks in the new one."""
    here: list[tuple[str, ...]] = [("10.0.0.7",)]
    reads = threading.Semaphore(0)

    def read() -> tuple[str, ...]:
        reads.release()
        return here[0]

    monkeypatch.setattr(discovery, "local_addresses", read)
    monkeypatch.setattr(surroundings, "CHECK_S", 0.01)
    say, hear = trio.open_memory_channel[tuple[str, str]](10)

    def register(_wire: object, info: ServiceInfo) -> None:
        trio.from_thread.run_sync(say.send_nowait, ("up", info.parsed_addresses()[0]))

    class Wire:
        def unregister_service(self, info: ServiceInfo) -> None:
            trio.from_thread.run_sync(say.send_nowait, ("down", info.parsed_addresses()[0]))

        def update_interfaces(self) -> None:
            trio.from_thread.run_sync(say.send_nowait, ("networks", ""))

    monkeypatch.setattr(discovery, "_register", register)
    said = Announcement(ALICE, ("/ip4/0.0.0.0/tcp/4001",))
    announcer = discovery._Announcer(Wire(), SEAL, said, ())  # type: ignore[arg-type]
    with trio.fail_after(PATIENCE_S):
        await announcer.renew()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(announcer.run)
            assert await hear.receive() == ("up", "10.0.0.7")
            for _ in range(2):  # by who announces and by who watches for a change
                await trio.to_thread.run_sync(reads.acquire)
            here[0] = ("10.0.0.8",)
            assert [await hear.receive() for _ in range(3)] == [
                ("down", "10.0.0.7"),
                ("networks", ""),
                ("up", "10.0.0.8"),
            ]
            here[0] = ()  # no network at all: nothing is announced
            assert [await hear.receive() for _ in range(2)] == [("down", "10.0.0.8"), ("networks", "")]
            here[0] = ("10.0.0.9",)
            while (event := await hear.receive()) == ("networks", ""):
                pass
            assert event == ("up", "10.0.0.9")
            nursery.cancel_scope.cancel()


def test_nothing_of_a_peer_id_is_in_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    announcer = discovery._Announcer(None, SEAL, Announcement(ALICE, ("/ip4/127.0.0.1/tcp/4001",)), LOOPBACK)  # type: ignore[arg-type]
    infos = [info for _ in range(3) if (info := announcer._fresh(LOOPBACK)) is not None]
    names = {name for info in infos for name in (info.name, info.server)}
    assert len(names) == 6
    assert all(public_key_of(ALICE)[:4] not in info.text for info in infos)
    assert [read_hint(info, SEAL) for info in infos] == [Hint(ALICE, ("/ip4/127.0.0.1/tcp/4001",))] * 3
