"""What is said of links is coarse and seldom changes; both ends are believed as far as the longer one goes."""

from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.identity import PeerId
from lepton.node.links import NEIGHBOURS_MAX, STEPS_S, USUAL_S, LinksRecord, coarse_links, links_of, step_of
from lepton.node.placement import Link

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def test_a_house_with_one_switch_says_nothing() -> None:
    assert coarse_links({A: 0.001, B: USUAL_S}, {}) == LinksRecord()
    assert links_of({A: LinksRecord(), B: LinksRecord()}).others == {}


def test_of_two_ends_the_longer_counts_both_ways() -> None:
    links = links_of({A: LinksRecord(far={B: 1}), B: LinksRecord(far={A: 3})})
    assert links.between(A, B) == links.between(B, A) == Link(latency_ns=int(STEPS_S[2] * 1e9 / 2))
    assert links.between(A, C) == links.usual


@given(st.floats(0, 10), st.integers(0, len(STEPS_S)))
def test_a_round_trip_that_varies_a_little_keeps_its_step(round_trip_s: float, said: int) -> None:
    step = step_of(round_trip_s, said)
    assert step_of(round_trip_s, step) == step
    assert step_of(round_trip_s * 0.75, step) in {step, step_of(round_trip_s * 0.75)}
    assert step >= step_of(round_trip_s)


def test_a_step_falls_only_when_well_below() -> None:
    assert step_of(0.0039, 1) == 1
    assert step_of(0.0027, 1) == 0
    assert step_of(0.0041) == 1


def test_of_many_far_neighbours_the_farthest_are_said() -> None:
    many = {PeerId(f"p{index:03}"): 0.02 if index % 2 else 0.2 for index in range(2 * NEIGHBOURS_MAX)}
    assert set(coarse_links(many, {}).far.values()) == {step_of(0.2)}
    assert len(coarse_links(many, {}).far) == NEIGHBOURS_MAX
