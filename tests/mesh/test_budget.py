"""The node's memory is shared out before it is used, and a peer that sends fast is read later, not cut off."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh import limits
from lepton.mesh.budget import Bucket, Budget
from lepton.mesh.errors import Busy
from lepton.mesh.identity import PeerId

PEERS = [PeerId(name) for name in ("ann", "ben", "cid", "dee")]
SMALL = {"total_bytes": 100, "share_bytes": 60, "kept_bytes": 20, "little_bytes": 5}


def test_one_peer_gets_its_share_and_not_one_byte_more() -> None:
    budget = Budget()
    ann, ben, *_ = map(budget.account, PEERS)
    ann.reserve(limits.MEMORY_BYTES_PER_PEER_MAX)
    with pytest.raises(Busy, match="too much") as caught:
        ann.reserve(1)
    assert caught.value.retry_after_s == limits.BUSY_RETRY_S
    ben.reserve(limits.MEMORY_BYTES_PER_PEER_MAX)
    ann.release(1)
    ann.reserve(1)


def test_the_last_part_is_kept_for_those_who_hold_little() -> None:
    budget = Budget()
    free = limits.MEMORY_BYTES_MAX - limits.MEMORY_KEPT_BYTES
    for number in range(3):
        part = min(free, limits.MEMORY_BYTES_PER_PEER_MAX)
        budget.reserve(PEERS[number], part)
        free -= part
    assert not free
    with pytest.raises(Busy, match="no room"):
        budget.reserve(PEERS[3], limits.MEMORY_LITTLE_BYTES + 1)
    for number in range(limits.MEMORY_KEPT_BYTES // limits.MEMORY_LITTLE_BYTES):
        budget.reserve(PeerId(str(number)), limits.MEMORY_LITTLE_BYTES)
    with pytest.raises(Busy, match="no room"):
        budget.reserve(PEERS[3], 1)
    assert budget.held_bytes == limits.MEMORY_BYTES_MAX


def test_comfort_takes_only_the_half_that_nobody_needs() -> None:
    budget = Budget(**SMALL)
    assert budget.widen(PEERS[0], 30)
    assert not budget.widen(PEERS[0], 1)  # half of its share
    assert budget.widen(PEERS[1], 20)
    assert not budget.widen(PEERS[2], 1)  # half of all
    budget.reserve(PEERS[0], 30)  # what is needed still goes


STEPS = st.tuples(
    st.sampled_from(PEERS), st.sampled_from(["reserve", "widen", "release"]), st.integers(min_value=0, max_value=70)
)


@given(st.lists(STEPS, max_size=60))
def test_no_history_gives_out_more_than_there_is(steps: list[tuple[PeerId, str, int]]) -> None:
    budget = Budget(**SMALL)
    held: Counter[PeerId] = Counter()
    for peer, what, size in steps:
        try:
            if what == "reserve":
                budget.reserve(peer, size)
                held[peer] += size
            elif what == "widen":
                held[peer] += size * budget.widen(peer, size)
            elif size <= held[peer]:
                budget.account(peer).release(size)
                held[peer] -= size
        except Busy:
            continue
        assert all(budget.of(known) == held[known] <= SMALL["share_bytes"] for known in PEERS)
        assert budget.held_bytes == held.total() <= SMALL["total_bytes"]


def test_who_sends_a_burst_is_read_on_and_who_goes_on_is_read_later() -> None:
    bucket = Bucket(now=5.0, per_s=limits.RATE_BYTES_S, burst=limits.BURST_BYTES_MAX)
    assert bucket.spend(limits.BURST_BYTES_MAX, now=5.0) == 0.0
    assert bucket.spend(1, now=5.0) == pytest.approx(1 / limits.RATE_BYTES_S)
    assert bucket.spend(limits.RATE_BYTES_S, now=5.0) == pytest.approx(1.0, rel=1e-6)
    assert bucket.spend(0, now=6.5) == 0.0


def test_a_long_silence_is_worth_one_burst() -> None:
    bucket = Bucket(now=0.0, per_s=10, burst=50)
    assert bucket.spend(50, now=1e6) == 0.0
    assert bucket.spend(20, now=1e6) == 2.0


@given(st.lists(st.tuples(st.integers(0, 500), st.floats(0, 3)), min_size=1))
def test_whoever_waits_as_told_sends_no_faster_than_the_rate(reads: list[tuple[int, float]]) -> None:
    bucket, now, total = Bucket(now=0.0, per_s=100, burst=300), 0.0, 0
    for size, pause in reads:
        now += pause
        assert total <= 300 + 100 * now + 1e-6 * total
        total += size
        now += bucket.spend(size, now)
