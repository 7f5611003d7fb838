"""What is overheard of mDNS: announcements of this mesh and others, with their interface, whatever else comes in."""

import random
import socket
import struct

import pytest
import trio
from lepton.mesh.announcements import NONCE_BYTES, Seal
from lepton.mesh.discovery import SERVICE_TYPE, Announcement, open_discovery
from lepton.mesh.overhearing import Ear, Voice, ears, interface_index, overhear, voices
from zeroconf import ServiceInfo
from zeroconf._protocol.outgoing import DNSOutgoing

from .fakes import ROOT, identity

ALICE = identity("alice").peer_id
SEAL, OTHER = Seal(ROOT.peer_id), Seal(identity("another root").peer_id)
LOOPBACK = ("127.0.0.1",)


def packet(sealed: bytes, *, address: str = "10.0.0.7", ttl: int = 120) -> bytes:
    info = ServiceInfo(
        SERVICE_TYPE, f"aa.{SERVICE_TYPE}", port=4000, properties={b"s": sealed}, parsed_addresses=[address],
        server="y.local.",
    )  # fmt: skip
    said = DNSOutgoing(0x8400)
    for answer in (info.dns_pointer(), info.dns_service(override_ttl=ttl), info.dns_text(), *info.dns_addresses()):
        said.add_answer_at_time(answer, 0)
    return said.packets()[0]


def test_an_announcement_of_this_mesh_says_who_it_is() -> None:
    sealed = SEAL.close(ALICE, 4000, bytes(NONCE_BYTES))
    expected = Voice("eth0", "10.0.0.7", ALICE, ("/ip4/10.0.0.7/tcp/4000",))
    assert voices(packet(sealed), "eth0", "10.0.0.7", SEAL) == [expected]
    for seal in (OTHER, None):
        (voice,) = voices(packet(sealed), "eth0", "10.0.0.7", seal)
        assert voice.peer is None


def test_a_goodbye_and_what_is_malformed_say_nothing() -> None:
    whole = packet(SEAL.close(ALICE, 4000, bytes(NONCE_BYTES)))
    assert voices(packet(b"", ttl=0), "eth0", "10.0.0.7", SEAL) == []
    for size in range(0, len(whole), 7):
        assert all(voice.peer in {None, ALICE} for voice in voices(whole[:size], "eth0", "10.0.0.7", SEAL))
    rng = random.Random(1)
    for _ in range(500):
        other = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            other[rng.randrange(len(other))] = rng.randrange(256)
        voices(bytes(other), "eth0", "10.0.0.7", SEAL)
    assert voices(whole.replace(b"_lepton", b"_LEPTON"), "eth0", "10.0.0.7", SEAL) == []
    assert voices(b"\xff" * 300, "eth0", "10.0.0.7", SEAL) == []


def test_the_interface_is_read_from_what_the_system_says() -> None:
    assert interface_index([(socket.IPPROTO_IP, 8, struct.pack("@i4s4s", 3, b"", b""))]) == 3
    assert interface_index([(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, bytes(16) + struct.pack("@I", 5))]) == 5
    assert interface_index([(socket.IPPROTO_IP, 1, b"\1\0\0\0")]) == 0
    assert interface_index([]) == 0


async def test_who_is_announced_is_heard_on_its_interface() -> None:
    (lo,) = ears(LOOPBACK)
    assert lo.ipv4 == "127.0.0.1"
    assert all(not ear.ipv4.startswith("127.") for ear in ears())
    said = Announcement(ALICE, ("/ip4/127.0.0.1/tcp/4000",))
    async with open_discovery(ROOT.peer_id, interfaces=LOOPBACK, announce=said):
        with trio.fail_after(60):
            heard = await overhear(ROOT.peer_id, [lo], 1.0)
    assert Voice(lo.name, "127.0.0.1", ALICE, ("/ip4/127.0.0.1/tcp/4000",)) in heard.voices
    assert heard.echoes == {lo.name}
    assert heard.troubles == {}


@pytest.mark.parametrize("ear", [Ear("gone0", 9999, "203.0.113.77"), Ear("gone0", 9999, "", has_ipv6=True)])
async def test_an_interface_that_is_gone_is_a_trouble_and_no_error(ear: Ear) -> None:
    heard = await overhear(ROOT.peer_id, [ear], 0.1)
    assert "multicast" in heard.troubles["gone0"]
    assert heard.echoes == set()
