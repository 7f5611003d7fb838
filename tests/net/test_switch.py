"""The switch alone, on virtual time: what it says of itself is so, and a seed gives the same luck again."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .switch import Line, Switch

ALL = {"a", "b", "c"}
MAC = {port: bytes([2, 0, 0, 0, 0, number]) for number, port in enumerate(sorted(ALL))}
EVERYBODY = b"\xff" * 6
START = 64.0  # a power of two, so that adding it to milliseconds and taking it away again loses least


def frame(source: str, to: bytes, number: int = 0) -> bytes:
    return to + MAC[source] + b"\x08\x00" + number.to_bytes(4)


def switch(seed: int = 1, line: Line | None = None) -> Switch:
    made = Switch(seed, line or Line(), set(ALL))
    for port in sorted(ALL):  # it learns where everybody is
        made.forward(port, frame(port, EVERYBODY), 0.0)
    return made


def arrivals(made: Switch, source: str, to: str, count: int, every_s: float = 0.001) -> list[tuple[float, int]]:
    """When which of so many frames comes, in the order of coming."""
    out = [one for n in range(count) for one in made.forward(source, frame(source, MAC[to], n), START + n * every_s)]
    assert {one.port for one in out} <= {to}
    return [(one.at - START, int.from_bytes(one.frame[14:])) for one in sorted(out)]


def test_a_known_address_gets_its_frame_alone_and_multicast_goes_to_all_others() -> None:
    made = switch()
    assert [one.port for one in made.forward("a", frame("a", MAC["b"]), 1.0)] == ["b"]
    assert [one.port for one in made.forward("a", frame("a", EVERYBODY), 1.0)] == ["b", "c"]
    assert made.forward("a", frame("a", MAC["a"]), 1.0) == []
    assert made.forward("a", b"short", 1.0) == []


def test_a_perfect_line_delivers_everything_at_once_and_in_order() -> None:
    came = arrivals(switch(), "a", "b", 50)
    assert [n for _, n in came] == list(range(50))
    assert [at for at, _ in came] == pytest.approx([n * 0.001 for n in range(50)])


def test_delay_and_jitter_keep_the_order() -> None:
    came = arrivals(switch(line=Line(delay_s=0.02, jitter_s=0.05)), "a", "b", 200)
    assert [n for _, n in came] == list(range(200))
    assert all(0.0199 < at - n * 0.001 < 0.0701 for at, n in came)


def test_loss_copies_and_held_frames_come_in_their_share() -> None:
    count = 4000
    came = [n for _, n in arrivals(switch(line=Line(loss=0.1, copies=0.05, held=0.1)), "a", "b", count)]
    assert 0.08 < 1 - len(set(came)) / count < 0.12
    assert 0.03 < len(came) / len(set(came)) - 1 < 0.07
    overtaken = sum(later < earlier for earlier, later in pairwise(came))
    assert 0.05 < overtaken / count < 0.12


def test_a_narrow_line_spaces_frames_and_drops_what_its_queue_cannot_hold() -> None:
    line = Line(rate_bytes_s=18_000.0, queue_bytes_max=189)  # a frame is 18 bytes: one a millisecond, ten wait
    came = arrivals(switch(line=line), "a", "b", 100, every_s=0.0)
    assert [n for _, n in came] == list(range(11))
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(came)]
    assert gaps == pytest.approx([0.001] * 10)


def test_a_cut_is_one_way_and_a_split_is_not() -> None:
    made = switch()
    made.change("a", "b", cut=True)
    assert arrivals(made, "a", "b", 3) == []
    assert len(arrivals(made, "b", "a", 3)) == 3
    made.heal()
    made.split({"a", "b"})
    assert len(arrivals(made, "a", "b", 3)) == 3
    assert arrivals(made, "a", "c", 3) == arrivals(made, "c", "b", 3) == []
    assert [one.port for one in made.forward("a", frame("a", EVERYBODY), 9.0)] == ["b"]
    made.heal()
    assert len(arrivals(made, "a", "c", 3)) == 3


@given(st.integers(0, 2**32), st.integers(0, 30))
def test_a_seed_gives_one_pair_the_same_luck_whatever_others_send(seed: int, others: int) -> None:
    line = Line(loss=0.3, copies=0.2, held=0.2, jitter_s=0.01)
    alone, among = switch(seed, line), switch(seed, line)
    for n in range(others):
        among.forward("c", frame("c", EVERYBODY, n), n * 0.01)
    assert arrivals(alone, "a", "b", 20) == arrivals(among, "a", "b", 20)
