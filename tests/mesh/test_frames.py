"""Frames: however a stream is cut, the same frames come out, and none that is not whole."""

import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh import limits
from lepton.mesh.errors import PeerError
from lepton.mesh.frames import Frame, FrameDecoder, encode

FRAMES = st.lists(st.tuples(st.binary(max_size=40), st.lists(st.binary(max_size=30), max_size=3)), max_size=5)


def wire(header: bytes, *buffers: bytes) -> bytes:
    return b"".join(encode(header, buffers))


def plain(frames: list[Frame]) -> list[tuple[bytes, bytes]]:
    return [(frame.header, bytes(frame.body)) for frame in frames]


@given(FRAMES, st.data())
def test_any_cutting_gives_the_same_frames(said: list[tuple[bytes, list[bytes]]], data: st.DataObject) -> None:
    stream = b"".join(wire(header, *buffers) for header, buffers in said)
    decoder, heard, at = FrameDecoder(), list[Frame](), 0
    while at < len(stream):
        size = data.draw(st.integers(1, len(stream) - at))
        heard += decoder.receive(stream[at : at + size])
        at += size
    decoder.end()
    assert plain(heard) == [(header, b"".join(buffers)) for header, buffers in said]


@given(FRAMES.filter(bool), st.data())
def test_a_stream_that_ends_inside_a_frame_is_an_error(
    said: list[tuple[bytes, list[bytes]]], data: st.DataObject
) -> None:
    *whole, last = [wire(header, *buffers) for header, buffers in said]
    decoder = FrameDecoder()
    heard = decoder.receive(b"".join(whole) + last[: data.draw(st.integers(1, len(last) - 1))])
    assert len(heard) == len(whole)
    assert decoder.mid_frame
    with pytest.raises(PeerError, match="ended inside a frame"):
        decoder.end()


@given(FRAMES)
def test_who_reads_no_more_than_is_wanted_stays_inside_one_frame(said: list[tuple[bytes, list[bytes]]]) -> None:
    stream = b"".join(wire(header, *buffers) for header, buffers in said)
    decoder, at, heard = FrameDecoder(), 0, list[Frame]()
    while at < len(stream):
        wanted = decoder.bytes_wanted
        assert wanted > 0
        got = decoder.receive(stream[at : at + wanted])
        at += wanted
        assert len(got) <= 1
        assert bool(got) == (not decoder.mid_frame)
        heard += got
    assert len(heard) == len(said)


def test_a_frame_of_nothing_is_a_frame() -> None:
    decoder = FrameDecoder()
    assert plain(decoder.receive(wire(b"") * 2 + wire(b"", b"", b"x"))) == [(b"", b""), (b"", b""), (b"", b"x")]
    decoder.end()


@given(st.binary(max_size=200))
def test_any_bytes_give_frames_or_a_peer_error(data: bytes) -> None:
    decoder = FrameDecoder()
    try:
        for frame in decoder.receive(data):
            assert len(frame.header) <= limits.HEADER_BYTES_MAX
        decoder.end()
    except PeerError:
        return


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        ((limits.HEADER_BYTES_MAX + 1, 0), "a header of 65537 B; at most 65536 B"),
        ((0, limits.BODY_BYTES_MAX + 1), "a body of 67108865 B; at most 67108864 B"),
        ((2**32 - 1, 2**32 - 1), "a header of 4294967295 B"),
    ],
)
def test_an_oversized_frame_is_refused_by_its_announcement(lengths: tuple[int, int], words: str) -> None:
    with pytest.raises(PeerError, match=words):
        FrameDecoder().receive(struct.pack(">II", *lengths))


def test_limits_of_its_own_hold_to_the_byte() -> None:
    decoder = FrameDecoder(body_bytes_max=3, header_bytes_max=2)
    assert plain(decoder.receive(wire(b"ab", b"cde"))) == [(b"ab", b"cde")]
    with pytest.raises(PeerError):
        decoder.receive(wire(b"", b"cdef"))
    again = FrameDecoder(body_bytes_max=3, header_bytes_max=2)
    with pytest.raises(PeerError):
        again.receive(wire(b"abc"))
    with pytest.raises(PeerError):  # it stays broken
        again.receive(b"x")


def test_an_announced_body_takes_no_memory_before_it_comes() -> None:
    tracemalloc.start()
    try:
        decoder = FrameDecoder()
        seen = [decoder.header]
        for data in (struct.pack(">II", 2, limits.BODY_BYTES_MAX) + b"h", b"h"):
            decoder.receive(data)
            seen.append(decoder.header)
        assert seen == [None, None, b"hh"]
        assert decoder.body_bytes == limits.BODY_BYTES_MAX
        assert tracemalloc.get_traced_memory()[1] < limits.MIB
    finally:
        tracemalloc.stop()


def test_a_received_body_belongs_to_its_receiver() -> None:
    source = bytearray(wire(b"h", b"abc"))
    [frame] = FrameDecoder().receive(source)
    source[:] = bytes(len(source))
    frame.body[0] = ord("x")
    assert bytes(frame.body) == b"xbc"


def test_large_buffers_are_sent_without_a_copy() -> None:
    buffer = bytearray(b"abc")
    _, view, other = encode(b"h", [buffer, b"", memoryview(b"xyz")])
    buffer[0] = ord("z")
    assert bytes(view) == b"zbc"
    assert bytes(other) == b"xyz"


def test_a_body_over_the_limit_is_not_sent() -> None:
    with pytest.raises(ValueError, match="send it in parts"):
        encode(b"", [bytes(limits.BODY_BYTES_MAX), b"x"])
