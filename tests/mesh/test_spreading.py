"""How the picture spreads: whatever is lost, doubled, restarted or lied about, all end up with the same records."""

import itertools
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lepton.mesh import limits
from lepton.mesh.identity import PeerId
from lepton.mesh.messages import Message, pack
from lepton.mesh.reconciling import Copy
from lepton.mesh.records import Content, RecordStore, SignedRecord
from lepton.mesh.spreading import (
    Accuse,
    Answered,
    Asked,
    Call,
    Changed,
    Config,
    Effect,
    Expired,
    Failed,
    Forgot,
    Heard,
    Offend,
    PeerGone,
    PeerHere,
    Published,
    Reply,
    Save,
    Spreading,
)
from lepton.mesh.swaps import Compare, Compared, Survey, Surveyed, Swap, Swapped, joined

from .fakes import Note, identity
from .talkers import Everybody, Link, Node, Talkers

ALICE, BOB, EVE = map(identity, ("alice", "bob", "eve"))
AWAY = bytes(16)  # the fingerprint of nobody
CONFIG = Config()


def machine(store: RecordStore, proofs: Everybody | None = None) -> Spreading:
    return Spreading(ALICE.peer_id, store, proofs or Everybody(), random.Random(1))


def calls(effects: list[Effect]) -> list[Call]:
    return [effect for effect in effects if isinstance(effect, Call)]


def exchange_with(talk: Spreading, peer: PeerId) -> Call:
    """Let a peer come and time pass until this node asks it."""
    begun = calls(talk.handle(PeerHere(peer), 0.0)) or calls(talk.handle(Expired(), talk.deadline))
    [call] = begun
    return call


# -- one machine -------------------------------------------------------------------------------------------------------


def test_what_is_durable_is_saved_before_it_is_said_and_what_is_passing_is_not() -> None:
    store = RecordStore(ALICE, 1)
    talk = machine(store)
    talk.handle(PeerHere(BOB.peer_id), 0.0)
    kinds = [type(effect) for effect in talk.handle(Published(store.publish("task", "t", 1, durable=True)), 0.0)]
    assert kinds == [Save, Changed, Call]
    assert not any(isinstance(effect, Save) for effect in talk.handle(Published(store.publish("note", "n", 1)), 0.0))


def test_what_others_say_durably_is_saved_once_for_all_that_comes_together() -> None:
    bob = RecordStore(BOB, 1)
    talk = machine(RecordStore(ALICE, 1))
    talk.handle(Expired(), 0.0)
    for n in range(3):
        said = bob.publish("task", f"t{n}", n, durable=True)
        effects = talk.handle(Asked(BOB.peer_id, Swap(records=(said.signed,))), 0.1 * n)
        assert [type(effect) for effect in effects] == [Changed, Reply]
    saves = [effect for effect in talk.handle(Expired(), 1.0) if isinstance(effect, Save)]
    assert [len(save.records) for save in saves] == [3]
    assert not [effect for effect in talk.handle(Expired(), 5.0) if isinstance(effect, Save)]


def test_equal_fingerprints_end_an_exchange_with_one_small_message_each_way() -> None:
    store = RecordStore(ALICE, 1)
    for n in range(100):
        store.publish("note", f"n{n}", n)
    talk = machine(store)
    call = exchange_with(talk, BOB.peer_id)
    assert isinstance(call.message, Compare)
    assert len(pack(call.message)) < 64
    effects = talk.handle(Answered(call.number, Compared(fingerprint=store.fingerprint)), 1.0)
    assert effects == [Heard(BOB.peer_id, ok=True)]


def test_once_a_period_one_connected_peer_is_asked_and_more_seldom_while_all_are_equal() -> None:
    store = RecordStore(ALICE, 1)
    talk = machine(store)
    peers = {identity(f"peer {n}").peer_id for n in range(5)}
    for peer in sorted(peers):
        for call in calls(talk.handle(PeerHere(peer), 0.0)):
            talk.handle(Answered(call.number, Compared(fingerprint=store.fingerprint)), 0.0)
    asked, times = list[PeerId](), list[float]()
    while len(asked) < 100:
        now = talk.deadline
        for call in calls(talk.handle(Expired(), now)):
            asked.append(call.peer)
            times.append(now)
            talk.handle(Answered(call.number, Compared(fingerprint=store.fingerprint)), now)
    assert set(asked) == peers
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert 0.8 * CONFIG.interval_s <= gaps[0]
    assert all(0.8 * CONFIG.calm_s <= gap <= 1.2 * CONFIG.calm_s + 1e-6 for gap in gaps[10:])
    assert sorted(gaps[:3]) == gaps[:3]


@pytest.mark.parametrize("stirring", ["a word of its own", "somebody comes", "a difference", "no answer"])
def test_whatever_is_new_makes_periods_short_again(stirring: str) -> None:
    store = RecordStore(ALICE, 1)
    talk = machine(store)
    same = Compared(fingerprint=store.fingerprint)
    for call in calls(talk.handle(PeerHere(BOB.peer_id), 0.0)):
        talk.handle(Answered(call.number, same), 0.0)
    for _ in range(10):
        now = talk.deadline
        for call in calls(talk.handle(Expired(), now)):
            talk.handle(Answered(call.number, same), now)
    assert talk._exchange_at > now + 5 * CONFIG.interval_s
    match stirring:
        case "a word of its own":
            talk.handle(Published(store.publish("note", "a", Note())), now)
        case "somebody comes":
            talk.handle(PeerHere(identity("somebody").peer_id), now)
        case _:
            now = talk._exchange_at
            (call,) = calls(talk.handle(Expired(), now))
            other = Compared(fingerprint=bytes(16))
            talk.handle(Failed(call.number) if stirring == "no answer" else Answered(call.number, other), now)
    assert talk._exchange_at <= now + 1.2 * CONFIG.interval_s


def test_a_peer_that_answers_nothing_is_told_of_and_at_most_one_exchange_with_it_waits() -> None:
    talk = machine(RecordStore(ALICE, 1))
    call = exchange_with(talk, BOB.peer_id)
    assert calls(talk.handle(Expired(), talk.deadline)) == []
    assert talk.handle(Failed(call.number), 3.0) == [Heard(BOB.peer_id, ok=False)]
    assert talk.handle(Failed(call.number), 3.0) == []  # a call ends once
    talk.handle(PeerGone(BOB.peer_id), 3.0)
    assert calls(talk.handle(Expired(), talk.deadline)) == []


def test_a_push_is_repeated_a_few_times_and_then_left_to_the_exchanges() -> None:
    store = RecordStore(ALICE, 1)
    talk = machine(store)
    talk.handle(PeerHere(BOB.peer_id), 0.0)
    tried = []
    [push] = calls(talk.handle(Published(store.publish("note", "x", 1)), 0.0))
    while True:
        tried.append(push)
        again = calls(talk.handle(Failed(push.number), 1.0))
        if not again:
            break
        [push] = again
    assert [call.message for call in tried] == [tried[0].message] * 3


def test_pushes_to_one_peer_follow_each_other_and_only_the_latest_of_a_key_goes() -> None:
    store = RecordStore(ALICE, 1)
    talk = machine(store)
    talk.handle(PeerHere(BOB.peer_id), 0.0)
    [first] = calls(talk.handle(Published(store.publish("note", "x", 0)), 0.0))
    for n in range(1, 5):
        assert calls(talk.handle(Published(store.publish("note", "x", n)), 0.0)) == []
    [second] = calls(talk.handle(Answered(first.number, Swapped(fingerprint=AWAY)), 0.1))
    assert isinstance(second.message, Swap)
    assert [item.content for item in second.message.records] == [store.all()[0].signed.content]
    assert calls(talk.handle(Answered(second.number, Swapped(fingerprint=AWAY)), 0.2)) == []


def test_who_forgets_an_owner_saves_that_too() -> None:
    bob = RecordStore(BOB, 1)
    store = RecordStore(ALICE, 1, [bob.publish("task", "t", 1, durable=True).signed])
    talk = machine(store)
    talk.handle(Expired(), 0.0)
    store.forget(BOB.peer_id)
    assert talk.handle(Forgot(), 0.0) == [Changed()]
    assert [effect.records for effect in talk.handle(Expired(), 1.5) if isinstance(effect, Save)] == [[]]


def test_a_forged_record_is_its_senders_offence_and_what_came_before_it_counts() -> None:
    bob = RecordStore(BOB, 1)
    good = bob.publish("note", "good", 1).signed
    bad = SignedRecord(content=bob.publish("note", "bad", 1).signed.content, signature=bytes(64))
    store = RecordStore(ALICE, 1)
    effects = machine(store).handle(Asked(BOB.peer_id, Swap(records=(good, bad))), 0.0)
    assert [type(effect) for effect in effects] == [Changed, Offend]
    assert [record.name for record in store.all()] == ["good"]


def test_who_contradicts_itself_is_named_once() -> None:
    store = RecordStore(ALICE, 1)
    talk = machine(store)
    said = [RecordStore(EVE, 1).publish("note", "x", n).signed for n in range(3)]
    accused = [
        effect
        for item in said
        for effect in talk.handle(Asked(BOB.peer_id, Swap(records=(item,))), 0.0)
        if isinstance(effect, Accuse)
    ]
    assert [effect.owner for effect in accused] == [EVE.peer_id]


def test_who_meets_words_of_its_own_that_it_forgot_saves_and_says_its_own_above_them_at_once() -> None:
    before = RecordStore(ALICE, 5).publish("task", "t", "before", durable=True)
    store = RecordStore(ALICE, 1)
    talk = machine(store)
    talk.handle(PeerHere(BOB.peer_id), 0.0)
    talk.handle(PeerGone(BOB.peer_id), 0.0)
    talk.handle(Published(store.publish("task", "t", "now", durable=True)), 0.0)
    talk.handle(PeerHere(BOB.peer_id), 0.0)
    effects = talk.handle(Asked(BOB.peer_id, Swap(records=(before.signed,))), 0.0)
    [save, push] = [effect for effect in effects if isinstance(effect, Save | Call)]
    assert save == Save([store.all()[0].signed], first=True)
    assert isinstance(push, Call)
    assert push.message == Swap(records=(store.all()[0].signed,))
    assert store.all()[0].version > before.version


def test_a_difference_that_no_news_explains_is_looked_for_and_one_with_news_waits() -> None:
    for news, asks in ((b"", Survey), (bytes(16), type(None))):
        talk = machine(RecordStore(ALICE, 1))
        first = exchange_with(talk, BOB.peer_id)
        talk.handle(
            Answered(first.number, Compared(fingerprint=talk._copy.store.fingerprint)), 0.0
        )  # now they have met
        [call] = calls(talk.handle(Expired(), talk.deadline))
        talk._copy._useless.update(dict.fromkeys([bytes(16)]))  # type: ignore[list-item]
        asked = calls(talk.handle(Answered(call.number, Compared(fingerprint=b"x" * 16, news=news)), 1.0))
        assert [type(call.message) for call in asked] == [asks] * len(asked)
        assert bool(asked) == (asks is Survey)


def test_news_and_what_is_useless_are_bounded() -> None:
    copy = Copy(RecordStore(ALICE, 1), Everybody())
    for n in range(4):
        store = RecordStore(identity(f"owner {n}"), 1)
        copy.take([store.publish("note", f"n{k}", k).signed for k in range(limits.RECORDS_PER_OWNER_MAX)], {})
    extra = RecordStore(identity("owner 9"), 1)
    copy.take([extra.publish("note", "last", 1).signed], {})
    assert len(copy.news()) == limits.NEWS_MAX
    assert copy.news()[0] == extra.all()[0].id
    assert len(copy._news) == 2 * limits.NEWS_MAX
    for n in range(limits.USELESS_MAX + 10):
        copy._useless[bytes([1]) * 8 + n.to_bytes(8, "big")] = None  # type: ignore[index]
        copy.take([], {})
    copy.ask_again()
    assert not copy._useless


# -- what a liar answers -----------------------------------------------------------------------------------------------


def endless(call: Call, rng: random.Random) -> Compared | Surveyed | Swapped:
    """Answer so that there always seems to be more."""
    ids = joined(rng.randbytes(16) for _ in range(limits.NEWS_MAX))  # type: ignore[misc]
    match call.message:
        case Compare():
            return Compared(fingerprint=rng.randbytes(16), news=ids)
        case Survey():
            return Surveyed(buckets=bytes(range(256)), ids=ids)
        case Swap():
            return Swapped(fingerprint=rng.randbytes(16), unproven=(ALICE.peer_id, EVE.peer_id))


@pytest.mark.parametrize("seed", range(5))
def test_an_exchange_ends_whatever_the_peer_says(seed: int) -> None:
    store, rng = RecordStore(ALICE, 1), random.Random(seed)
    for n in range(50):
        store.publish("note", f"n{n}", n)
    talk = machine(store)
    pending, turns = [exchange_with(talk, BOB.peer_id)], 0
    while pending:
        turns += 1
        call = pending.pop()
        pending += calls(talk.handle(Answered(call.number, endless(call, rng)), 1.0))
    assert turns < 200
    assert len(store.all()) == 50


class Withholding:
    """A liar that keeps a third party's records to itself and claims to hold, and to have given, all there is."""

    def __init__(self, victim: PeerId) -> None:
        self.victim = victim
        self.withheld = 0

    def __call__(self, message: Message) -> Message:
        match message:
            case Swap() | Swapped():
                kept = tuple(item for item in message.records if self._mine(item))
                self.withheld += len(message.records) - len(kept)
                return msgspec.structs.replace(message, records=kept)
            case _:
                return message

    def _mine(self, item: SignedRecord) -> bool:
        return msgspec.msgpack.decode(item.content, type=Content).owner != self.victim


@pytest.mark.parametrize("seed", range(4))
def test_a_liar_between_two_others_hides_a_record_for_no_longer_than_they_are_apart(seed: int) -> None:
    """With heads that say how far one has read, one lie hid a third party's record for good."""
    world = Talkers(3, seed)
    alice, liar, bob = world.nodes.values()
    liar.twist = twist = Withholding(alice.id)
    world.join(alice.id, liar.id)
    world.join(liar.id, bob.id)
    world.publish(alice, "note", "hidden", Note(text="1"))
    world.run(10.0)
    world.publish(alice, "note", "later", Note(text="2"))
    world.run(70.0)
    assert twist.withheld
    assert not bob.store.of(alice.id)
    world.join(alice.id, bob.id)
    took = world.until(lambda: len(bob.store.of(alice.id)) == 2, within_s=5.0)
    assert took < 5.0


def test_one_liar_among_many_does_not_keep_anything_from_anybody() -> None:
    world = Talkers(12, 3)
    world.join_all()
    alice, liar, *_ = world.nodes.values()
    liar.twist = Withholding(alice.id)
    for peer in list(alice.links)[:8]:  # most hear of it from others only, at times from the liar
        world.cut(alice.id, peer)
    world.publish(alice, "note", "x", Note(text="1"))
    world.until(world.agree, within_s=60.0)
    assert all(node.store.of(alice.id) for node in world.nodes.values())


# -- many of them ------------------------------------------------------------------------------------------------------


class Story:
    """A world in which everything goes wrong, by dice."""

    def __init__(self, seed: int, size: int, loss: float) -> None:
        self.world = Talkers(size, seed, link=Link(loss=loss, duplication=0.1, jitter_s=0.3))
        self.rng = random.Random(seed)
        self.world.join_all()
        self.backups: dict[PeerId, list[SignedRecord]] = {}
        self.last: dict[tuple[PeerId, str, str], bytes] = {}

    def node(self) -> Node:
        return self.rng.choice(list(self.world.nodes.values()))

    def publish(self) -> None:
        node, kind = self.node(), self.rng.choice(["note", "task"])
        text = Note(text=str(self.rng.random()))
        record = self.world.publish(node, kind, self.rng.choice("abc"), text, durable=kind == "task")
        self.last[record.key] = record.content.value

    def part(self) -> None:
        one, other = self.node(), self.node()
        if one is not other and other.id in one.links:
            self.world.cut(one.id, other.id)

    def crash(self) -> None:
        node = self.node()
        self.world.restart(node)
        self._forget_passing(node)

    def backup(self) -> None:
        node = self.node()
        if node.id in self.backups:
            self.world.restart(node, backup=self.backups[node.id])  # what only its disk had may be gone
            self.last = {key: value for key, value in self.last.items() if key[0] != node.id}
        else:
            self.backups[node.id] = list(node.disk)

    def _forget_passing(self, node: Node) -> None:
        self.last = {key: value for key, value in self.last.items() if key[0] != node.id or key[1] == "task"}

    def heal(self) -> None:
        for one in self.world.nodes.values():
            for other in self.world.nodes.values():
                if one is not other and other.id not in one.links:
                    self.world.join(one.id, other.id)


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(2, 6), st.sampled_from([0.0, 0.1, 0.3]), st.integers(0, 40))
def test_any_story_converges_and_loses_no_word(seed: int, size: int, loss: float, steps: int) -> None:
    story = Story(seed, size, loss)
    world = story.world
    acts = [story.publish, story.part, story.heal, story.crash, story.backup]
    for _ in range(steps):
        story.rng.choices(acts, [8, 3, 2, 1, 1])[0]()
        world.run(story.rng.random())
    world.link = Link()
    story.heal()
    for node in list(world.nodes.values()):  # who came back and has not spoken since is not known to have been away
        world.publish(node, "note", "here", Note())
    world.until(world.agree, within_s=200.0)
    assert world.unsaved == []
    assert world.offences == []
    somebody = next(iter(world.nodes.values()))
    held = {record.key: record.content.value for record in somebody.store.all()}
    assert {key: held.get(key) for key in story.last} == story.last


def test_a_change_reaches_a_hundred_that_are_not_all_connected_within_a_few_periods() -> None:
    world = Talkers(100, 1)
    for one, other in world.rings(3):
        world.join(one, other)
    world.until(world.agree, within_s=30.0)
    first = next(iter(world.nodes.values()))
    said = world.publish(first, "note", "x", Note(text="1"))
    took = world.until(lambda: all(node.store.with_id(said.id) for node in world.nodes.values()), within_s=20.0)
    assert took < 8 * CONFIG.interval_s
    world.until(world.agree, within_s=5.0)


def test_two_halves_that_were_apart_are_one_again() -> None:
    world = Talkers(40, 2)
    links = world.rings(4)
    half = set(list(world.nodes)[:20])
    across = [link for link in links if len(half & set(link)) == 1]
    for one, other in set(links) - set(across):
        world.join(one, other)
    for node in world.nodes.values():
        for n in range(20):  # more than one message holds, and more than the news names
            world.publish(node, "note", f"n{n}", Note(text="x" * 200))
    world.run(20.0)
    for one, other in across:
        world.join(one, other)
    assert world.until(world.agree, within_s=30.0) < 15 * CONFIG.interval_s
    assert all(len(node.store.all()) == 800 for node in world.nodes.values())


def test_a_newcomer_reads_all_that_a_full_store_holds() -> None:
    world = Talkers(2, 5)
    full, new = world.nodes.values()
    for n in range(30):
        store = RecordStore(identity(f"owner {n}"), 1)
        full.store.merge(
            [store.publish("note", f"n{k}", Note(text="x" * 100)).signed for k in range(100)], known=lambda _: True
        )
    world.join(full.id, new.id)
    world.until(world.agree, within_s=20.0)
    assert len(new.store.all()) == 3000


def test_who_is_revoked_leaves_no_word_behind_even_while_some_have_not_heard() -> None:
    world = Talkers(5, 1)
    world.join_all()
    *others, thief = world.nodes.values()
    world.publish(thief, "task", "t", Note(), durable=True)
    world.run(5.0)
    for node in others:
        world.cut(node.id, thief.id)
        node.proofs.revoked.add(thief.id)
        node.store.forget(thief.id)
        world.give(node, Forgot())
        world.run(1.5)
    world.run(70.0)
    assert all(not node.store.of(thief.id) for node in others)
    assert all(not node.disk for node in others)


def test_clocks_that_are_hours_apart_change_nothing() -> None:
    """What a machine is given of the time is its own, and nothing of it goes out."""
    said = {}
    for skew_s in (0.0, 5 * 3600.0):
        stores = [RecordStore(who, 1) for who in (ALICE, BOB)]
        talk, other = (
            Spreading(who.peer_id, store, Everybody(), random.Random(1))
            for who, store in zip((ALICE, BOB), stores, strict=True)
        )
        talk.handle(PeerHere(BOB.peer_id), skew_s)
        [push] = calls(talk.handle(Published(stores[0].publish("note", "x", 1)), skew_s))
        assert isinstance(push.message, Swap)
        [*_, reply] = other.handle(Asked(ALICE.peer_id, push.message), 0.0)
        assert isinstance(reply, Reply)
        talk.handle(Answered(push.number, reply.message), skew_s)
        assert stores[0].fingerprint == stores[1].fingerprint
        said[skew_s] = pack(push.message)
    assert len(set(said.values())) == 1
