"""The yamux machine alone: its rules one by one, then two of them over a link that delays and cuts what it carries."""

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from lepton.mesh.errors import Busy, LinkError, PeerError
from lepton.mesh.yamux import (
    ANSWERS_MAX,
    HEADER,
    INITIAL_WINDOW,
    Died,
    Event,
    Flag,
    GoAway,
    Kind,
    Opened,
    Ponged,
    Readable,
    WasReset,
    WentAway,
    Widened,
    Yamux,
    YamuxConfig,
    YamuxStream,
)

SMALL = YamuxConfig(window_bytes=INITIAL_WINDOW + 64, memory_bytes_max=7 * INITIAL_WINDOW, streams_max=3, pending_max=2)


def frame(kind: int, flags: int, stream_id: int, length: int, body: bytes = b"") -> bytes:
    return HEADER.pack(0, kind, flags, stream_id, length) + body


def data(stream_id: int, body: bytes, flags: int = 0) -> bytes:
    return frame(Kind.DATA, flags, stream_id, len(body), body)


def taken(machine: Yamux) -> list[tuple[int, ...]]:
    """The headers of all that a machine has to send."""
    raw = b"".join(machine.take(1 << 30)[0])
    headers, at = [], 0
    while at < len(raw):
        header = HEADER.unpack_from(raw, at)
        headers.append(header[1:])
        at += HEADER.size + (header[4] if header[1] == Kind.DATA else 0)
    return headers


def read(machine: Yamux, stream: YamuxStream, size: int = 1 << 30) -> bytes:
    return b"".join(machine.read(stream, size))


@pytest.fixture
def server() -> Yamux:
    return Yamux(initiator=False, now=0, config=SMALL)


def open_one(server: Yamux, stream_id: int = 1) -> YamuxStream:
    (event,) = server.receive([frame(Kind.WINDOW, Flag.SYN, stream_id, 0)], 0)
    assert isinstance(event, Opened)
    return event.stream


def test_a_stream_opens_with_its_window_and_ids_do_not_clash() -> None:
    client = Yamux(initiator=True, now=0)
    first, second = client.open(), client.open()
    assert (first.id, second.id) == (1, 3)
    extra = client.config.window_bytes - INITIAL_WINDOW
    assert taken(client) == [(Kind.WINDOW, Flag.SYN, 1, extra), (Kind.WINDOW, Flag.SYN, 3, extra)]
    assert Yamux(initiator=False, now=0).open().id == 2


def test_accepting_grants_the_window(server: Yamux) -> None:
    stream = open_one(server)
    assert taken(server) == []
    server.accept(stream)
    server.accept(stream)
    assert taken(server) == [(Kind.WINDOW, Flag.ACK, 1, 64)]


def test_bytes_may_be_cut_anywhere(server: Yamux) -> None:
    raw = data(1, b"abc", Flag.SYN) + frame(Kind.PING, Flag.SYN, 0, 7) + data(1, b"def", Flag.FIN)
    events: list[Event] = []
    for byte in raw:
        events += server.receive([bytes([byte])], 0)
    stream = server.streams[1]
    assert [type(event) for event in events] == [Opened] + [Readable] * 6
    assert stream.finished
    assert read(server, stream) == b"abcdef"
    assert taken(server) == [(Kind.PING, Flag.ACK, 0, 7)]


def test_the_end_counts_only_when_the_data_before_it_is_here(server: Yamux) -> None:
    stream = open_one(server)
    server.receive([frame(Kind.DATA, Flag.FIN, 1, 4), b"ab"], 0)
    assert not stream.finished
    server.receive([b"cd"], 0)
    assert stream.finished


def test_credit_comes_back_when_half_is_read(server: Yamux) -> None:
    stream = open_one(server)
    server.accept(stream)
    taken(server)
    half = stream.granted // 2
    server.receive([data(1, bytes(half))], 0)
    read(server, stream, half - 1)
    assert taken(server) == []
    read(server, stream)
    assert taken(server) == [(Kind.WINDOW, 0, 1, half)]


def test_a_reset_is_no_end(server: Yamux) -> None:
    stream = open_one(server)
    server.receive([data(1, b"abc")], 0)
    assert server.receive([frame(Kind.WINDOW, Flag.RST, 1, 0)], 0) == [WasReset(stream)]
    assert stream.was_reset
    assert not stream.finished
    assert read(server, stream) == b""
    assert server.receive([data(1, b"late"), frame(Kind.WINDOW, Flag.RST, 1, 0)], 0) == []


def test_an_end_and_a_reset_at_once_are_a_reset(server: Yamux) -> None:
    stream = open_one(server)
    raw = [data(1, b"abc"), frame(Kind.DATA, Flag.FIN, 1, 0), frame(Kind.WINDOW, Flag.RST, 1, 0)]
    assert server.receive(raw, 0) == [WasReset(stream)]


def test_streams_take_turns() -> None:
    client = Yamux(initiator=True, now=0, config=YamuxConfig(frame_bytes_max=10))
    one, two = client.open(), client.open()
    client.send(one, [memoryview(bytes(25))])
    client.send(two, [memoryview(b"ab"), memoryview(b"c")])
    assert [header[2:] for header in taken(client) if header[0] == Kind.DATA] == [(1, 10), (3, 3), (1, 10), (1, 5)]


def test_a_shut_window_holds_data_back_until_it_opens() -> None:
    client = Yamux(initiator=True, now=0)
    stream = client.open()
    client.send(stream, [memoryview(bytes(INITIAL_WINDOW + 5))])
    client.finish(stream)
    assert sum(header[3] for header in taken(client) if header[0] == Kind.DATA) == INITIAL_WINDOW
    assert not client.has_frames
    assert client.receive([frame(Kind.WINDOW, 0, 1, 3)], 0) == [Widened(stream)]
    assert taken(client) == [(Kind.DATA, 0, 1, 3)]
    client.receive([frame(Kind.WINDOW, 0, 1, 2)], 0)
    assert taken(client) == [(Kind.DATA, Flag.FIN, 1, 2)]
    assert stream.ended


def test_what_was_queued_can_be_withdrawn() -> None:
    client = Yamux(initiator=True, now=0)
    stream = client.open()
    client.send(stream, [memoryview(b"never")])
    client.withdraw(stream)
    assert [header[0] for header in taken(client)] == [Kind.WINDOW]


def test_a_closed_stream_answers_data_with_a_reset_and_does_not_linger(server: Yamux) -> None:
    stream = open_one(server)
    server.receive([data(1, b"unread")], 0)
    server.close(stream, now=1)
    assert taken(server) == [(Kind.WINDOW, 0, 1, 6), (Kind.DATA, Flag.FIN, 1, 0)]
    assert server.tick(2) == []
    server.receive([data(1, b"more")], 4)
    assert taken(server) == [(Kind.WINDOW, Flag.RST, 1, 0)]
    other = open_one(server, 3)
    server.close(other, now=10)
    assert server.tick(10 + server.config.linger_s)[0] == WasReset(other)
    assert not server.streams


def test_silence_is_asked_about_and_then_taken_for_death(server: Yamux) -> None:
    server.receive([frame(Kind.PING, Flag.ACK, 0, 0)], 10)
    assert server.deadline == 15
    assert server.tick(14) == []
    assert server.tick(15) == []
    assert taken(server) == [(Kind.PING, Flag.SYN, 0, 1)]
    server.flushed(16)
    assert server.deadline == 31
    server.progressed(20)  # bytes that left after the ping prove nothing
    assert server.tick(30) == []
    assert server.tick(31) == [Died()]


def test_a_slow_link_is_not_a_dead_peer(server: Yamux) -> None:
    """As long as our own ping is still in the queue and the link takes bytes, there is nothing to conclude."""
    server.tick(5)
    for now in range(6, 100):
        server.progressed(now)
        assert server.tick(now) == []
    taken(server)
    server.flushed(100)
    assert server.tick(114) == []
    assert server.receive([frame(Kind.PING, Flag.ACK, 0, 1)], 114) == [Ponged(1)]
    assert server.tick(118) == []


def test_leaving_refuses_new_streams_and_keeps_old_ones(server: Yamux) -> None:
    stream = open_one(server)
    server.leave()
    server.leave()
    server.receive([frame(Kind.WINDOW, Flag.SYN, 3, 0), data(1, b"x")], 0)
    assert taken(server) == [(Kind.GO_AWAY, 0, 0, GoAway.NORMAL), (Kind.WINDOW, Flag.RST, 3, 0)]
    assert read(server, stream) == b"x"
    with pytest.raises(LinkError):
        server.open()


def test_a_peer_that_left_gets_no_more_streams(server: Yamux) -> None:
    assert server.receive([frame(Kind.GO_AWAY, 0, 0, 2)], 0) == [WentAway(2)]
    with pytest.raises(LinkError, match="dial the peer again"):
        server.open()


def test_streams_are_counted_and_pending_ones_too(server: Yamux) -> None:
    server.accept(open_one(server, 1))
    open_one(server, 3)
    open_one(server, 5)
    taken(server)
    assert server.receive([frame(Kind.WINDOW, Flag.SYN, 7, 0)], 0) == []
    assert taken(server) == [(Kind.WINDOW, Flag.RST, 7, 0)]
    client = Yamux(initiator=True, now=0, config=SMALL)
    for _ in range(3):
        client.open()
    with pytest.raises(Busy, match="wait for one to end"):
        client.open()


def test_memory_is_granted_only_while_there_is_some() -> None:
    config = YamuxConfig(window_bytes=3 * INITIAL_WINDOW, memory_bytes_max=7 * INITIAL_WINDOW, streams_max=2)
    client = Yamux(initiator=True, now=0, config=config)
    first, second = client.open(), client.open()
    assert (first.granted, second.granted) == (3 * INITIAL_WINDOW, INITIAL_WINDOW)
    client.reset(first)
    client.receive([frame(Kind.DATA, 0, second.id, INITIAL_WINDOW, bytes(INITIAL_WINDOW))], 0)
    read(client, second)
    assert second.granted == 3 * INITIAL_WINDOW  # grows when there is room again


def test_small_pieces_do_not_keep_large_records_alive(server: Yamux) -> None:
    stream = open_one(server)
    record = memoryview(bytes(65536))
    for _ in range(100):
        server.receive([frame(Kind.DATA, 0, 1, 1), record[:1]], 0)
    assert len(stream.unread) == 1
    assert read(server, stream, 30) == bytes(30)
    server.receive([data(1, b"y")], 0)
    assert read(server, stream) == bytes(70) + b"y"


VIOLATIONS: dict[str, Callable[[], bytes]] = {
    "another version": lambda: b"\x01" + bytes(11),
    "an unknown type": lambda: frame(4, 0, 1, 0),
    "unknown flags": lambda: frame(Kind.DATA, 16, 1, 0),
    "a stream that is ours to open": lambda: frame(Kind.WINDOW, Flag.SYN, 2, 0),
    "stream zero": lambda: frame(Kind.WINDOW, Flag.SYN, 0, 0),
    "a stream twice": lambda: frame(Kind.WINDOW, Flag.SYN, 1, 0),
    "a stream that nobody opened": lambda: data(9, b"x"),
    "a stream of ours that we did not open": lambda: data(2, b"x"),
    "more than the window": lambda: frame(Kind.DATA, 0, 1, INITIAL_WINDOW + 1),
    "data after the end": lambda: data(1, b"x", Flag.FIN) + data(1, b"y"),
    "a window past 4 GiB": lambda: frame(Kind.WINDOW, 0, 1, 0xFFFFFFFF),
    "a huge frame for a closed stream": lambda: frame(Kind.WINDOW, Flag.RST, 1, 0) + frame(Kind.DATA, 0, 1, 1 << 30),
    "questions without reading": lambda: frame(Kind.PING, Flag.SYN, 0, 1) * (ANSWERS_MAX + 1),
}


@pytest.mark.parametrize("what", VIOLATIONS)
def test_every_violation_is_the_peers_error(server: Yamux, what: str) -> None:
    open_one(server)
    with pytest.raises(PeerError):
        server.receive([VIOLATIONS[what]()], 0)


class TwoMuxers(RuleBasedStateMachine):
    """Two machines and a link that keeps order but neither timing nor boundaries; a model says what must arrive."""

    def __init__(self) -> None:
        super().__init__()
        config = YamuxConfig(
            window_bytes=INITIAL_WINDOW + 1000,
            memory_bytes_max=8 * INITIAL_WINDOW + 3000,
            streams_max=4,
            pending_max=3,
            frame_bytes_max=50_000,
        )
        self.sides = [Yamux(initiator=side == 0, now=0, config=config) for side in (0, 1)]
        self.link: list[deque[bytes]] = [deque(), deque()]  # towards side 0, towards side 1
        self.handles: list[dict[int, YamuxStream]] = [{}, {}]
        self.sent: dict[tuple[int, int], bytearray] = {}  # (side, stream) -> all bytes that it queued
        self.got: dict[tuple[int, int], bytearray] = {}
        self.broken: set[int] = set()  # streams that somebody reset or that were refused
        self.fresh = 0

    def pick(self, side: int, number: int) -> YamuxStream | None:
        live = sorted(self.handles[side])
        return self.handles[side][live[number % len(live)]] if live else None

    @rule(side=st.integers(0, 1))
    def opens(self, side: int) -> None:
        try:
            stream = self.sides[side].open()
        except (Busy, LinkError):
            return
        self.handles[side][stream.id] = stream

    @rule(side=st.integers(0, 1), number=st.integers(0, 9), size=st.sampled_from([0, 1, 100, 20_000, 300_000]))
    def sends(self, side: int, number: int, size: int) -> None:
        stream = self.pick(side, number)
        if stream is None or stream.ending or stream.gone or stream.unsent_bytes:
            return
        self.fresh += 1
        body = random.Random(self.fresh).randbytes(size)
        self.sides[side].send(stream, [memoryview(body[: size // 3]), memoryview(body[size // 3 :])])
        self.sent.setdefault((side, stream.id), bytearray()).extend(body)

    @rule(side=st.integers(0, 1), number=st.integers(0, 9))
    def finishes(self, side: int, number: int) -> None:
        if (stream := self.pick(side, number)) is not None and not stream.gone:
            self.sides[side].finish(stream)

    @rule(side=st.integers(0, 1), number=st.integers(0, 9))
    def resets(self, side: int, number: int) -> None:
        if (stream := self.pick(side, number)) is not None and not stream.gone:
            self.sides[side].reset(stream)
            self.broken.add(stream.id)

    @rule(side=st.integers(0, 1), number=st.integers(0, 9), size=st.sampled_from([1, 5000, 1 << 20]))
    def reads(self, side: int, number: int, size: int) -> None:
        if (stream := self.pick(side, number)) is not None:
            got = read(self.sides[side], stream, size)
            self.got.setdefault((side, stream.id), bytearray()).extend(got)

    @rule(side=st.integers(0, 1), size=st.sampled_from([1, 60_000, 1 << 20]))
    def writes(self, side: int, size: int) -> None:
        pieces, _ = self.sides[side].take(size)
        self.link[1 - side].extend(bytes(piece) for piece in pieces)

    @precondition(lambda self: any(self.link))
    @rule(side=st.integers(0, 1), cut=st.sampled_from([1, 7, 500, 100_000, 1 << 22]))
    def carries(self, side: int, cut: int) -> None:
        chunks, left = [], cut
        queue = self.link[side]
        while queue and left:
            chunk = queue.popleft()
            if len(chunk) > left:
                queue.appendleft(chunk[left:])
                chunk = chunk[:left]
            left -= len(chunk)
            chunks.append(chunk)
        for event in self.sides[side].receive(chunks, 0):
            if isinstance(event, Opened):
                self.handles[side][event.stream.id] = event.stream
                self.sides[side].accept(event.stream)
            elif isinstance(event, WasReset):
                self.broken.add(event.stream.id)

    @invariant()
    def memory_is_bounded(self) -> None:
        for machine in self.sides:
            granted = 0
            for stream in machine.streams.values():
                assert stream.receive_window + stream.unread_bytes + stream.uncredited <= stream.granted
                assert sum(map(len, stream.unread)) == stream.unread_bytes
                assert sum(map(len, stream.unsent)) == stream.unsent_bytes
                granted += stream.granted
            assert machine._extra == granted - INITIAL_WINDOW * len(machine.streams)
            assert granted == machine._granted <= machine.config.memory_bytes_max
            assert machine._counts[True] + machine._counts[False] == len(machine.streams)

    @invariant()
    def what_arrives_is_what_was_sent(self) -> None:
        for (side, stream_id), got in self.got.items():
            assert self.sent.get((1 - side, stream_id), bytearray())[: len(got)] == got

    def teardown(self) -> None:
        """Let everything arrive: whole streams are whole, and no memory is left behind."""
        for _ in range(60):
            for side in (0, 1):
                for stream in self.handles[side].values():
                    if not stream.gone:
                        self.sides[side].finish(stream)
                self.writes(side, 1 << 30)
                self.carries(side, 1 << 30)
                for stream in list(self.handles[side].values()):
                    got = read(self.sides[side], stream)
                    self.got.setdefault((side, stream.id), bytearray()).extend(got)
        assert not any(self.link)
        for (side, stream_id), sent in self.sent.items():
            if stream_id not in self.broken:
                assert self.got.get((1 - side, stream_id), bytearray()) == sent
        for machine in self.sides:
            assert not machine.streams
            assert machine._granted == machine._pending == 0


TestTwoMuxers: Any = TwoMuxers.TestCase
TestTwoMuxers.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
