"""The small machines below the muxer: records, multistream-select, handshakes, addresses. Bad bytes give PeerError,
only that.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.errors import PeerError, UsageError
from lepton.mesh.multistream import HEADER, PROPOSALS_MAX, Answering, Asking, encode
from lepton.mesh.noise import NoiseHandshake, NoiseKeys
from lepton.mesh.records_layer import PLAINTEXT_BYTES_MAX, NoiseRecords, TlsRecords
from lepton.mesh.tcp import parse_address, parse_listen
from lepton.mesh.tls import TlsHandshake, TlsKeys

MUXERS = ["/yamux/1.0.0"]
Me = Callable[[], Any]
Handshake = NoiseHandshake | TlsHandshake


def noise_pair() -> tuple[NoiseRecords, NoiseRecords]:
    one, other = os.urandom(32), os.urandom(32)
    return NoiseRecords(one, other), NoiseRecords(other, one)


def shake(ours: Handshake, theirs: Handshake) -> None:
    """Carry bytes between two handshakes until neither has more to say."""
    towards = [ours.start(), theirs.start()]
    while any(towards):
        towards = [ours.receive(towards[1]) if towards[1] else b"", theirs.receive(towards[0]) if towards[0] else b""]


@given(
    st.lists(st.integers(0, 3 * PLAINTEXT_BYTES_MAX // 2), max_size=4), st.lists(st.integers(1, 100_000), max_size=8)
)
def test_noise_records_carry_any_pieces_cut_anywhere(sizes: list[int], cuts: list[int]) -> None:
    sender, receiver = noise_pair()
    pieces = [bytes([number]) * size for number, size in enumerate(sizes)]
    block = memoryview(sender.seal(pieces))
    got, at = b"", 0
    for cut in [*cuts, len(block)]:
        got += b"".join(receiver.open(block[at : at + cut]))
        at += cut
    assert got == b"".join(pieces)


def test_one_full_frame_fills_one_noise_message() -> None:
    sender, _ = noise_pair()
    frame = [bytes(12), bytes(PLAINTEXT_BYTES_MAX - 12)]
    assert len(sender.seal([*frame, *frame])) == 2 * (2 + 65535)


@given(st.data())
def test_a_damaged_noise_record_is_the_peers_error(data: st.DataObject) -> None:
    sender, receiver = noise_pair()
    block = bytearray(sender.seal([b"something"]))
    block[data.draw(st.integers(2, len(block) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(PeerError, match="damaged or forged"):
        receiver.open(memoryview(block))


def test_a_replayed_noise_record_is_the_peers_error() -> None:
    sender, receiver = noise_pair()
    block = memoryview(sender.seal([b"pay me"]))
    assert receiver.open(block) == [b"pay me"]
    with pytest.raises(PeerError):
        receiver.open(block)


@pytest.mark.parametrize(("kind", "keys"), [(NoiseHandshake, NoiseKeys), (TlsHandshake, TlsKeys)])
def test_a_handshake_names_both_and_agrees_on_the_muxer(me: Me, kind: Any, keys: Any) -> None:
    one, other = me(), me()
    ours, theirs = kind(keys(one, MUXERS), initiator=True), kind(keys(other, MUXERS), initiator=False)
    shake(ours, theirs)
    assert (ours.peer_id, theirs.peer_id) == (other.peer_id, one.peer_id)
    assert ours.muxer == theirs.muxer == MUXERS[0]
    assert theirs.records.open(memoryview(ours.records.seal([b"a", b"b" * 40_000])))[0].startswith(b"a")
    assert b"".join(ours.records.open(memoryview(theirs.records.seal([b"c" * 70_000])))) == b"c" * 70_000


def test_a_peer_without_early_muxers_is_asked_later(me: Me) -> None:
    ours = NoiseHandshake(NoiseKeys(me(), MUXERS), initiator=True)
    theirs = NoiseHandshake(NoiseKeys(me(), []), initiator=False)
    shake(ours, theirs)
    assert ours.muxer is None
    assert theirs.muxer is None


def test_a_signature_by_another_key_is_refused(me: Me) -> None:
    honest, forged = NoiseKeys(me(), MUXERS), NoiseKeys(me(), MUXERS)
    forged.payload = honest.payload  # the victim's words, seen in some other handshake
    with pytest.raises(PeerError, match="did not sign"):
        shake(NoiseHandshake(NoiseKeys(me(), MUXERS), initiator=True), NoiseHandshake(forged, initiator=False))


@given(st.binary(max_size=200))
def test_bad_handshakes_are_the_peers_error(junk: bytes) -> None:
    class One:
        seed = b"s" * 32
        peer_id = "unused"

    handshake = NoiseHandshake(NoiseKeys(One(), MUXERS), initiator=False)
    with suppress(PeerError):
        handshake.receive(junk)
    assert handshake.records is None


def test_a_key_of_small_order_is_the_peers_error(me: Me) -> None:
    """With a public key of zeros every secret is zero; the library says so with an error of its own."""
    machine = NoiseHandshake(NoiseKeys(me(), MUXERS), initiator=False)
    with pytest.raises(PeerError, match="no secret"):
        machine.receive((32).to_bytes(2, "big") + bytes(32))


def test_tls_says_goodbye(me: Me) -> None:
    ours, theirs = (
        TlsHandshake(TlsKeys(me(), MUXERS), initiator=True),
        TlsHandshake(TlsKeys(me(), MUXERS), initiator=False),
    )
    shake(ours, theirs)
    assert isinstance(ours.records, TlsRecords)
    assert isinstance(theirs.records, TlsRecords)
    theirs.records.open(memoryview(ours.records.farewell()))
    assert theirs.records.ended
    with pytest.raises(PeerError, match="TLS is broken"):
        ours.records.open(memoryview(b"\x17\x03\x03\x00\x20" + bytes(32)))


def test_multistream_finds_what_both_speak() -> None:
    asking, answering = Asking(["/a", "/b"]), Answering(["/b", "/c"])
    towards = asking.start()
    while asking.chosen is None:
        towards = asking.receive(answering.receive(towards))
    assert asking.chosen == answering.chosen == "/b"


def test_multistream_leaves_what_comes_behind_it() -> None:
    answering = Answering({"/a"})
    for byte in encode(HEADER) + encode("/a")[:-1]:
        answering.receive(bytes([byte]))
    answering.receive(b"\nbehind")
    assert (answering.chosen, answering.rest) == ("/a", b"behind")


def test_long_protocol_names_have_longer_lengths() -> None:
    name = "/" + "x" * 300
    answering = Answering({name})
    answering.receive(encode(HEADER) + encode(name))
    assert answering.chosen == name


@pytest.mark.parametrize(
    "data",
    [
        encode("/other/1.0.0"),
        b"\x00",
        b"\x05hello",
        b"\xff\xff\xff",
        encode(HEADER) + encode("/no") * PROPOSALS_MAX,
    ],
)
def test_multistream_refuses_nonsense(data: bytes) -> None:
    with pytest.raises(PeerError):
        Answering({"/a"}).receive(data)


@pytest.mark.parametrize("answer", [encode("na"), encode(HEADER) + encode("na"), encode(HEADER) + encode("/b")])
def test_asking_in_vain_is_an_error(answer: bytes) -> None:
    with pytest.raises(PeerError):
        Asking(["/a"]).receive(answer)


@given(st.binary(max_size=300))
def test_multistream_raises_nothing_else(junk: bytes) -> None:
    for machine in (Answering({"/a"}), Asking(["/a", "/b"])):
        try:
            machine.receive(junk)
        except PeerError:
            continue


@pytest.mark.parametrize(
    ("text", "again"),
    [
        ("/ip4/192.0.2.1/tcp/4001", None),
        ("/ip6/2001:db8::1/tcp/4001/p2p/12D3KooW", "/ip6/2001:db8::1/tcp/4001"),
        ("/ip6zone/eth0/ip6/fe80::1/tcp/1", None),
        ("/dns4/example.org/tcp/443", None),
        ("/dns6/example.org/tcp/443", None),
        ("/dns/example.org/tcp/443", None),
    ],
)
def test_addresses_are_multiaddrs(text: str, again: str | None) -> None:
    address, peer_id = parse_address(text)
    assert str(address) == (again or text)
    assert peer_id == ("12D3KooW" if again else None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ip4",
        "/ip4/1.2.3.4",
        "/ip4/1.2.3.4/tcp/-1",
        "/ip4/1.2.3.4/tcp/4/ws",
        "/tcp/4/ip4/1.2.3.4",
        "/ip6/1.2.3.4/tcp/4",
        "/ip4/1.2.3.4/ip4/1.2.3.4/tcp/4",
        "/ip6zone/eth0/ip6/::1/tcp/1",
        "/ip4/1.2.3.4/tcp/\u0664",
        "/dns4//tcp/4",
        "/" * 600,
    ],
)
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


@pytest.mark.parametrize("text", ["", "localhost:1", "1.2.3.4", "1.2.3.4:x", "::1", "/ip4/1.2.3.4/udp/1"])
def test_places_to_listen_are_checked(text: str) -> None:
    with pytest.raises(UsageError):
        parse_listen(text)


@given(st.text(max_size=80))
def test_no_text_breaks_the_parser(text: str) -> None:
    for parse in (parse_address, parse_listen):
        try:
            parse(text)
        except UsageError:
            continue
