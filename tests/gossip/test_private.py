"""Private rounds: the sum comes out, nothing else does, whoever drops out, and nobody signs twice."""

import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.gossip.errors import BadContribution, BadSetup
from lepton.gossip.events import Expired, Finished, PeerDown, Received, Send
from lepton.gossip.private import masking, messages
from lepton.gossip.private.attempt import Phase
from lepton.gossip.private.messages import Agreed, Hello, Masked, Receipts, Reveal, Sum
from lepton.gossip.private.round import PrivateRound
from lepton.gossip.private.survivors import Receipt, colluders_max, survivors, survivors_min
from lepton.gossip.terms import Terms

WAIT_S = 1.0
KINDS = (Hello, Masked, Receipts, Agreed, Reveal, Sum)


def names(m: int) -> tuple[str, ...]:
    return tuple(f"p{index:02}" for index in range(m))


def terms_of(m: int, dimension: int) -> Terms:
    return Terms(mesh=b"m", task="t", round=3, members=names(m), dimension=dimension, codec="float32")


def signature(peer: str, payload: bytes) -> bytes:
    return (peer.encode() + payload).ljust(64, b"\0")[:64]


def vectors_of(m: int, dimension: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=dimension).astype(np.float32) for name in names(m)}


@dataclass
class Group:
    """Members on virtual time; whoever is in `dead` is reached by nothing and sends nothing."""

    vectors: dict[str, np.ndarray]
    weights: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    drop: Callable[[str, str, messages.Message], bool] = lambda _from, _to, _message: False
    told: bool = True
    machines: dict[str, PrivateRound] = field(default_factory=dict)
    finished: dict[str, Finished] = field(default_factory=dict)
    sent: list[tuple[str, str, messages.Message]] = field(default_factory=list)
    dead: set[str] = field(default_factory=set)
    now: float = 0.0

    def __post_init__(self) -> None:
        m, dimension = len(self.vectors), next(iter(self.vectors.values())).size
        for name, vector in self.vectors.items():
            dice = random.Random(f"{self.seed}/{name}")
            self.machines[name] = PrivateRound(
                name,
                terms_of(m, dimension),
                vector,
                self.weights.get(name, 1.0),
                secret=lambda dice=dice: dice.randbytes(32),  # type: ignore[misc]
                sign=lambda payload, name=name: signature(name, payload),  # type: ignore[misc]
                verify=lambda peer, payload, signed: signed == signature(peer, payload),
                wait_s=WAIT_S,
            )

    def run(self) -> "Group":
        queue: list[tuple[str, str, messages.Message]] = []
        dice = random.Random(self.seed)
        for name in sorted(self.machines):
            self._do(name, self.machines[name].start(self.now), queue)
        for _ in range(20):
            while queue:
                sender, to, message = queue.pop(dice.randrange(len(queue)))
                if to not in self.dead and to not in self.finished:
                    self._do(to, self.machines[to].handle(Received(sender, message), self.now), queue)  # type: ignore[arg-type]
            self.now += WAIT_S
            for name in sorted(set(self.machines) - self.dead - set(self.finished)):
                self._do(name, self.machines[name].handle(Expired(), self.now), queue)
        assert set(self.finished) == set(self.machines) - self.dead
        return self

    def kill(self, name: str, queue: list[tuple[str, str, messages.Message]]) -> None:
        self.dead.add(name)
        if self.told:
            for other in sorted(set(self.machines) - self.dead - set(self.finished)):
                self._do(other, self.machines[other].handle(PeerDown(name), self.now), queue)

    def _do(self, name: str, effects: Iterable[object], queue: list[tuple[str, str, messages.Message]]) -> None:
        for effect in effects:
            if name in self.dead:
                return
            if isinstance(effect, Finished):
                self.finished[name] = effect
            elif isinstance(effect, Send):
                message: messages.Message = effect.message  # type: ignore[assignment]
                header, payload = messages.pack(message)
                message = messages.unpack(header, payload)
                if self.drop(name, effect.peer, message):
                    self.kill(name, queue)
                    return
                self.sent.append((name, effect.peer, message))
                queue.append((name, effect.peer, message))

    def averaged(self) -> set[str]:
        return {name for name, end in self.finished.items() if any(end.report.parts)}


@pytest.mark.parametrize("m", [3, 4, 5, 8, 16])
def test_the_weighted_mean_comes_out_to_the_precision_of_fixed_point(m: int) -> None:
    vectors = vectors_of(m, 37)
    weights = {name: 0.1 + 0.9 * index / m for index, name in enumerate(names(m))}
    group = Group(vectors, weights, seed=m).run()
    exact = np.average(list(vectors.values()), axis=0, weights=list(weights.values()))
    for end in group.finished.values():
        assert end.report.complete
        np.testing.assert_allclose(end.vector, exact, atol=m * 2**-15 / sum(weights.values()))
    assert len({end.vector.tobytes() for end in group.finished.values()}) == 1


@pytest.mark.parametrize("m", [1, 2, 17])
def test_a_group_in_which_a_sum_hides_nobody_is_refused(m: int) -> None:
    with pytest.raises(BadSetup, match="3 to 16"):
        Group(vectors_of(m, 4))


@pytest.mark.parametrize("value", [np.nan, np.inf, 2 * masking.VALUE_MAX])
def test_a_value_that_cannot_travel_is_refused_at_the_source(value: float) -> None:
    vectors = vectors_of(4, 4)
    vectors["p00"][2] = value
    with pytest.raises(BadContribution):
        Group(vectors)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_whoever_drops_out_at_any_step_the_others_end_with_one_sum_or_none(kind: type, after: int, told: bool) -> None:
    """p03 stops before its message number `after` of one kind."""
    count = itertools.count()
    vectors = vectors_of(8, 40, seed=after)

    def drop(sender: str, _to: str, message: messages.Message) -> bool:
        return sender == "p03" and isinstance(message, kind) and next(count) == after

    group = Group(vectors, drop=drop, told=told, seed=after).run()
    assert group.dead == {"p03"}
    for name, end in group.finished.items():
        for part, runs in zip(terms_of(8, 40).parts, end.report.parts, strict=True):
            inside = [peer for run in runs for peer, _ in run.contributors]
            assert not inside or len(inside) >= survivors_min(8)
            expected = np.mean([vectors[peer][part] for peer in inside], axis=0) if inside else vectors[name][part]
            np.testing.assert_allclose(end.vector[part], expected, atol=2**-13)
    for number in range(8):  # nobody holds another sum of a part
        sums = {end.report.parts[number] for end in group.finished.values() if end.report.parts[number]}
        assert len(sums) <= 1
    assert one_signature_each(group)


def one_signature_each(group: Group) -> bool:
    signed: dict[str, set[tuple[int, tuple[str, ...]]]] = {}
    for sender, _, message in group.sent:
        if isinstance(message, Agreed):
            signed.setdefault(sender, set()).add((message.attempt, message.survivors))
    return all(len(sets) == 1 for sets in signed.values())


def test_a_member_that_dies_before_the_receipts_costs_a_second_attempt_at_most() -> None:
    vectors = vectors_of(8, 16)
    group = Group(vectors, drop=lambda sender, _to, message: sender == "p03" and isinstance(message, Masked)).run()
    exact = np.mean([vector for name, vector in vectors.items() if name != "p03"], axis=0)
    for end in group.finished.values():
        part = terms_of(8, 16).parts[0]
        np.testing.assert_allclose(end.vector[part], exact[part], atol=2**-13)


def test_too_many_drop_outs_mean_a_second_attempt_and_then_none() -> None:
    vectors = vectors_of(8, 16)
    gone = {"p01", "p02", "p03"}
    group = Group(vectors, drop=lambda sender, _to, message: sender in gone and isinstance(message, Masked)).run()
    assert max(message.attempt for _, _, message in group.sent) == 1
    assert not any(isinstance(message, Agreed | Reveal) for _, _, message in group.sent)
    for name, end in group.finished.items():
        np.testing.assert_array_equal(end.vector, vectors[name])
        assert {absence.why for absence in end.report.missing} == {
            "the peer went down", "only 5 members could be in the sum",
        }  # fmt: skip


@given(st.integers(0, 10_000), st.sampled_from([3, 4, 5, 8]), st.floats(0, 0.4))
def test_two_different_sums_of_one_round_never_both_come_out(seed: int, m: int, loss: float) -> None:
    """Messages are lost at random, which makes views and attempts differ: the quorum rule has to hold all the same."""
    dice = random.Random(seed)
    group = Group(vectors_of(m, 2 * m, seed=seed), seed=seed, told=False)
    lost, signed = group._do, dict[str, set[tuple[int, tuple[str, ...]]]]()

    def lossy(name: str, effects: Iterable[object], queue: list[tuple[str, str, messages.Message]]) -> None:
        all_ = list(effects)
        for effect in all_:
            if isinstance(effect, Send) and isinstance(effect.message, Agreed):  # signed, whoever comes to see it
                signed.setdefault(name, set()).add((effect.message.attempt, effect.message.survivors))
        lost(name, [e for e in all_ if not isinstance(e, Send) or dice.random() >= loss], queue)

    group._do = lossy  # type: ignore[method-assign]
    group.run()
    assert all(len(sets) == 1 for sets in signed.values())
    revealed = {
        (message.attempt, tuple(sorted(message.lost))) for _, _, message in group.sent if isinstance(message, Reveal)
    }
    assert len({attempt for attempt, _ in revealed}) <= 1
    inside = {run.contributors for end in group.finished.values() for runs in end.report.parts for run in runs}
    assert len({tuple(name for name, _ in contributors) for contributors in inside}) <= 1
    for sender, _, message in group.sent:
        if isinstance(message, Reveal):
            ((_, agreed),) = signed[sender]
            assert not set(message.lost) & set(agreed)
            assert sender in agreed


def transcript(group: Group, eavesdroppers: set[str]) -> list[bytes]:
    """All that some members see together: what they are sent, in an order that says nothing."""
    return sorted(
        sender.encode() + to.encode() + b"".join(bytes(piece) for piece in messages.pack(message))
        for sender, to, message in group.sent
        if to in eavesdroppers
    )


@pytest.mark.parametrize("m", [4, 5, 8])
def test_colluders_see_the_same_whatever_the_honest_values_are_as_long_as_the_sum_is(
    m: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two honest members move a secret between them; with their mutual mask moved along, all that is seen is equal.

    The mutual mask is a keystream that nobody else has, so both worlds are as likely: the transcript says nothing.
    """
    colluders = set(names(m)[-colluders_max(m) :])
    one, other = names(m)[:2]
    before = vectors_of(m, 4 * m)
    # a multiple of 2^-16 and values on that grid, so that rounding is the same in both worlds
    before = {name: np.round(vector * 256).astype(np.float32) / 256 for name, vector in before.items()}
    moved = (np.random.default_rng(5).integers(-512, 512, 4 * m) / 256).astype(np.float32)
    after = before | {one: before[one] + moved, other: before[other] - moved}
    seen = transcript(Group(before, seed=m).run(), colluders)
    assert transcript(Group(after, seed=m).run(), colluders) != seen

    group = Group(after, seed=m)
    keys = {name: group.machines[name]._attempt.secret for name in (one, other)}
    pair = masking.pair_seed(keys[one], masking.public_key(keys[other]), group.machines[one]._attempt.context)
    plain = masking.mask
    parts = terms_of(m, 4 * m).parts

    def shifted(seed: bytes, part: int, n: int) -> np.ndarray:
        words = plain(seed, part, n)
        if seed == pair:  # `one` adds it, `other` subtracts it
            words = words.copy()
            words[:-1] -= masking.to_words(moved[parts[part]], 1.0)[:-1]
        return words

    monkeypatch.setattr(masking, "mask", shifted)
    assert transcript(group.run(), colluders) == seen


def test_a_single_masked_message_is_no_likelier_under_one_value_than_under_another() -> None:
    """Words under a mask are uniform: a chi-square over their top bytes does not tell zeros from anything."""
    words = np.concatenate([
        masking.masked(masking.to_words(np.zeros(999, np.float32), 1.0), part, bytes(32), {}, "a")
        for part in range(64)
    ])  # fmt: skip
    counts = np.bincount(words >> np.uint32(24), minlength=256)
    expected = words.size / 256
    assert float(((counts - expected) ** 2 / expected).sum()) < 350  # 255 degrees of freedom: 1 in 20,000


def test_after_a_signature_nothing_moves_a_member_to_another_attempt() -> None:
    """Try to make an honest member sign twice: survivors never answer, and their next attempt is offered."""
    group = Group(vectors_of(5, 10))
    p00 = group.machines["p00"]
    queue: list[tuple[str, str, messages.Message]] = []
    for name in sorted(group.machines):
        group._do(name, group.machines[name].start(0.0), queue)
    while p00.phase is not Phase.SIGNATURES:
        sender, to, message = queue.pop(0)
        group._do(to, group.machines[to].handle(Received(sender, message), 0.0), queue)  # type: ignore[arg-type]
    for peer in names(5)[1:]:
        offer = Hello(task="t", round=3, context=p00.terms.context, attempt=1, key=bytes([9] * 32), reference=b"")
        assert p00.handle(Received(peer, offer), 0.5) == []  # type: ignore[arg-type]
    effects = p00.handle(Expired(), WAIT_S)
    assert isinstance(end := effects[0], Finished)
    assert not any(end.report.parts)
    assert p00._attempt.number == 0
    with pytest.raises(AssertionError, match="after a signature"):
        p00._again("never", 2.0)


def test_a_forged_signature_or_other_survivors_end_the_round_without_a_reveal() -> None:
    group = Group(vectors_of(5, 10))
    inner = group._do

    def tampered(name: str, effects: Iterable[object], queue: list[tuple[str, str, messages.Message]]) -> None:
        changed = [
            Send(e.peer, msgspec.structs.replace(e.message, signature=bytes(64)))
            if name == "p02" and isinstance(e, Send) and isinstance(e.message, Agreed)
            else e
            for e in effects
        ]
        inner(name, changed, queue)

    group._do = tampered  # type: ignore[method-assign]
    group.run()
    for name, end in group.finished.items():
        if name != "p02":
            assert not any(end.report.parts)
            assert "signature" in end.report.refused[0].why
    assert not [m for s, _, m in group.sent if isinstance(m, Reveal) and s != "p02"]


@given(st.data())
def test_survivors_fit_each_other_and_do_not_depend_on_the_order(data: st.DataObject) -> None:
    m = data.draw(st.integers(1, 8))
    everyone = names(m)
    some = st.frozensets(st.sampled_from(everyone))
    receipts = {name: Receipt(data.draw(some) | {name}, data.draw(some) | {name}) for name in everyone}
    found = survivors(receipts)
    for one, other in itertools.permutations(found, 2):
        assert other in receipts[one].heard
        assert other in receipts[one].received
    assert found == survivors(dict(reversed(list(receipts.items()))))
    full = {name: Receipt(frozenset(everyone), frozenset(everyone)) for name in everyone}
    assert survivors(full) == everyone


def test_two_quorums_always_share_an_honest_member() -> None:
    for m in range(3, masking.MEMBERS_MAX + 1):
        assert survivors_min(m) <= m
        assert 2 * survivors_min(m) - m > colluders_max(m)
        assert survivors_min(m) - colluders_max(m) >= 3


@given(st.binary(max_size=200))
def test_what_is_no_message_is_refused_as_such(junk: bytes) -> None:
    try:
        message = messages.unpack(junk, b"")
    except BadContribution:
        return
    assert messages.pack(message)[0]
