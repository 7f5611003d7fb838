"""mDNS: what an announcement may say, what is passed over, and that it is all that two nodes need."""

import socket
import time

import pytest
from lepton.mesh.admission import Admission
from lepton.mesh.discovery import (
    SERVICE_TYPE,
    Announcement,
    Hint,
    announcement,
    local_addresses,
    multiaddress,
    read_hint,
    tag_of,
)
from lepton.mesh.errors import Refused, UsageError
from lepton.mesh.grants import ROLES
from lepton.mesh.identity import PeerId
from lepton.mesh.invites import InviteBook, read_code
from lepton.mesh.joining import join_mesh
from zeroconf import ServiceInfo

from .fakes import ROOT, Note, credentials, identity
from .nodes import member, until

ADMIN, BOB, CAROL = map(identity, ("admin", "bob", "carol"))
ALICE = identity("alice").peer_id
LOOPBACK = ("127.0.0.1",)
TAG = tag_of(ROOT.peer_id)
GOOD: dict[str | bytes, str | bytes | None] = {"v": "1", "m": TAG, "p": ALICE}


def announced(
    properties: dict[str | bytes, str | bytes | None],
    *,
    port: int | None = 4000,
    addresses: tuple[str, ...] = ("10.0.0.7",),
) -> ServiceInfo:
    return ServiceInfo(
        SERVICE_TYPE, f"x.{SERVICE_TYPE}", port=port, properties=properties, parsed_addresses=list(addresses)
    )


def test_an_announcement_of_this_mesh_is_a_hint() -> None:
    info = announced(GOOD, addresses=("10.0.0.7", "fd00::1"))
    assert read_hint(info, TAG) == Hint(ALICE, ("/ip4/10.0.0.7/tcp/4000", "/ip6/fd00::1/tcp/4000"))


@pytest.mark.parametrize(
    "info",
    [
        announced({}),
        announced(GOOD | {"m": tag_of(ALICE)}),  # another mesh
        announced(GOOD | {"m": None}),
        announced(GOOD | {"p": "not a peer"}),
        announced(GOOD | {"p": b"\xff\xfe"}),
        announced(GOOD | {"p": None}),
        announced(GOOD, port=0),
        announced(GOOD, port=None),
        announced(GOOD, addresses=()),
    ],
)
def test_anything_else_is_passed_over(info: ServiceInfo) -> None:
    assert read_hint(info, TAG) is None


def test_a_mesh_is_named_without_its_root_key() -> None:
    assert len(TAG) == 16
    assert TAG not in ROOT.peer_id
    assert tag_of(PeerId("another")) != TAG


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
    info = announced(GOOD, addresses=("fe80::1",))
    assert read_hint(info, TAG) is None  # as heard over IPv4, which does not say on which link
    info = ServiceInfo(
        SERVICE_TYPE, info.name, port=4000, properties=GOOD, parsed_addresses=["fe80::1"], interface_index=3
    )
    assert read_hint(info, TAG) == Hint(ALICE, ("/ip6zone/3/ip6/fe80::1/tcp/4000",))


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
    assert announcement(ALICE, listening, ("10.0.0.7", "fe80::7")) == Announcement(ALICE, 4000, said)


async def test_two_nodes_and_an_invite_find_each_other_by_mdns_alone() -> None:
    used = list[None]()
    async with member(ADMIN, held=credentials(ADMIN, role="admin")) as host:
        host.door.on_invite_used = lambda: used.append(None)
        code = host.invite("home", role="trainer", uses=1, lifetime_s=3600.0).code()
        held = await join_mesh(BOB, read_code(code, time.time()), interfaces=LOOPBACK)
        assert used == [None]
        assert held.mesh_name == "home"
        assert held.root == ROOT.peer_id
        assert Admission(held, BOB.peer_id, time.time()).me.allows("train:digits")
        with pytest.raises(Refused, match="This invite was used already; ask for a new one"):
            await join_mesh(CAROL, read_code(code, time.time()), interfaces=LOOPBACK)
        host.publish("note", "x", Note(text="hello"))
        async with member(BOB, held=held) as bob:  # nobody introduces them
            await until(bob, lambda: [value.text for _, value in bob.live("note", Note)] == ["hello"])
            assert bob.present == {ADMIN.peer_id}
            assert host.present == {BOB.peer_id}


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "no-such-interface"])
async def test_an_interface_that_is_not_there_is_named(address: str) -> None:
    invite = InviteBook().give("home", ROOT.peer_id, held=ROLES["admin"], now=time.time(), secret=bytes(16))
    with pytest.raises(UsageError, match=f"Cannot use the interface {address} for discovery"):
        await join_mesh(BOB, invite, interfaces=(address,))
