"""Fuzz how a blob comes: peers tell, send and lie as the fuzzer likes; the fetch stays bounded and ends."""

import random

import numpy as np

from .fuzzing import Data, main, watched

with watched("lepton.node.blobs.fetching", "lepton.node.blobs.hashing", "lepton.node.blobs.sharing"):
    from lepton.mesh.calls import Answer
    from lepton.mesh.errors import PeerError
    from lepton.mesh.identity import PeerId
    from lepton.node.blobs import fetching
    from lepton.node.blobs.fetching import Fetching, bitmap, read_bitmap
    from lepton.node.blobs.hashing import CHUNK_BYTES, chunk_count, ref_of
    from lepton.node.blobs.sharing import BlobHeld, _told

CHUNKS = 5
HASHES = bytes(range(32)) * CHUNKS
REF = ref_of(CHUNKS * CHUNK_BYTES - 1, HASHES)
PEERS = ["ann", "ben", "eve"]


def one(raw: bytes) -> bool:
    data = Data(raw)
    return _answer(data) if data.flag() else _fetch(data)


def _answer(data: Data) -> bool:
    """What a peer says that it has."""
    whole, hashes = data.flag(), data.flag()
    arrays = [np.frombuffer(data.take(data.integer(0, 200)), dtype=np.uint8) for _ in range(data.integer(0, 3))]
    try:
        told = _told(PeerId("eve"), Answer(BlobHeld(whole=whole, hashes=hashes), arrays), chunk_count(REF.size_bytes))
    except PeerError:
        return False
    assert told.have is None or told.have <= set(range(CHUNKS))
    assert told.have is None or read_bitmap(bitmap(told.have, CHUNKS), CHUNKS) == told.have
    return True


def _event(data: Data) -> fetching.Event:
    peer, chunk = data.pick(PEERS), data.integer(0, CHUNKS - 1)
    have = None if data.flag() else frozenset({chunk})
    match data.integer(0, 6):
        case 0:
            return fetching.Here(frozenset(data.pick(PEERS) for _ in range(data.integer(0, 3))))
        case 1:
            return fetching.Told(peer, have, HASHES if data.flag() else data.take(32 * CHUNKS))
        case 2:
            return fetching.Told(peer, have)
        case 3:
            return fetching.Unanswered(peer, "no", float(data.integer(0, 3)))
        case 4:
            return fetching.Wrong(peer, "a lie")
        case 5:
            return fetching.Failed(peer, chunk, "no", float(data.integer(0, 1)))
        case _:
            return fetching.Passed()


class _Fetch:
    """One machine, and what it has asked for."""

    def __init__(self, rng: random.Random) -> None:
        self.machine = Fetching(REF, rng)
        self.flights: set[tuple[str, int]] = set()
        self.next: fetching.Event | None = None
        self.over = False
        self._liars: set[str] = set()

    def tell(self, event: fetching.Event, now: float) -> None:
        if isinstance(event, fetching.Wrong):
            self._liars.add(event.peer)
        if isinstance(event, fetching.Failed | fetching.Came):
            self.flights.discard((event.peer, event.chunk))
        for effect in self.machine.handle(event, now):
            self._do(effect)
        assert len(self.flights) <= 2 * self.machine.config.at_once

    def _do(self, effect: fetching.Effect) -> None:
        match effect:
            case fetching.Get(peer, chunk):
                assert chunk not in self.machine.have
                assert peer not in self._liars, "who lied is asked for nothing any more"
                self.flights.add((peer, chunk))
            case fetching.Drop(peer, chunk):
                self.flights.discard((peer, chunk))
            case fetching.Begin():
                self.next = fetching.Begun(frozenset())
            case fetching.Done():
                assert len(self.machine.have) == CHUNKS
                self.over = True
            case fetching.GaveUp():
                self.over = True


def _fetch(data: Data) -> bool:
    fetch, now = _Fetch(random.Random(data.integer(0, 9))), 0.0
    fetch.tell(fetching.Here(frozenset(PEERS)), now)
    for _ in range(10_000):
        if fetch.over:
            return len(fetch.machine.have) == CHUNKS
        event, fetch.next = fetch.next, None
        if event is None and fetch.flights and data.flag():
            event = fetching.Came(*min(fetch.flights))
        elif event is None:
            event, now = _event(data) if data.left() else fetching.Here(frozenset()), now + data.integer(0, 2)
            now += 0 if data.left() else 10.0  # nobody says anything any more: it ends by itself
        fetch.tell(event, now)
    raise AssertionError("it never ends")


SEEDS = [
    b"\x01\x01\x00\x00",
    b"\x01\x00\x00\x01\x01\x1f",
    b"\x01\x01\x01\x01\xa0" + HASHES,
    b"\x00\x00" + b"\x00\x00\x01\x01\x01\x00" + b"\x01" * 60,
    b"\x00\x01" + b"\x01" * 80,
    b"\x00" + bytes(range(256)),
]

if __name__ == "__main__":
    main(one, SEEDS)
