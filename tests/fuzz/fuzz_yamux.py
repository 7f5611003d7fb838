"""Fuzz the yamux machine: any bytes, cut anywhere, between any commands, give PeerError or nothing, and bounded memory.

``python -m tests.fuzz.fuzz_yamux -max_total_time=60`` (atheris passes libFuzzer's options on). Half of the frames are
well formed, so that the fuzzer gets past the header.
"""

from .fuzzing import Data, main, watched

with watched("lepton.mesh.yamux"):
    from lepton.mesh.errors import Busy, LinkError, PeerError
    from lepton.mesh.yamux import HEADER, INITIAL_WINDOW, Yamux, YamuxConfig, YamuxStream

CONFIG = YamuxConfig(
    window_bytes=INITIAL_WINDOW + 100,
    memory_bytes_max=13 * INITIAL_WINDOW,
    streams_max=6,
    pending_max=3,
    frame_bytes_max=1000,
    linger_s=2,
)


def frame(data: Data) -> bytes:
    """A frame that is well formed, though not necessarily allowed."""
    kind, flags = data.integer(0, 3), data.integer(0, 15)
    body = data.take(data.integer(0, 40)) if not kind else b""
    length = len(body) if not kind else data.integer(0, 0xFFFFFFFF)
    return bytes(HEADER.pack(0, kind, flags, data.integer(0, 12), length)) + body


def command(machine: Yamux, data: Data, now: float) -> None:
    streams = list(machine.streams.values())
    choice = data.integer(0, 9)
    if choice < 4:
        (machine.open, lambda: take(machine, data, now), lambda: machine.tick(now), machine.leave)[choice]()
    elif streams:
        stream = streams[data.integer(0, len(streams) - 1)]
        on_stream(machine, stream, data, now, choice)


def take(machine: Yamux, data: Data, now: float) -> None:
    machine.take(data.integer(1, 5000))
    machine.flushed(now)


def on_stream(machine: Yamux, stream: YamuxStream, data: Data, now: float, choice: int) -> None:
    if choice == 4:
        machine.accept(stream)
    elif choice == 5:
        machine.read(stream, data.integer(0, 100))
    elif choice == 6:
        machine.reset(stream)
    elif choice == 7:
        machine.close(stream, now)
    elif choice == 8:
        machine.finish(stream)
    elif not stream.ending:
        machine.send(stream, [memoryview(data.take(20))])


def check(machine: Yamux) -> None:
    for stream in machine.streams.values():
        held = stream.receive_window + stream.unread_bytes + stream.uncredited
        assert held <= stream.granted, (held, stream)
    assert sum(stream.granted for stream in machine.streams.values()) == machine._granted <= CONFIG.memory_bytes_max
    assert machine._counts[True] <= CONFIG.streams_max


def one(raw: bytes) -> bool:
    data = Data(raw)
    machine = Yamux(initiator=data.flag(), now=0, config=CONFIG)
    now = 0.0
    try:
        while data.left():
            now += data.integer(0, 3)
            choice = data.integer(0, 3)
            if choice == 0:
                machine.receive([data.take(data.integer(0, 64))], now)
            elif choice < 3:
                whole = frame(data)
                cut = data.integer(0, len(whole))
                machine.receive([whole[:cut], whole[cut:]], now)
            else:
                try:
                    command(machine, data, now)
                except (Busy, LinkError):
                    continue
            check(machine)
    except PeerError:
        return False
    return True


SEEDS = [b"\x00\x00\x03\x00", bytes(range(256)), bytes(range(255, -1, -1)) * 2, b"\x01\x02\x00\x01" * 50]

if __name__ == "__main__":
    main(one, SEEDS)
