"""Rounds whose members see each other differently: they average in the groups that can be, and say with whom."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from lepton.gossip.averager import Averager
from lepton.gossip.config import Config
from lepton.gossip.events import Finished, PeerDown, Ready, Received, Send
from lepton.gossip.groups import rank
from lepton.gossip.messages import Invite, Status, View

if TYPE_CHECKING:
    from .conftest import World

WorldType = Callable[..., "World"]
CONFIG, DIMENSION = Config.test(), 16


def averager(me: str, **changes: Any) -> Averager:
    settings: dict[str, Any] = {"mesh": b"m", "dimension": DIMENSION, "codec_name": "float32", "config": CONFIG}
    return Averager(me, "task", **(settings | changes))


class Rounds:
    """Nodes with views of their own that average numbers of their own, again and again, and train nothing between."""

    def __init__(
        self, world: WorldType, views: Mapping[str, str], seed: int, *, rounds: int = 1, size: int = 8, **links: Any
    ) -> None:
        """``views`` says whom each node sees, and in truth hears: nothing else arrives."""
        self.views, self.rounds = dict(views), rounds
        self.nodes = {name: averager(name, group_size=size, rng_seed=seed) for name in views}
        self.world = world({name: Deaf(node, views[name]) for name, node in self.nodes.items()}, seed, **links)
        self.world.on_outcome = self.on_outcome
        self.rng = np.random.default_rng(seed)
        self.first = {name: self.rng.normal(size=DIMENSION).astype(np.float32) for name in views}
        self.vectors = dict(self.first)
        self.contributed: dict[tuple[str, int], np.ndarray[Any, np.dtype[np.float32]]] = {}
        for name in views:
            self.train(name, 0)

    def train(self, name: str, round_: int) -> None:
        self.contributed[name, round_] = self.vectors[name]
        ready = Ready(round_, self.vectors[name], 1.0, tuple(sorted({name, *self.views[name]})))
        self.world.event(self.world.now + self.rng.uniform(0.0, 0.05), name, ready)

    def on_outcome(self, name: str, outcome: Any) -> None:
        if isinstance(outcome, Finished):
            self.vectors[name] = outcome.vector
            if outcome.round + 1 < self.rounds:
                self.train(name, outcome.round + 1)

    def play(self) -> "Rounds":
        self.world.run()
        for name in self.views:
            if name not in self.world.crashed:
                assert len(self.ends(name)) == self.rounds, name
        self.check_truth()
        return self

    def ends(self, name: str) -> list[Finished]:
        return [outcome for outcome in self.world.outcomes[name] if isinstance(outcome, Finished)]

    def with_whom(self, name: str) -> list[set[str]]:
        """Return for each round whose values came into this node's model."""
        return [
            {who for runs in end.report.parts for run in runs for who, _ in run.contributors} for end in self.ends(name)
        ]

    def check_truth(self) -> None:
        """Whoever calls a model by one name has the same one, and each part is the mean of those who are named."""
        known: dict[bytes, bytes] = {}
        for name in self.views:
            for end in self.ends(name):
                if end.report.agreed:
                    assert known.setdefault(end.report.reference, end.vector.tobytes()) == end.vector.tobytes()
                for run in (run for runs in end.report.parts for run in runs if run.contributors):
                    values = [self.contributed[who, end.round][run.start : run.stop] for who, _ in run.contributors]
                    assert np.allclose(end.vector[run.start : run.stop], np.mean(values, axis=0), atol=1e-5)


class Deaf:
    """A node that hears those alone whom it sees."""

    def __init__(self, node: Averager, hears: str) -> None:
        self._node, self._hears = node, hears

    @property
    def deadline(self) -> float:
        return self._node.deadline

    def handle(self, event: Any, now: float) -> list[Any]:
        heard = not isinstance(event, Received) or event.peer in self._hears
        return self._node.handle(event, now) if heard else []


@pytest.mark.parametrize("loss", [0.0, 0.1])
@pytest.mark.parametrize("seed", range(2))
def test_of_three_in_a_line_the_middle_one_averages_with_both_ends_in_turn(
    world: WorldType, seed: int, loss: float
) -> None:
    line = Rounds(world, {"a": "b", "b": "ac", "c": "b"}, seed, rounds=20, loss=loss).play()
    pairs = line.with_whom("b")
    assert sum(len(names) == 2 for names in pairs) >= 18
    assert {frozenset(names) for names in pairs} >= {frozenset("ab"), frozenset("bc")}
    last, first = np.array(list(line.vectors.values())), np.array(list(line.first.values()))
    assert last.std(axis=0).max() < 0.02 * first.std(axis=0).max(), "all three came to one model"


@pytest.mark.parametrize("seed", range(5))
def test_one_that_only_some_have_heard_of_keeps_nobody_from_averaging(world: WorldType, seed: int) -> None:
    knows, knows_not = "abcdefghi", "abcdefgh"
    views = {name: knows if name in "abcdi" else knows_not for name in knows}
    rounds = Rounds(world, views, seed).play()
    together = [names for name in knows for names in rounds.with_whom(name)]
    assert sum(len(names) > 1 for names in together) >= 8  # one may be left over
    assert max(map(len, together)) >= 4
    assert all(end.report.agreed for name in knows for end in rounds.ends(name))


@pytest.mark.parametrize("seed", range(4))
def test_many_groups_in_which_views_differ_by_one_each_find_new_ones(world: WorldType, seed: int) -> None:
    names = "abcdefghijklmnopqrst"
    rng = np.random.default_rng(seed)
    missing = {name: str(rng.choice([other for other in names if other != name])) for name in names}
    views = {name: names.replace(missing[name], "") for name in names}
    rounds = Rounds(world, views, seed).play()
    alone = [name for name in names if rounds.with_whom(name) == [{name}]]
    assert len(alone) <= 3
    ends = [end for name in names for end in rounds.ends(name)]
    assert sum(end.report.agreed for end in ends) >= 18  # a word that was overtaken may part one of them
    assert max(len(end.report.members) for end in ends) <= 8


@pytest.mark.parametrize("seed", range(2))
def test_views_that_change_in_every_round_still_lead_to_one_model(world: WorldType, seed: int) -> None:
    names = "abcdefghijkl"
    rounds = Rounds(world, dict.fromkeys(names, names), seed, rounds=20, loss=0.05)
    ready = rounds.train

    def train(name: str, round_: int) -> None:  # each leaves out a fifth of the others, and never the same
        rounds.views[name] = "".join(other for other in names if other == name or rounds.rng.random() > 0.2)
        ready(name, round_)

    rounds.train = train  # type: ignore[method-assign]
    rounds.play()
    last, first = np.array(list(rounds.vectors.values())), np.array(list(rounds.first.values()))
    assert last.std(axis=0).max() < 0.05 * first.std(axis=0).max()
    alone = sum(len(names) == 1 for name in rounds.views for names in rounds.with_whom(name))
    assert alone < 0.1 * 12 * 20


def test_one_that_is_gone_before_the_exchange_owns_no_part_of_it(world: WorldType) -> None:
    """Nobody would have a mean for its part, and all would keep their own values there."""
    rounds = Rounds(world, dict.fromkeys("abcd", "abcd"), seed=3)
    rounds.world.crash_at = {"d": 0}
    rounds.world.down_after_s = 0.1
    rounds.play()
    for name in "abc":
        (end,) = rounds.ends(name)
        assert end.report.members == ("a", "b", "c")
        assert end.report.complete
        assert [(absence.peer, absence.why) for absence in end.report.missing] == [("d", "the peer went down")]


@pytest.mark.parametrize("step", range(0, 60, 9))
def test_whoever_dies_while_groups_are_formed_leaves_nobody_waiting(world: WorldType, step: int) -> None:
    views = {"a": "bcde", "b": "acd", "c": "abde", "d": "abc", "e": "ac"}
    for victim in views:
        rounds = Rounds(world, views, step, down_after_s=None if step % 2 else 0.03)
        rounds.world.crash_at = {victim: step}
        rounds.play()


def test_where_all_see_the_same_not_a_word_is_said_of_groups(world: WorldType) -> None:
    rounds = Rounds(world, dict.fromkeys("abcd", "abcd"), seed=1).play()
    assert not [line for line in rounds.world.history if "View" in line or "Invite" in line]


# -- message by message -----------------------------------------------------------------------------------------------


class Story:
    """One node, and what is said to it by hand."""

    def __init__(self, me: str, sees: str) -> None:
        self.node = averager(me)
        self.sent(self.node.handle(Ready(0, np.ones(DIMENSION, dtype=np.float32), 1.0, tuple(sorted(me + sees))), 0.0))

    def sent(self, effects: list[Any]) -> list[str]:
        self.last = effects
        return [f"{type(e.message).__name__} to {e.peer}" if isinstance(e, Send) else "the end" for e in effects]

    def hear(self, peer: str, message: Any, now: float = 0.01) -> list[str]:
        return self.sent(self.node.handle(Received(peer, message), now))

    def status(self, members: str) -> Status:
        """Give what somebody says first who sees these."""
        name = members[0]
        other = averager(name)
        effects = other.handle(Ready(0, np.ones(DIMENSION, dtype=np.float32), 1.0, tuple(sorted(members))), 0.0)
        (status, *_) = [effect.message for effect in effects if isinstance(effect, Send)]
        assert isinstance(status, Status)
        return status


def first_of(*names: str) -> str:
    """Return who leads round 0 of these."""
    return min(names, key=lambda name: rank(b"m", "task", 0, name))


def test_the_first_in_rank_invites_and_the_other_follows() -> None:
    leader = first_of("a", "b")
    other = "b" if leader == "a" else "a"
    one, two = Story(leader, other + "x"), Story(other, leader + "y")
    assert one.hear(other, two.status(other + leader + "y")) == [f"View to {other}", "View to x"]
    (view, _) = one.last
    assert two.hear(leader, view.message) == [f"View to {leader}", "View to y", f"View to {leader}"]
    assert one.hear(other, two.last[0].message) == [f"View to {other}"]  # it asks, and x may still come
    effects = one.sent(one.node.handle(PeerDown("x"), 0.02))
    assert effects[:2] == [f"Invite to {other}", f"Status to {other}"]
    invite = one.last[0].message
    assert isinstance(invite, Invite)
    assert invite.members == ("a", "b")
    assert two.hear(leader, invite) == ["View to y", f"Status to {leader}"]
    assert not two.last[0].message.free


def test_an_invitation_by_a_stranger_is_declined_while_nothing_is_contested() -> None:
    story = Story("a", "b")
    head = {"task": "task", "round": 0, "context": b"c", "instance": 1}
    assert story.hear("z", Invite(**head, members=("a", "z"))) == ["View to z"]  # type: ignore[arg-type]
    assert not story.last[0].message.free


@pytest.mark.parametrize("members", [("b", "c"), ("c", "a", "b"), ("a", "c"), ("a", "a", "b")])
def test_an_invitation_that_makes_no_group_is_declined(members: tuple[str, ...]) -> None:
    story = Story("a", "b")
    head = {"task": "task", "round": 0, "context": b"c", "instance": 1}
    said = story.hear("b", Invite(**head, members=members))  # type: ignore[arg-type]
    assert said[-1] == "View to b"
    assert story.last[-1].message.free


def test_who_finds_that_the_others_have_begun_follows_them() -> None:
    story = Story("a", "bc")
    status = story.status("bac")
    story.hear("b", status)
    story.sent(story.node.handle(PeerDown("c"), 0.02))
    begun = View(task="task", round=0, context=status.context, instance=1, hears=b"", free=False)
    assert "Contribution to b" in story.hear("b", begun)


def test_one_that_asks_when_the_round_is_over_is_told_so() -> None:
    story = Story("a", "")
    assert isinstance(story.last[-1], Finished)
    status = story.status("bac")
    assert story.hear("b", status, now=1.0) == ["View to b"]
    assert not story.last[0].message.free


def test_nobody_waits_for_a_leader_that_says_nothing_more() -> None:
    leader = first_of("a", "b")
    other = "b" if leader == "a" else "a"
    story = Story(other, leader)
    story.hear(leader, story.status(leader + other + "y"))
    free = View(task="task", round=0, context=b"c", instance=1, hears=b"", free=True)
    story.hear(leader, free)
    times = 0
    while math.isfinite(story.node.deadline) and times < 100:
        times += 1
        end = story.sent(story.node.handle(Received(leader, free), story.node.deadline))
        if "the end" in end:
            break
    assert "the end" in end
    assert story.last[-1].report.members == (other,)
