"""Rounds: everyone who lives finishes in time, and all who say that they agreed hold the same exact mean."""

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
from lepton.gossip.messages import Contribution, Mean, Message, Status
from lepton.gossip.mixing import clip_weights, weighted_mean
from lepton.gossip.part import OwnPart, Reference
from lepton.gossip.round import Effect, Event, Phase, Round
from lepton.gossip.terms import Terms

if TYPE_CHECKING:
    from .conftest import World

CONFIG = replace(Config.test(), window_chunks=2)
PEERS = tuple("abcdefgh")
LONG = 4 * 3 * 1024 - 5  # for four members: parts of three chunks, the last of them shorter
WorldType = Callable[..., "World"]


def terms_of(count: int, dimension: int = LONG, codec_name: str = "float32", round_: int = 7) -> Terms:
    return Terms(
        mesh=b"m", task="t", round=round_, members=PEERS[:count], dimension=dimension, codec=codec_name,
        chunk_bytes=codec(codec_name).size_bytes(1024),
    )  # fmt: skip


def vectors_of(terms: Terms, seed: int = 0) -> dict[str, Floats]:
    rng = np.random.default_rng(seed)
    size = terms.dimension  # magnitudes in [1, 2]: the gate lets even parts of one element pass
    signs = {peer: rng.choice([-1, 1], size) for peer in terms.members}
    return {peer: (signs[peer] * rng.uniform(1, 2, size)).astype(np.float32) for peer in terms.members}


def weight_of(peer: str) -> float:
    return 1.0 + PEERS.index(peer)


def reference_of(terms: Terms) -> Reference:
    return Reference(b"known", np.linspace(-1, 1, terms.dimension, dtype=np.float32))


def round_of(
    peer: str, terms: Terms, vector: Floats, seed: int = 0, gate: Gate | None = None,
    reference: Reference | None = None, instance: int = 1,
) -> Round:  # fmt: skip
    return Round(
        peer,
        terms,
        vector,
        weight_of(peer),
        instance=instance,
        reference=reference,
        gate=gate or Gate(CONFIG),
        rng=np.random.default_rng([seed, ord(peer), instance]),
        config=CONFIG,
        opening_wait_s=0.2,
        stall_s=0.3,
    )


def play(
    world: WorldType, terms: Terms, seed: int = 0, *, crash: dict[str, int] | None = None,
    freeze: dict[str, tuple[int, float]] | None = None, known: bool = True, **links: Any
) -> tuple["World", dict[str, Floats]]:  # fmt: skip
    """Run a whole round; `crash` maps a peer to the step at which it dies, `links` are the world's."""
    vectors = vectors_of(terms, seed)
    reference = reference_of(terms) if known else None
    machines = {peer: round_of(peer, terms, vector, seed, reference=reference) for peer, vector in vectors.items()}
    played = world(machines, seed, **links)
    played.crash_at, played.freeze_at = crash or {}, freeze or {}
    late = np.random.default_rng(seed).uniform(0, 0.05, len(machines))
    for (peer, machine), start_s in zip(machines.items(), late, strict=True):
        played.at(float(start_s), peer, machine.start, "start")
    played.run()
    for peer, machine in machines.items():
        if peer not in played.crashed:
            assert machine.phase is Phase.FINISHED, f"seed {seed}: {peer} hangs"
            if peer not in played.freeze_at:
                assert played.finished_s[peer] <= machine.started_s + machine.finish_s_max + 1e-9
    return played, vectors


def results(played: "World") -> dict[str, tuple[Floats, Report]]:
    finished = {peer: outcomes for peer, outcomes in played.outcomes.items() if peer not in played.crashed}
    assert all(len(outcomes) == 1 for outcomes in finished.values())
    return {peer: (outcome.vector, outcome.report) for peer, (outcome,) in finished.items()}


def tolerance(terms: Terms, vectors: dict[str, Floats]) -> float:
    """Twice the codec's error: values are rounded before they are averaged, and their mean once more."""
    largest = max(float(np.abs(v).max(initial=0)) for v in vectors.values()) + 1  # differences to the reference
    errors = {
        "float32": 1e-6,
        "float16": 2 * 2**-11,
        "bfloat16": 2 * 2**-8,
        "int8": 2 * 1.02 / 127,
        "int4": 2 * 1.02 / 7,
    }
    return errors[terms.codec] * largest


def check(terms: Terms, vectors: dict[str, Floats], got: dict[str, tuple[Floats, Report]], words: str) -> list[str]:
    """Hold the invariant; return who agreed."""
    agreed = {peer: result for peer, result in got.items() if result[1].agreed}
    for peer, (vector, report) in got.items():
        if peer not in agreed:
            if not any(report.parts):
                assert vector.tobytes() == vectors[peer].tobytes(), words
            assert not report.complete or any(report.parts), words
            assert not report.reference, words
    assert len({vector.tobytes() for vector, _ in agreed.values()}) <= 1, words
    assert len({(report.reference, report.parts) for _, report in agreed.values()}) <= 1, words
    for peer, (vector, report) in got.items():
        for part, runs in zip(terms.plan.parts, report.parts, strict=True):
            places = [place for run in runs for place in range(run.start, run.stop)]
            assert places == (list(range(part.start, part.stop)) if any(report.parts) else []), words
            for run in runs:
                place, weights = slice(run.start, run.stop), dict(run.contributors)
                if not weights:
                    kept = reference_of(terms).vector if report.agreed else vectors[peer]
                    assert vector[place].tobytes() == kept[place].tobytes(), words
                    continue
                assert weights == clip_weights({p: weight_of(p) for p in weights}, CONFIG.weight_ratio_max), words
                exact = weighted_mean({p: vectors[p][place] for p in weights}, weights)
                assert np.abs(vector[place] - exact).max(initial=0) <= tolerance(terms, vectors), words
    return sorted(agreed)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("codec_name", ["float32", "float16", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize(("dimension", "known"), [(3, True), (LONG, True), (LONG, False)])
def test_without_faults_all_hold_the_same_exact_mean(
    world: WorldType, count: int, codec_name: str, dimension: int, known: bool
) -> None:
    terms = terms_of(count, dimension, codec_name)
    before = vectors_of(terms, seed=count)
    played, vectors = play(world, terms, seed=count, known=known)
    got = results(played)
    assert check(terms, vectors, got, "") == list(terms.members)
    for peer, (vector, report) in got.items():
        assert report.complete
        assert (report.missing, report.refused) == ((), ())
        who = tuple((p, weight_of(p)) for p in terms.members)
        assert [[run.contributors for run in runs] for runs in report.parts] == [
            [who] if part.stop > part.start else [] for part in terms.plan.parts
        ]
        assert vectors[peer].tobytes() == before[peer].tobytes()
        assert not np.shares_memory(vector, vectors[peer])


def test_bytes_are_the_ones_promised(world: WorldType) -> None:
    terms = terms_of(8, 8 * 2048, "int8")
    got = results(play(world, terms)[0])
    each = 2 * 7 * codec("int8").size_bytes(2048)  # 1.75 models
    assert {(r.bytes_sent, r.bytes_received) for _, r in got.values()} == {(each, each)}


@pytest.mark.parametrize(("notified", "codec_name"), [(True, "float32"), (False, "int8")])
def test_a_crash_at_any_step_of_any_peer_leaves_the_survivors_with_one_exact_mean(
    world: WorldType, notified: bool, codec_name: str
) -> None:
    terms = terms_of(4, codec_name=codec_name)
    down_after_s = 0.03 if notified else None
    steps, trials = play(world, terms)[0].steps, 0
    for victim in terms.members:
        for step in range(steps[victim]):
            words = f"{victim} crashes at step {step}"
            played, vectors = play(world, terms, step, crash={victim: step}, down_after_s=down_after_s)
            agreed = check(terms, vectors, results(played), words)
            assert agreed == [peer for peer in terms.members if peer not in played.crashed], words
            trials += 1
    assert trials >= 100


@pytest.mark.parametrize("for_s", [0.2, 0.7, 100.0])
def test_a_freeze_at_any_step_of_any_peer_leaves_the_others_with_one_exact_mean(world: WorldType, for_s: float) -> None:
    """Who wakes up late either comes to the same, or says that it did not."""
    terms = terms_of(4)
    steps, trials = play(world, terms)[0].steps, 0
    for victim in terms.members:
        for step in range(steps[victim]):
            words = f"{victim} freezes at step {step}"
            played, vectors = play(world, terms, step, freeze={victim: (step, for_s)}, down_after_s=None)
            agreed = check(terms, vectors, results(played), words)
            assert set(agreed) >= set(terms.members) - {victim}, words
            trials += 1
    assert trials >= 100


@given(st.integers(0, 10**6), st.integers(2, 8), st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from(["float32", "int8"]))
@settings(max_examples=40)
def test_lost_doubled_and_reordered_messages_and_two_crashes_never_make_two_models(
    world: WorldType, seed: int, count: int, loss: float, name: str
) -> None:
    terms = terms_of(count, codec_name=name)
    rng = np.random.default_rng(seed)
    crash = {PEERS[int(rng.integers(8))]: int(rng.integers(60)) for _ in range(2)}
    freeze = {PEERS[int(rng.integers(8))]: (int(rng.integers(60)), float(rng.uniform(0, 1)))}
    played, vectors = play(
        world, terms, seed, loss=loss, duplication=0.3, delay_s=(0.0, 0.15), crash=crash, freeze=freeze
    )
    check(terms, vectors, results(played), f"seed {seed}, crash {crash}, freeze {freeze}")


@pytest.mark.parametrize("seed", range(5))
def test_all_agree_with_a_tenth_of_all_messages_lost(world: WorldType, seed: int) -> None:
    terms = terms_of(5)
    played, vectors = play(world, terms, seed, loss=0.1)
    assert check(terms, vectors, results(played), f"seed {seed}") == list(terms.members)


@pytest.mark.parametrize("known", [True, False])
def test_half_without_the_first_member_is_no_quorum_and_keeps_its_own(world: WorldType, known: bool) -> None:
    """Two halves that are cut from each other must not both go on: the one with the first member does."""
    terms = terms_of(2)
    played, vectors = play(world, terms, crash={"a": 0}, known=known)
    assert check(terms, vectors, results(played), "") == []
    played, vectors = play(world, terms, crash={"b": 0}, known=known)
    assert check(terms, vectors, results(played), "") == (["a"] if known else [])


def test_what_nobody_has_is_taken_from_the_last_model_that_all_had(world: WorldType) -> None:
    terms = terms_of(4)
    played, vectors = play(world, terms, crash={"d": 0})
    got = results(played)
    assert check(terms, vectors, got, "") == list("abc")
    report = got["a"][1]
    assert [run.contributors for run in report.parts[3]] == [()]
    assert {run.contributors for runs in report.parts[:3] for run in runs} == {(("a", 1.0), ("b", 2.0), ("c", 3.0))}
    assert {(m.peer, m.what) for m in report.missing} == {("d", "contribution"), ("d", "mean")}
    played, vectors = play(world, terms, crash={"d": 0}, known=False)  # nothing that all have: all keep their own
    got = results(played)
    assert check(terms, vectors, got, "") == []
    d = terms.plan.parts[3]
    assert len({np.delete(vector, d).tobytes() for vector, _ in got.values()}) == 1
    assert len({vector[d].tobytes() for vector, _ in got.values()}) == 3


class Liar:
    """A member that sends means a hundred times too large, which nobody lets in, and holds its own to be right."""

    def __init__(self, machine: Round) -> None:
        self.machine = machine

    @property
    def deadline(self) -> float:
        return self.machine.deadline

    def start(self, now: float) -> list[Effect]:
        return [self._lie(effect) for effect in self.machine.start(now)]

    def handle(self, event: Event, now: float) -> list[Effect]:
        return [self._lie(effect) for effect in self.machine.handle(event, now)]

    @staticmethod
    def _lie(effect: Effect) -> Effect:
        if not isinstance(effect, Send) or not isinstance(effect.message, Mean) or effect.message.part != 3:
            return effect
        values = np.frombuffer(effect.message.payload, dtype=np.float32) * np.float32(100)
        return Send(effect.peer, msgspec.structs.replace(effect.message, payload=values.tobytes()))


@pytest.mark.parametrize(
    ("knows", "agreed"),
    [("abcd", "abcd"), ("abc", "abc"), ("acd", ""), ("", "")],
    ids=["all share a model", "all but the owner", "all but one of the others", "nobody"],
)
def test_a_part_whose_mean_is_refused_is_the_last_models_or_ones_own_and_then_not_agreed(
    world: WorldType, knows: str, agreed: str
) -> None:
    """The other parts are the exact means that the report names, whichever it is: `check` holds that of everyone."""
    terms = terms_of(4)
    vectors = vectors_of(terms)
    known = {peer: reference_of(terms) if peer in knows else None for peer in terms.members}
    rounds = {peer: round_of(peer, terms, vectors[peer], reference=known[peer]) for peer in terms.members}
    machines: dict[str, Round | Liar] = {**rounds, "d": Liar(rounds["d"])}
    played = world(machines, 0)
    for peer, machine in machines.items():
        played.at(0.0, peer, machine.start, "start")
    played.run()
    got = results(played)
    assert check(terms, vectors, got, "") == list(agreed)
    for peer, (vector, report) in got.items():
        assert [[bool(run.contributors) for run in runs] for runs in report.parts] == [[True], [True], [True], [False]]
        assert {(refusal.peer, refusal.what) for refusal in report.refused} == ({("d", "mean")} - {(peer, "mean")})
        assert not report.complete
        d = terms.plan.parts[3]
        assert (vector[d].tobytes() == vectors[peer][d].tobytes()) == (peer not in agreed)
    assert len({np.delete(vector, terms.plan.parts[3]).tobytes() for vector, _ in got.values()}) == 1


def test_who_dies_in_the_middle_of_a_contribution_is_in_the_first_chunks_and_the_report_says_so(
    world: WorldType,
) -> None:
    terms, seen = terms_of(4, dimension=4 * 8 * 1024), set[int]()
    for step in range(30, 60):
        played, vectors = play(world, terms, crash={"d": step})
        got = results(played)
        assert check(terms, vectors, got, f"step {step}") == list("abc")
        seen |= {len(runs) for runs in got["a"][1].parts[:3]}
    assert 2 in seen


def test_a_member_that_dies_and_comes_back_within_the_round_makes_no_second_mean(world: WorldType) -> None:
    terms, vectors = terms_of(4), vectors_of(terms_of(4))
    for step in range(play(world, terms)[0].steps["d"]):
        machines = {peer: round_of(peer, terms, vectors[peer], reference=reference_of(terms)) for peer in "abcd"}
        played = world(machines, step, down_after_s=None)
        played.crash_at = {"d": step}
        for peer, machine in machines.items():
            played.at(0.0, peer, machine.start, "start")
        for millisecond in range(200):
            if "d" not in played.crashed:
                played.run(until_s=millisecond / 1000)
        machines["d"] = round_of("d", terms, vectors["d"] + 1, reference=reference_of(terms), instance=2)
        played.crashed.clear()
        played.crash_at.clear()
        played.at(played.now, "d", machines["d"].start, "start again")
        played.run()
        outcomes = [outcome for outcomes in played.outcomes.values() for outcome in outcomes]
        assert len({outcome.vector.tobytes() for outcome in outcomes if outcome.report.agreed}) == 1, f"step {step}"
        assert all(played.outcomes[peer][0].report.agreed for peer in "abc"), f"step {step}"


@given(st.integers(0, 10**6))
@settings(max_examples=10)
def test_the_same_seed_is_the_same_history(world: WorldType, seed: int) -> None:
    first, second = (
        play(world, terms_of(5, codec_name="int4"), seed, loss=0.2, duplication=0.2, crash={"c": 6})[0]
        for _ in range(2)
    )
    assert first.history == second.history
    assert [v.tobytes() for v, _ in results(first).values()] == [v.tobytes() for v, _ in results(second).values()]


def test_never_more_than_a_few_chunks_wait(world: WorldType, monkeypatch: pytest.MonkeyPatch) -> None:
    most, take = [0], OwnPart.take

    def watch(part: OwnPart, peer: str, message: Contribution) -> bool:
        taken = take(part, peer, message)
        most.append(sum(map(len, part._waiting.values())))
        return taken

    monkeypatch.setattr(OwnPart, "take", watch)
    played, _ = play(world, terms_of(3, dimension=3 * 12 * 1024), delay_s=(0.0, 0.1))
    assert all(report.complete for _, report in results(played).values())
    assert 2 <= max(most) <= 2 * CONFIG.window_chunks


# One member by hand: a of (a, b, c), where part 0 is its own.


class ByHand:
    """Member a, and what b and c would say to it."""

    def __init__(self, terms: Terms | None = None, gate: Gate | None = None, known: Reference | None = None) -> None:
        self.terms = terms or terms_of(3, 9)
        self.own = np.ones(self.terms.dimension, dtype=np.float32)
        self.gate = gate or Gate(CONFIG)
        self.round = round_of("a", self.terms, self.own, gate=self.gate, reference=known)
        self.sent = self.round.start(0.0)

    def head(self) -> dict[str, Any]:
        return {"task": "t", "round": 7, "context": self.terms.context, "instance": 1}

    def status(self, weight: float = 2.0, **changes: Any) -> Status:
        held = self.terms.plan.to_bytes((0,) * len(self.terms.members))
        fields = {"weight": weight, "reference": b"", "received": b"\0", "held": held, "instances": (0,) * len(held)}
        return Status(**(self.head() | fields | changes))

    def contribution(self, value: float = 1.0, **changes: Any) -> Contribution:
        payload = np.full(3, value, dtype=np.float32).tobytes()
        return Contribution(**(self.head() | {"part": 0, "chunk": 0, "reference": b"", "payload": payload} | changes))

    def mean(self, owned: int, value: float = 2.0, **changes: Any) -> Mean:
        payload = np.full(3, value, dtype=np.float32).tobytes()
        who = (("a", 1.0), ("b", 2.0), ("c", 3.0))
        fields = {"part": owned, "chunk": 0, "contributors": who, "reference": b"", "payload": payload}
        return Mean(**(self.head() | fields | changes))

    def open(self) -> list[Any]:
        return self.hear("b", self.status()) + self.hear("c", self.status(3.0))

    def hear(self, peer: str, message: Message, now: float = 0.1) -> list[Any]:
        return list(self.round.handle(Received(peer, message), now))

    def expire(self, so_far: Sequence[Any] = ()) -> Finished:
        effects = list(so_far)
        while self.round.phase is not Phase.FINISHED:
            effects += self.round.handle(Expired(), self.round.deadline)
        return next(e for e in effects if isinstance(e, Finished))

    def means(self, effects: Sequence[Any]) -> list[Mean]:
        return [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Mean)]


def test_a_round_opens_streams_and_ends_message_by_message() -> None:
    hand = ByHand()
    assert [(e.peer, type(e.message)) for e in hand.sent if isinstance(e, Send)] == [("b", Status), ("c", Status)]
    assert hand.hear("b", hand.status()) == []  # c may weigh more than all: nothing is averaged before it has spoken
    sends = hand.hear("c", hand.status(3.0))
    assert [(e.peer, type(e.message)) for e in sends] == [("b", Contribution), ("c", Contribution)]
    assert hand.hear("b", hand.contribution(1.0)) == []
    sends = hand.hear("c", hand.contribution(2.5))
    assert [(e.peer, type(e.message)) for e in sends] == [("b", Mean), ("c", Mean)]
    assert hand.hear("b", hand.mean(1)) == []
    sends = hand.hear("c", hand.mean(2, 3.0))
    assert [type(e.message) for e in sends] == [Status, Status]
    assert sends[0].message.accepted.ballot == 0
    said = sends[0].message
    (finished,) = hand.hear("b", hand.status(held=said.held, instances=said.instances, accepted=said.accepted))
    assert finished.vector.tolist() == [pytest.approx(1.75)] * 3 + [2.0] * 3 + [3.0] * 3
    assert finished.report.complete
    assert hand.round.handle(Expired(), 9.0) == []
    assert hand.hear("b", hand.mean(1)) == []


def test_it_makes_no_difference_in_which_order_contributions_arrive() -> None:
    means = []
    for order in ("bc", "cb"):
        hand = ByHand()
        hand.open()
        effects: list[Any] = []
        for peer in order:
            effects += hand.hear(peer, hand.contribution(1.1 if peer == "b" else 0.3))
        means.append([bytes(mean.payload) for mean in hand.means(effects)])
    assert means[0] == means[1]
    assert len(means[0]) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"payload": np.array([1, np.nan, 1], dtype=np.float32).tobytes()}, "b: 1 of 3 values are not finite"),
        ({"payload": np.full(3, 3e38, dtype=np.float32).tobytes()}, "b: its norm is 3e+38 times ours"),
        ({"payload": b"12345"}, "b: 5 bytes where 12 are due"),
        ({"payload": b""}, "b: 0 bytes where 12 are due"),
        ({"reference": b"another"}, "b: its values are differences to a model that is not known here"),
        ({"part": 1}, "b: it is for part 1; a owns 0"),
        ({"part": 99}, "b: it is for part 99; a owns 0"),
    ],
)
def test_a_bad_contribution_is_refused_named_and_left_out(changes: dict[str, Any], words: str) -> None:
    hand = ByHand()
    hand.open()
    hand.hear("b", hand.contribution(**changes))
    hand.hear("b", hand.contribution())  # no second try
    means = hand.means(hand.hear("c", hand.contribution()))
    assert {mean.contributors for mean in means} == {(("a", 1.0), ("c", 3.0))}
    report = hand.expire().report
    (refusal,) = report.refused
    assert (refusal.peer, refusal.what) == ("b", "contribution")
    assert words in refusal.why
    assert report.ignored == 1
    assert ("b", "contribution", "it was refused") in {(m.peer, m.what, m.why) for m in report.missing}
    assert not report.agreed


@pytest.mark.parametrize("weight", [1e12, float("nan"), 0.0, -1.0])
def test_an_absurd_weight_is_refused_before_anything_is_averaged(weight: float) -> None:
    hand = ByHand()
    hand.hear("b", hand.status(weight))
    hand.hear("c", hand.status(3.0))
    (first, _) = hand.means(hand.hear("c", hand.contribution()))
    assert first.contributors == (("a", 1.0), ("c", 3.0))
    (refusal,) = hand.expire().report.refused
    assert f"b: its weight is {weight}" in refusal.why


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"payload": np.array([1, np.inf, 1], dtype=np.float32).tobytes()}, "b: 1 of 3 values are not finite"),
        ({"payload": np.full(3, 5, dtype=np.float32).tobytes()}, "b: its norm is 5 times ours"),
        ({"payload": b"1"}, "b: 1 bytes where 12 are due"),
        ({"reference": b"another"}, "b: it is a difference to a model that is not known here"),
        ({"contributors": ()}, "b: its contributors are not"),
        ({"contributors": (("a", 1.0), ("c", 1.0))}, "b: its contributors are not"),
        ({"contributors": (("b", 1.0), ("a", 1.0))}, "b: its contributors are not"),
        ({"contributors": (("b", 1.0), ("b", 1.0))}, "b: its contributors are not"),
        ({"contributors": (("b", 1.0), ("z", 1.0))}, "b: its contributors are not"),
        ({"contributors": (("a", -1.0), ("b", 1.0))}, "b on a: its weight is -1.0"),
    ],
)
def test_a_bad_mean_is_refused_and_not_adopted(changes: dict[str, Any], words: str) -> None:
    hand = ByHand()
    hand.open()
    for peer in "bc":
        hand.hear(peer, hand.contribution())
    hand.hear("b", hand.mean(1, **changes))
    hand.hear("c", hand.mean(2))
    finished = hand.expire()
    (refusal,) = finished.report.refused
    assert words in refusal.why
    assert refusal.what == "mean"
    assert ("b", "mean", "it was refused") in {(m.peer, m.what, m.why) for m in finished.report.missing}
    assert finished.vector.tolist() == [1] * 9


def test_strangers_and_doubles_are_counted_and_change_nothing() -> None:
    hand = ByHand()
    hand.open()
    for peer in ("z", "a"):
        hand.hear(peer, hand.contribution(100))
        hand.hear(peer, hand.mean(1))
    hand.hear("b", hand.contribution())
    hand.hear("b", hand.contribution(9))
    hand.hear("b", hand.mean(2))  # not its own, and not said to be another's
    means = hand.means(hand.hear("c", hand.contribution()))
    assert hand.hear("b", hand.contribution()) == []  # late
    assert np.frombuffer(means[0].payload, dtype=np.float32).tolist() == [1, 1, 1]
    assert hand.expire().report.ignored == 7


def test_another_view_is_recognised_and_not_waited_for() -> None:
    hand = ByHand()
    hand.hear("c", hand.status(context=b"another", round=6))  # of another round: says nothing about this one
    hand.hear("b", hand.status(context=b"another"))
    effects = hand.hear("c", hand.status(3.0))
    assert {send.peer for send in effects} == {"c"}
    finished = hand.expire()
    assert finished.report.refused == ()
    assert ("b", "mean", "the peer sees another group") in {(m.peer, m.what, m.why) for m in finished.report.missing}


def test_who_comes_to_see_the_same_group_takes_part() -> None:
    hand = ByHand()
    hand.hear("b", hand.status(context=b"another"))
    hand.hear("b", hand.status())
    assert {send.peer for send in hand.hear("c", hand.status())} == {"b", "c"}


def test_a_round_in_which_all_others_are_gone_ends_by_its_deadline_with_ones_own_values() -> None:
    hand = ByHand()
    hand.round.handle(PeerDown("b"), 0.01)
    finished = hand.expire(hand.round.handle(PeerDown("c"), 0.02))
    assert finished.vector.tolist() == [1] * 9
    assert not finished.report.agreed
    assert {m.why for m in finished.report.missing} == {"the peer went down"}


def test_a_heavy_weight_counts_as_ten_median_ones() -> None:
    hand = ByHand()
    hand.hear("b", hand.status(1e9))
    hand.hear("c", hand.status(1.0))
    hand.hear("b", hand.contribution())
    (first, _) = hand.means(hand.hear("c", hand.contribution()))
    assert first.contributors == (("a", 1.0), ("b", 10.0), ("c", 1.0))


def test_the_gate_learns_from_one_round_for_the_next() -> None:
    gate = Gate(CONFIG)
    for expected in (2, 0):  # refused by nobody but ourselves: from the next round on, such norms are usual
        hand = ByHand(gate=gate)
        hand.open()
        for peer in "bc":
            hand.hear(peer, hand.contribution(5.0))
        assert len(hand.expire().report.refused) == expected


def test_differences_are_taken_to_what_both_know_and_to_nothing_else() -> None:
    """With one who knows another model, its values and all means travel as they are."""
    known = Reference(b"known", np.full(9, 0.75, dtype=np.float32))
    for others, name in ((b"known", b"known"), (b"another", b"")):
        hand = ByHand(terms_of(3, 9, "bfloat16"), known=known)
        sends = hand.hear("b", hand.status(reference=others)) + hand.hear("c", hand.status(reference=b"known"))
        sent = {e.peer: e.message for e in sends if isinstance(e.message, Contribution)}
        assert (sent["b"].reference, sent["c"].reference) == (name, b"known")
        bf16 = codec("bfloat16")
        assert bf16.decode(sent["c"].payload, 3).tolist() == [0.25] * 3
        whole, rng = np.ones(3, dtype=np.float32), np.random.default_rng(0)
        difference = bf16.encode(whole - np.float32(0.75), rng)
        plain = difference if name else bf16.encode(whole, rng)
        hand.hear("b", hand.contribution(reference=name, payload=plain))
        means = hand.means(hand.hear("c", hand.contribution(reference=b"known", payload=difference)))
        assert {mean.reference for mean in means} == {name}
        assert bf16.decode(means[0].payload, 3).tolist() == [0.25 if name else 1.0] * 3


def test_ones_own_vector_has_to_be_one_that_others_accept() -> None:
    terms = terms_of(2, 11)
    good = np.ones(11, dtype=np.float32)
    with pytest.raises(BadContribution, match="a: 1 of its 11 values are not finite"):
        round_of("a", terms, np.where(np.arange(11) == 3, np.nan, good).astype(np.float32))
    with pytest.raises(BadContribution, match=r"a: its values have shape \(10,\)"):
        round_of("a", terms, good[:10])
    with pytest.raises(BadSetup, match="c is not in the group"):
        round_of("c", terms, good)


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
        assert vector.tobytes() == vectors[peer].tobytes()
        assert report.ignored >= 1
        assert not report.agreed
