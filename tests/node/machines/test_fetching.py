"""A blob comes whole from whoever has it, on virtual time: slow, dead, lying and partial holders, and kills."""

import heapq
import itertools
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.errors import PeerError
from lepton.node.blobs.fetching import (
    Ask,
    Begin,
    Begun,
    Came,
    Config,
    Done,
    Drop,
    Effect,
    Event,
    Failed,
    Fetching,
    GaveUp,
    Get,
    Here,
    Passed,
    Told,
    Unanswered,
    Wrong,
    bitmap,
    read_bitmap,
)
from lepton.node.blobs.hashing import CHUNK_BYTES, HASH_BYTES, chunk_count, ref_of, ref_of_bytes

NUMBER = 24
HASHES = random.Random(0).randbytes(NUMBER * HASH_BYTES)
REF = ref_of(NUMBER * CHUNK_BYTES - 5, HASHES)
ALL = frozenset(range(NUMBER))


@dataclass
class Holder:
    """A peer of the world: what it has, how long a chunk takes, and how it behaves."""

    has: Collection[int] = ALL
    seconds: float = 0.1
    kind: str = "honest"  # or liar, mute, deaf, empty promises, false list, busy
    served: list[int] = field(default_factory=list)


@dataclass
class World:
    """One fetching machine, or several that feed each other, among peers, on virtual time."""

    holders: dict[str, Holder]
    seed: int = 0
    config: Config = field(default_factory=Config)
    now: float = 0.0
    order: Iterator[int] = field(default_factory=itertools.count)
    queue: list[tuple[float, int, str, Event]] = field(default_factory=list)
    machines: dict[str, Fetching] = field(default_factory=dict)
    ended: dict[str, Effect] = field(default_factory=dict)
    in_flight: dict[str, set[tuple[str, int]]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def start(self, me: str = "me", have: Collection[int] = ()) -> None:
        self.machines[me] = Fetching(REF, random.Random(f"{self.seed} {me}"), config=self.config)
        self.in_flight[me] = set()
        self.began = frozenset(have)
        self.tell(0.0, me, Here(frozenset(self.holders.keys() | self.machines.keys()) - {me}))

    def tell(self, after: float, me: str, event: Event) -> None:
        heapq.heappush(self.queue, (self.now + after, next(self.order), me, event))

    def step(self) -> bool:
        """Let the next thing happen; false when nothing ever will."""
        due = min((machine.deadline, me) for me, machine in self.machines.items())
        if self.queue and self.queue[0][0] <= due[0]:
            self.now, _, me, event = heapq.heappop(self.queue)
        elif due[0] < 1e9:
            self.now, me, event = max(self.now, due[0]), due[1], Passed()
        else:
            return False
        match event:
            case Came(peer, chunk) | Failed(peer, chunk):
                if (peer, chunk) not in self.in_flight[me]:
                    return True  # it was dropped
                self.in_flight[me].discard((peer, chunk))
        for effect in self.machines[me].handle(event, self.now):
            self.do(me, effect)
        per_peer: dict[str, int] = {}
        for peer, _ in self.in_flight[me]:
            per_peer[peer] = per_peer.get(peer, 0) + 1
        assert max(per_peer.values(), default=0) <= self.config.per_peer
        assert len(self.in_flight[me]) <= 2 * self.config.at_once
        return True

    def run(self, steps: int = 20_000) -> "World":
        for _ in range(steps):
            if len(self.ended) == len(self.machines) or not self.step():
                break
        assert self.ended.keys() == self.machines.keys(), "some ended neither way"
        return self

    def do(self, me: str, effect: Effect) -> None:
        match effect:
            case Done() | GaveUp():
                assert me not in self.ended
                self.ended[me] = effect
                if isinstance(effect, Done):
                    assert self.machines[me].have == ALL
            case Begin():
                self.tell(0.01, me, Begun(self.began))
            case Drop(peer, chunk):
                assert (peer, chunk) in self.in_flight[me]
                self.in_flight[me].discard((peer, chunk))
            case Ask(peer, hashes):
                self.asked.append((me, peer))
                self.answer(me, peer, hashes=hashes)
            case Get(peer, chunk):
                assert (peer, chunk) not in self.in_flight[me]
                self.in_flight[me].add((peer, chunk))
                self.give(me, peer, chunk)

    def answer(self, me: str, peer: str, *, hashes: bool) -> None:
        if peer in self.machines:  # another who fetches the same
            other = self.machines[peer]
            self.tell(0.02, me, Told(peer, frozenset(other.have), HASHES if hashes and other.have else None))
            return
        holder = self.holders[peer]
        if holder.kind == "deaf":
            self.tell(5.0, me, Unanswered(peer, "did not answer"))
        elif holder.kind == "false list":
            self.tell(0.02, me, Told(peer, None, bytes(NUMBER * HASH_BYTES)))
        else:
            have = None if set(holder.has) == ALL else frozenset(holder.has)
            self.tell(0.02, me, Told(peer, have, HASHES if hashes and holder.has else None))

    def give(self, me: str, peer: str, chunk: int) -> None:
        if peer in self.machines:
            assert chunk in self.machines[peer].have, "asked for what was never offered"
            self.tell(0.1, me, Came(peer, chunk))
            return
        holder = self.holders[peer]
        if holder.kind != "honest" or chunk in holder.has:
            holder.served.append(chunk)
        match holder.kind:
            case "liar":
                self.tell(holder.seconds, me, Wrong(peer, "it sent something else"))
            case "mute" | "deaf":
                pass
            case "empty promises":
                self.tell(holder.seconds, me, Failed(peer, chunk, "this node has no such chunk"))
            case "busy" if len(holder.served) % 2:
                self.tell(0.01, me, Failed(peer, chunk, "busy", 0.5))
            case _:
                assert chunk in holder.has, "asked for what was never offered"
                self.tell(holder.seconds, me, Came(peer, chunk))


def test_two_holders_share_the_work_and_each_chunk_is_asked_once() -> None:
    world = World({"a": Holder(), "b": Holder()})
    world.start()
    world.run()
    assert world.ended == {"me": Done()}
    assert sorted(world.holders["a"].served + world.holders["b"].served) == sorted(ALL)
    assert min(len(holder.served) for holder in world.holders.values()) >= NUMBER // 3


def test_the_fast_one_gives_most_and_the_slow_one_holds_nobody_up() -> None:
    world = World({"fast": Holder(), "slow": Holder(seconds=25.0)})
    world.start()
    world.run()
    assert world.ended == {"me": Done()}
    assert len(world.holders["slow"].served) <= 2
    assert world.now < 7.0  # the two that it has are asked of the fast one when they are late


def test_parts_of_several_make_a_whole() -> None:
    world = World({name: Holder(has=frozenset(range(i, NUMBER, 3))) for i, name in enumerate("abc")})
    world.start()
    world.run()
    assert world.ended == {"me": Done()}


@pytest.mark.parametrize("kind", ["liar", "mute", "deaf", "empty promises", "false list", "busy"])
@pytest.mark.parametrize("seed", range(5))
def test_who_behaves_badly_costs_time_and_not_the_blob(kind: str, seed: int) -> None:
    world = World({"bad": Holder(kind=kind), "good": Holder()}, seed=seed)
    world.start()
    world.run()
    assert world.ended == {"me": Done()}
    out = world.machines["me"].left_out
    if kind in {"liar", "false list"}:
        assert out.keys() == {"bad"}
        assert len(world.holders["bad"].served) <= 2
    if kind == "busy":
        assert out == {}
    assert world.now < 40


@pytest.mark.parametrize("kind", ["liar", "mute", "deaf", "empty promises", "false list"])
def test_with_nobody_good_it_ends_and_says_who_was_left_out(kind: str) -> None:
    world = World({"QmBadPeer": Holder(kind=kind)})
    world.start()
    world.run()
    gave_up = world.ended["me"]
    assert isinstance(gave_up, GaveUp)
    assert gave_up.why.startswith("nobody who is here has ")
    assert "; adPeer is left out: " in gave_up.why
    assert world.now < 200


def test_alone_it_ends_at_once() -> None:
    world = World({})
    world.start()
    world.run()
    assert world.ended == {"me": GaveUp(f"nobody who is here has the blob {REF.digest[:8]}…")}
    empty = World({"a": Holder(has=()), "b": Holder(has=())})
    empty.start()
    empty.run()
    assert isinstance(empty.ended["me"], GaveUp)
    assert empty.now < 1.0


def test_a_chunk_that_nobody_has_is_waited_for_and_then_missed_by_name() -> None:
    world = World({"a": Holder(has=ALL - {7}), "b": Holder(has=ALL - {7, 8})})
    world.start()
    world.run()
    gave_up = world.ended["me"]
    assert isinstance(gave_up, GaveUp)
    assert gave_up.why == f"nobody who is here has 1 of 24 chunks of the blob {REF.digest[:8]}…"
    assert 20 <= world.now < 30  # a partial holder may be fetching it itself
    world = World({"a": Holder(has=ALL - {7})})
    world.start()
    while world.now < 10:
        world.step()
    world.holders["a"].has = ALL  # it was
    assert world.run().ended == {"me": Done()}


def test_what_is_here_is_not_asked_for_again() -> None:
    world = World({"a": Holder()})
    world.start(have=range(5, NUMBER))
    world.run()
    assert sorted(world.holders["a"].served) == [0, 1, 2, 3, 4]
    whole = World({"a": Holder()})
    whole.start(have=ALL)
    assert whole.run().ended == {"me": Done()}
    assert whole.holders["a"].served == []


def test_several_who_fetch_the_same_feed_each_other() -> None:
    world = World({"seed": Holder(seconds=0.4)}, config=Config(again_s=0.3))
    for me in ("x", "y", "z"):
        world.start(me)
    world.tell(0.0, "x", Here(frozenset({"seed", "y", "z"})))
    world.tell(0.0, "y", Here(frozenset({"seed", "x", "z"})))
    world.run()
    assert set(world.ended.values()) == {Done()}
    assert len(world.holders["seed"].served) < 1.7 * NUMBER  # and not three times


@pytest.mark.parametrize("seed", range(10))
def test_a_fetch_that_is_killed_at_any_point_goes_on_and_ends(seed: int) -> None:
    rng, have = random.Random(seed), frozenset[int]()
    for _ in range(6):
        world = World({"a": Holder(), "b": Holder(has=range(0, NUMBER, 2)), "bad": Holder(kind="liar")}, seed=seed)
        world.start(have=have)
        for _ in range(rng.randrange(30)):
            if world.ended or not world.step():
                break
        lost = world.in_flight["me"]
        assert have <= world.machines["me"].have or not world.machines["me"].have
        have |= world.machines["me"].have
        assert len(lost) <= world.config.at_once
    world.start("again", have)
    world.run()
    assert world.ended["again"] == Done()


def test_who_leaves_and_comes_back_is_asked_again_but_no_liar() -> None:
    world = World({"a": Holder(), "liar": Holder(kind="liar")}, config=Config(late_s=100, give_up_s=200))
    world.start()
    for _ in range(12):
        world.step()
    flights = {flight for flight in world.in_flight["me"] if flight[0] == "a"}
    assert flights
    world.tell(0.0, "me", Here(frozenset()))
    world.tell(0.0, "me", Here(frozenset({"a", "liar"})))
    world.run()
    assert world.ended == {"me": Done()} or isinstance(world.ended["me"], GaveUp)


def test_a_small_blob_needs_no_list() -> None:
    ref = ref_of_bytes(b"abc")
    machine = Fetching(ref, random.Random(0))
    effects = machine.handle(Here(frozenset({"a"})), 0.0)
    assert Ask("a", hashes=False) in effects
    assert sum(isinstance(effect, Begin) for effect in effects) == 1
    assert machine.handle(Here(frozenset({"a", "b"})), 0.0) == [Ask("b", hashes=False)]
    assert machine.handle(Told("a", None), 0.0) == []  # the file is not open yet
    assert machine.handle(Begun(frozenset()), 0.0) == [Get("a", 0)]
    assert machine.handle(Came("a", 0), 0.1) == [Done()]
    assert machine.handle(Told("b", None), 0.2) == []
    assert machine.deadline == float("inf")


@given(
    st.integers(0, 2**32),
    st.lists(
        st.tuples(
            st.sampled_from(["honest", "liar", "mute", "deaf", "empty promises", "false list", "busy"]),
            st.frozensets(st.integers(0, NUMBER - 1)),
            st.floats(0.01, 60),
        ),
        max_size=6,
    ),
)
def test_whoever_is_there_it_ends_whole_or_with_a_reason(seed: int, peers: list[Any]) -> None:
    holders = {f"p{i}": Holder(kind=kind, has=has, seconds=seconds) for i, (kind, has, seconds) in enumerate(peers)}
    world = World(holders, seed=seed)
    world.start()
    world.run()
    reachable = frozenset(
        chunk for holder in holders.values() if holder.kind == "honest" and holder.seconds < 29 for chunk in holder.has
    )
    if reachable == ALL:
        assert world.ended == {"me": Done()}


@given(st.frozensets(st.integers(0, 40)), st.integers(41, 60))
def test_bitmaps_come_back(have: frozenset[int], number: int) -> None:
    assert read_bitmap(bitmap(have, number), number) == have
    for wrong in (bitmap(have, number) + b"\0", b"", bitmap({number}, number + 1)):
        if len(wrong) != len(bitmap(have, number)) or number % 8:
            with pytest.raises(PeerError, match="bitmap"):
                read_bitmap(wrong, number)


def test_chunks_are_counted() -> None:
    sizes = (0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES)
    assert [chunk_count(size) for size in sizes] == [1, 1, 1, 2, 2]
