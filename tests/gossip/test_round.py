"""Rounds: everyone who lives finishes in time, with the exact mean of those whom the report names."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lepton.gossip.codecs import Floats, codec
from lepton.gossip.config import Config
from lepton.gossip.errors import BadContribution, BadSetup
from lepton.gossip.events import Expired, Finished, PeerDown, Received, Report, Send
from lepton.gossip.gate import Gate
from lepton.gossip.messages import Contribution, Mean, Message
from lepton.gossip.mixing import clip_weights, weighted_mean
from lepton.gossip.round import Phase, Round
from lepton.gossip.terms import Terms

if TYPE_CHECKING:
    from .conftest import World

CONFIG = Config.test()
PEERS = tuple("abcdefgh")
WorldType = Callable[..., "World"]


def terms_of(count: int, dimension: int = 11, codec_name: str = "float32", round_: int = 7) -> Terms:
    return Terms(mesh=b"m", task="t", round=round_, members=PEERS[:count], dimension=dimension, codec=codec_name)


def vectors_of(terms: Terms, seed: int = 0) -> dict[str, Floats]:
    rng = np.random.default_rng(seed)
    size = terms.dimension  # magnitudes in [1, 2]: the gate lets even parts of one element pass
    signs = {peer: rng.choice([-1, 1], size) for peer in terms.members}
    return {peer: (signs[peer] * rng.uniform(1, 2, size)).astype(np.float32) for peer in terms.members}


def weight_of(peer: str) -> float:
    return 1.0 + PEERS.index(peer)


def round_of(peer: str, terms: Terms, vector: Floats, seed: int = 0, gate: Gate | None = None) -> Round:
    return Round(
        peer,
        terms,
        vector,
        weight_of(peer),
        gate=gate or Gate(CONFIG),
        rng=np.random.default_rng([seed, ord(peer)]),
        config=CONFIG,
        contribution_wait_s=0.2,
        mean_wait_s=0.1,
    )


def play(
    world: WorldType, terms: Terms, seed: int = 0, *, crash: dict[str, int] | None = None, **links: Any
) -> tuple["World", dict[str, Floats]]:
    """Run a whole round; `crash` maps a peer to the step at which it dies, `links` are the world's."""
    vectors = vectors_of(terms, seed)
    machines = {peer: round_of(peer, terms, vector, seed) for peer, vector in vectors.items()}
    played = world(machines, seed, **links)
    played.crash_at = crash or {}
    late = np.random.default_rng(seed).uniform(0, 0.05, len(machines))
    for (peer, machine), start_s in zip(machines.items(), late, strict=True):
        played.at(float(start_s), peer, machine.start, "start")
    played.run()
    for peer, machine in machines.items():
        if peer not in played.crashed:
            assert machine.phase is Phase.FINISHED, f"seed {seed}: {peer} hangs"
            assert played.finished_s[peer] <= machine.started_s + machine.finish_s_max + 1e-9
    return played, vectors


def results(played: "World") -> dict[str, tuple[Floats, Report]]:
    finished = {peer: outcomes for peer, outcomes in played.outcomes.items() if peer not in played.crashed}
    assert all(len(outcomes) == 1 for outcomes in finished.values())
    return {peer: (outcome.vector, outcome.report) for peer, (outcome,) in finished.items()}


def tolerance(terms: Terms, vectors: dict[str, Floats]) -> float:
    """Twice the codec's error: values are rounded before they are averaged, and their mean once more."""
    largest = max(float(np.abs(v).max(initial=0)) for v in vectors.values())
    return {"float32": 1e-6, "float16": 2 * 2**-11, "int8": 2 * 1.01 / 127, "int4": 2 * 1.01 / 7}[terms.codec] * largest


def check_parts(terms: Terms, vectors: dict[str, Floats], got: dict[str, tuple[Floats, Report]], words: str) -> None:
    """Hold the invariant: same contributors and bytes for all who have a part, and that is their exact mean."""
    for j, part in enumerate(terms.parts):
        seen: dict[bytes, tuple[tuple[str, float], ...]] = {}
        for peer, (vector, report) in got.items():
            weights = dict(report.parts[j])
            if not weights:
                assert vector[part].tobytes() == vectors[peer][part].tobytes(), words
                assert any(a.peer == terms.members[j] and a.what == "mean" for a in report.missing), words
                continue
            seen[vector[part].tobytes()] = report.parts[j]
            assert weights == clip_weights({p: weight_of(p) for p in weights}, CONFIG.weight_ratio_max), words
            exact = weighted_mean({p: vectors[p][part] for p in weights}, weights)
            assert np.abs(vector[part] - exact).max(initial=0) <= tolerance(terms, vectors), words
        assert len(seen) <= 1 or terms.parts[j].stop == terms.parts[j].start, words


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("codec_name", ["float32", "float16", "int8", "int4"])
@pytest.mark.parametrize("dimension", [3, 1000])
def test_without_faults_all_hold_the_same_exact_mean(
    world: WorldType, count: int, codec_name: str, dimension: int
) -> None:
    terms = terms_of(count, dimension, codec_name)
    before = vectors_of(terms, seed=count)
    played, vectors = play(world, terms, seed=count)
    got = results(played)
    assert set(got) == set(terms.members)
    assert len({vector.tobytes() for vector, _ in got.values()}) == 1
    exact = weighted_mean(vectors, {peer: weight_of(peer) for peer in vectors})
    for peer, (vector, report) in got.items():
        assert np.abs(vector - exact).max() <= tolerance(terms, vectors)
        assert report.complete
        assert (report.missing, report.refused, report.ignored) == ((), (), 0)
        assert report.parts == tuple(tuple((p, weight_of(p)) for p in terms.members) for _ in terms.members)
        assert vectors[peer].tobytes() == before[peer].tobytes()
        assert not np.shares_memory(vector, vectors[peer])


def test_bytes_are_the_ones_promised(world: WorldType) -> None:
    terms = terms_of(8, 8 * 1024, "int8")
    got = results(play(world, terms)[0])
    each = 2 * 7 * codec("int8").size_bytes(1024)  # 1.75 models
    assert {(r.bytes_sent, r.bytes_received) for _, r in got.values()} == {(each, each)}


@pytest.mark.parametrize("notified", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_crash_at_any_step_of_any_peer_leaves_the_survivors_with_exact_means(
    world: WorldType, notified: bool, seed: int
) -> None:
    terms = terms_of(4)
    down_after_s = 0.03 if notified else None
    steps = play(world, terms, seed)[0].steps
    for victim in terms.members:
        for step in range(steps[victim]):
            words = f"seed {seed}: {victim} crashes at step {step}"
            played, vectors = play(world, terms, seed, crash={victim: step}, down_after_s=down_after_s)
            got = results(played)
            assert set(got) == set(terms.members) - {victim}, words
            check_parts(terms, vectors, got, words)
            survivors = [j for j, member in enumerate(terms.members) if member != victim]
            for _, report in got.values():
                assert all(report.parts[j] for j in survivors), words  # nobody loses a living owner's part


@given(st.integers(0, 10**6), st.integers(2, 8), st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from(["float32", "int8"]))
@settings(max_examples=40)
def test_lost_doubled_and_reordered_messages_and_two_crashes(
    world: WorldType, seed: int, count: int, loss: float, name: str
) -> None:
    terms = terms_of(count, codec_name=name)
    rng = np.random.default_rng(seed)
    crash = {PEERS[int(rng.integers(8))]: int(rng.integers(30)) for _ in range(2)}
    played, vectors = play(world, terms, seed, loss=loss, duplication=0.3, delay_s=(0.0, 0.15), crash=crash)
    check_parts(terms, vectors, results(played), f"seed {seed}, crash {crash}")


@given(st.integers(0, 10**6))
@settings(max_examples=10)
def test_the_same_seed_is_the_same_history(world: WorldType, seed: int) -> None:
    first, second = (
        play(world, terms_of(5, codec_name="int4"), seed, loss=0.2, duplication=0.2, crash={"c": 6})[0]
        for _ in range(2)
    )
    assert first.history == second.history
    assert [v.tobytes() for v, _ in results(first).values()] == [v.tobytes() for v, _ in results(second).values()]


def test_it_makes_no_difference_in_which_order_contributions_arrive() -> None:
    terms = terms_of(4)
    vectors = vectors_of(terms)
    sent = {peer: round_of(peer, terms, vectors[peer]).start(0.0) for peer in "bcd"}
    means = []
    for order in ("bcd", "dcb", "cdb"):
        a = round_of("a", terms, vectors["a"])
        a.start(0.0)
        effects: list[Any] = []
        for peer in order:
            (message,) = [e.message for e in sent[peer] if isinstance(e, Send) and e.peer == "a"]
            effects += a.handle(Received(peer, message), 0.1)
        means.append([e.message for e in effects if isinstance(e, Send)])
    assert means[0] == means[1] == means[2]
    assert len(means[0]) == 3


# One member by hand: a of (a, b, c), where part 0 is its own.


class ByHand:
    """Member a, and what b and c would say to it."""

    def __init__(self, terms: Terms | None = None, gate: Gate | None = None) -> None:
        self.terms = terms or terms_of(3, 9)
        self.own = np.ones(self.terms.dimension, dtype=np.float32)
        self.gate = gate or Gate(CONFIG)
        self.round = round_of("a", self.terms, self.own, gate=self.gate)
        self.sent = self.round.start(0.0)

    def contribution(self, value: float = 1.0, **changes: Any) -> Contribution:
        payload = np.full(3, value, dtype=np.float32).tobytes()
        message = Contribution(task="t", round=7, context=self.terms.context, part=0, weight=2.0, payload=payload)
        return msgspec.structs.replace(message, **changes)

    def mean(self, owned: int, value: float = 2.0, **changes: Any) -> Mean:
        payload = np.full(3, value, dtype=np.float32).tobytes()
        who = (("a", 1.0), ("b", 2.0), ("c", 3.0))
        message = Mean(task="t", round=7, context=self.terms.context, part=owned, contributors=who, payload=payload)
        return msgspec.structs.replace(message, **changes)

    def hear(self, peer: str, message: Message, now: float = 0.1) -> list[Any]:
        return list(self.round.handle(Received(peer, message), now))

    def expire(self, so_far: Sequence[Any] = ()) -> Finished:
        effects = list(so_far)
        while self.round.phase is not Phase.FINISHED:
            effects += self.round.handle(Expired(), self.round.deadline)
        return next(e for e in effects if isinstance(e, Finished))


def test_early_means_wait_for_ones_own() -> None:
    hand = ByHand()
    assert hand.hear("b", hand.mean(1)) == []
    assert hand.hear("c", hand.mean(2, 3.0)) == []
    assert hand.hear("b", hand.contribution(1.0)) == []
    *sends, finished = hand.hear("c", hand.contribution(2.5))
    assert [send.peer for send in sends] == ["b", "c"]
    assert finished.vector.tolist() == [1.6] * 0 + [pytest.approx(1.6)] * 3 + [2.0] * 3 + [3.0] * 3
    assert finished.report.complete
    assert hand.round.handle(Expired(), 9.0) == []
    assert hand.hear("b", hand.mean(1)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"payload": np.array([1, np.nan, 1], dtype=np.float32).tobytes()}, "b: 1 of 3 values are not finite"),
        ({"payload": np.full(3, 3e38, dtype=np.float32).tobytes()}, "b: its norm is 3e+38 times ours"),
        ({"payload": b"12345"}, "b: 5 bytes where 12 are due"),
        ({"payload": b""}, "b: 0 bytes where 12 are due"),
        ({"weight": 1e12}, "b: its weight is 1000000000000.0"),
        ({"weight": float("nan")}, "b: its weight is nan"),
        ({"part": 1}, "b: it is for part 1; a owns 0"),
        ({"part": 99}, "b: it is for part 99; a owns 0"),
    ],
)
def test_a_bad_contribution_is_refused_named_and_left_out(changes: dict[str, Any], words: str) -> None:
    hand = ByHand()
    hand.hear("b", hand.contribution(**changes))
    hand.hear("b", hand.contribution())  # no second try
    hand.hear("c", hand.contribution())
    finished = hand.expire()
    (refusal,) = finished.report.refused
    assert (refusal.peer, refusal.what) == ("b", "contribution")
    assert words in refusal.why
    assert finished.report.parts[0] == (("a", 1.0), ("c", 2.0))
    assert finished.report.ignored == 1
    assert finished.vector[:3].tolist() == [1, 1, 1]
    assert ("b", "contribution", "it was refused") in {(m.peer, m.what, m.why) for m in finished.report.missing}
    assert not finished.report.complete


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"payload": np.array([1, np.inf, 1], dtype=np.float32).tobytes()}, "b: 1 of 3 values are not finite"),
        ({"payload": np.full(3, 5, dtype=np.float32).tobytes()}, "b: its norm is 5 times ours"),
        ({"payload": b"1"}, "b: 1 bytes where 12 are due"),
        ({"part": 2}, "b: it is for part 2; b owns 1"),
        ({"contributors": ()}, "b: its contributors are not"),
        ({"contributors": (("a", 1.0), ("c", 1.0))}, "b: its contributors are not"),
        ({"contributors": (("b", 1.0), ("a", 1.0))}, "b: its contributors are not"),
        ({"contributors": (("b", 1.0), ("b", 1.0))}, "b: its contributors are not"),
        ({"contributors": (("b", 1.0), ("z", 1.0))}, "b: its contributors are not"),
        ({"contributors": (("a", -1.0), ("b", 1.0))}, "b on a: its weight is -1.0"),
    ],
)
def test_a_bad_mean_is_refused_and_ones_own_part_kept(changes: dict[str, Any], words: str) -> None:
    hand = ByHand()
    hand.hear("b", hand.mean(1, **changes))
    hand.hear("c", hand.mean(2))
    finished = hand.expire()
    (refusal,) = finished.report.refused
    assert words in refusal.why
    assert refusal.what == "mean"
    assert finished.report.parts[1] == ()
    assert finished.vector[3:6].tolist() == [1, 1, 1]
    assert finished.vector[6:].tolist() == [2, 2, 2]


def test_strangers_doubles_and_late_messages_are_counted_and_change_nothing() -> None:
    hand = ByHand()
    for peer in ("z", "a"):
        hand.hear(peer, hand.contribution(100))
        hand.hear(peer, hand.mean(1))
    hand.hear("b", hand.contribution())
    hand.hear("b", hand.contribution(9))
    hand.hear("b", hand.mean(1), now=0.2)  # c's contribution is overdue
    assert hand.round.phase is Phase.MEANS
    hand.hear("c", hand.contribution())
    report = hand.expire().report
    assert report.ignored == 6
    assert report.parts == ((("a", 1.0), ("b", 2.0)), (("a", 1.0), ("b", 2.0), ("c", 3.0)), ())
    assert [(m.peer, m.what, m.why) for m in report.missing] == [
        ("c", "contribution", "it did not come by the deadline"),
        ("c", "mean", "it did not come by the deadline"),
    ]
    assert (report.contributions_s, report.means_s) == pytest.approx((0.2, 0.2))


def test_another_view_is_recognised_and_not_waited_for() -> None:
    hand = ByHand()
    hand.hear("c", hand.contribution(context=b"another", round=6))  # of another round: says nothing about this one
    hand.hear("b", hand.contribution(context=b"another"))
    effects = hand.hear("c", hand.contribution())
    assert [send.peer for send in effects] == ["c"]
    (finished,) = hand.hear("c", hand.mean(2, contributors=(("a", 1.0), ("c", 3.0))))
    assert finished.report.refused == ()
    assert finished.report.ignored == 2
    assert {m.why for m in finished.report.missing} == {"the peer sees another group"}


def test_who_comes_to_see_the_same_group_takes_part() -> None:
    hand = ByHand()
    hand.hear("b", hand.contribution(context=b"another"))
    hand.hear("b", hand.contribution())
    assert [send.peer for send in hand.hear("c", hand.contribution())] == ["b", "c"]


def test_a_round_in_which_all_others_are_gone_ends_at_once_with_ones_own_values() -> None:
    hand = ByHand()
    assert hand.round.handle(PeerDown("b"), 0.01) == []
    finished = hand.expire(hand.round.handle(PeerDown("c"), 0.02))
    assert finished.vector.tolist() == [1] * 9
    assert finished.report.parts == ((("a", 1.0),), (), ())
    assert {m.why for m in finished.report.missing} == {"the peer went down"}


def test_a_deadline_is_kept_even_if_messages_never_stop_and_not_before() -> None:
    hand = ByHand()
    assert hand.round.handle(Expired(), 0.19) == []
    sends = hand.hear("z", hand.contribution(), now=0.2)
    assert [send.peer for send in sends] == ["b", "c"]
    assert hand.round.deadline == pytest.approx(0.3)  # nobody came: a mean's wait after a contribution's
    (finished,) = hand.hear("z", hand.contribution(), now=hand.round.deadline)
    assert finished.vector.tolist() == [1] * 9


def test_a_node_that_slept_through_its_deadlines_still_sends_its_mean() -> None:
    hand = ByHand()
    sends = hand.round.handle(Expired(), 100.0)
    assert len(sends) == 2
    assert hand.round.deadline == pytest.approx(100.1)


def test_a_heavy_weight_counts_as_ten_median_ones() -> None:
    hand = ByHand()
    hand.hear("b", hand.contribution(weight=1e9))
    hand.hear("c", hand.contribution(weight=1.0))
    assert hand.expire().report.parts[0] == (("a", 1.0), ("b", 10.0), ("c", 1.0))


def test_the_gate_learns_from_one_round_for_the_next() -> None:
    gate = Gate(CONFIG)
    for expected in (2, 1):  # refused by nobody but ourselves: from the next round on, such norms are usual
        hand = ByHand(gate=gate)
        for peer in "bc":
            hand.hear(peer, hand.contribution(5.0))
        assert len(hand.expire().report.refused) == (2 if expected == 2 else 0)


def test_ones_own_vector_has_to_be_one_that_others_accept() -> None:
    terms = terms_of(2)
    good = np.ones(11, dtype=np.float32)
    with pytest.raises(BadContribution, match="a: 1 of its 11 values are not finite"):
        round_of("a", terms, np.where(np.arange(11) == 3, np.nan, good).astype(np.float32))
    with pytest.raises(BadContribution, match=r"a: its values have shape \(10,\)"):
        round_of("a", terms, good[:10])
    with pytest.raises(BadSetup, match="c is not in the group"):
        round_of("c", terms, good)
    with pytest.raises(BadContribution, match="a: its weight is 0"):
        Round(
            "a",
            terms,
            good,
            0,
            gate=Gate(CONFIG),
            rng=np.random.default_rng(0),
            config=CONFIG,
            contribution_wait_s=1,
            mean_wait_s=1,
        )


def test_the_same_vectors_under_other_terms_never_mix(world: WorldType) -> None:
    terms = terms_of(2)
    other = replace(terms, codec="int8")
    vectors = vectors_of(terms)
    machines = {"a": round_of("a", terms, vectors["a"]), "b": round_of("b", other, vectors["b"])}
    played = world(machines, 0)
    for peer, machine in machines.items():
        played.at(0.0, peer, machine.start, "start")
    played.run()
    for peer, (vector, report) in results(played).items():
        assert np.allclose(vector, vectors[peer], atol=tolerance(other, vectors))
        assert report.ignored >= 1
        assert not report.complete
