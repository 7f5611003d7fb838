"""The replicated picture: whatever is lost, doubled or comes late, all who talk end up with the same."""

import itertools
import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh import limits
from lepton.mesh.errors import PeerError, UsageError
from lepton.mesh.identity import PeerId
from lepton.mesh.messages import pack, unpack
from lepton.mesh.records import Content, Digest, Record, RecordStore, SignedRecord, Version, open_record

from .fakes import Note, identity

ALICE, BOB, CAROL, EVE = map(identity, ("alice", "bob", "carol", "eve"))
EVERYONE = {who.peer_id for who in (ALICE, BOB, CAROL, EVE)}
START = Digest()


def anyone(_owner: PeerId) -> bool:
    return True


def take(
    store: RecordStore,
    records: Iterable[Record],
    since: Digest = START,
    known: Callable[[PeerId], bool] = anyone,
) -> list[Record]:
    return store.merge([record.signed for record in records], since=since, known=known)


def read(at: RecordStore, frm: RecordStore, most: int = limits.RECORDS_PER_DELTA_MAX) -> list[Record]:
    """One message of an exchange: what `at` lacks, from `frm`."""
    digest = unpack(pack(at.digest()), Digest)
    return take(at, frm.newer_than(digest)[:most], digest)


def picture(store: RecordStore, kind: str = "note", present: set[PeerId] = EVERYONE) -> dict[tuple[str, str], str]:
    return {(record.owner, record.name): record.value(Note).text for record in store.live(kind, present)}


def note(text: str) -> Note:
    return Note(text=text)


# -- one store ---------------------------------------------------------------------------------------------------------


def test_what_is_stated_is_there_until_it_is_withdrawn() -> None:
    store = RecordStore(ALICE, 1)
    first = store.publish("note", "x", note("a"))
    second = store.publish("note", "x", note("b"))
    assert first.version == Version(1, 1) < second.version == Version(1, 2)
    assert picture(store, present=set()) == {(ALICE.peer_id, "x"): "b"}  # one's own counts without being `present`
    assert store.find("note", "x") == second
    assert store.find("note", "x", owner=BOB.peer_id) is None
    tombstone = store.withdraw("note", "x")
    assert tombstone is not None
    assert tombstone.content.deleted
    assert picture(store) == {}
    assert store.find("note", "x") is None
    assert store.withdraw("note", "x") is None
    assert store.withdraw("note", "never said") is None
    assert store.owners() == {ALICE.peer_id}


def test_every_change_shows_in_the_revision() -> None:
    store, other = RecordStore(ALICE, 1), RecordStore(BOB, 1)
    seen = [store.revision]
    store.publish("note", "x", note("a"))
    seen.append(store.revision)
    other.publish("note", "y", note("b"))
    read(store, other)
    seen.append(store.revision)
    store.forget(BOB.peer_id)
    seen.append(store.revision)
    assert seen == sorted(set(seen))
    read(store, RecordStore(CAROL, 1))
    assert store.revision == seen[-1]


def test_what_does_not_fit_into_a_record_is_told_to_its_writer() -> None:
    store = RecordStore(ALICE, 1)
    room = limits.RECORD_BYTES_MAX - len(pack(note(""))) - 8
    store.publish("note", "x", note("x" * room))
    for size in (limits.RECORD_BYTES_MAX, 2 * limits.HEADER_BYTES_MAX):
        with pytest.raises(UsageError, match=r"The note record 'x' takes \d+ B; at most 16384 B travel"):
            store.publish("note", "x", note("x" * size))
    assert len(store.live("note", EVERYONE)) == 1


def test_one_owner_states_so_many_things_and_no_more() -> None:
    store, other = RecordStore(ALICE, 1), RecordStore(BOB, 1)
    for n in range(limits.RECORDS_PER_OWNER_MAX):
        store.publish("note", f"n{n}", note(""))
    with pytest.raises(UsageError, match="No room for the note record 'more': 128"):
        store.publish("note", "more", note(""))
    store.publish("note", "n0", note("again"))
    while read(other, store):
        pass
    assert picture(other) == picture(store)


def test_a_record_is_durable_from_the_start_or_never() -> None:
    store = RecordStore(ALICE, 1)
    store.publish("note", "x", note(""))
    with pytest.raises(UsageError, match="cannot become durable"):
        store.publish("note", "x", note(""), durable=True)
    store.publish("task", "x", note(""), durable=True)
    with pytest.raises(UsageError, match="cannot become passing"):
        store.publish("task", "x", note(""))


def test_passing_records_count_while_their_owner_is_here_and_durable_ones_always() -> None:
    alice, bob = RecordStore(ALICE, 1), RecordStore(BOB, 1)
    alice.publish("note", "passing", note("p"))
    alice.publish("note", "durable", note("d"), durable=True)
    read(bob, alice)
    assert picture(bob) == {(ALICE.peer_id, "passing"): "p", (ALICE.peer_id, "durable"): "d"}
    assert picture(bob, present=set()) == {(ALICE.peer_id, "durable"): "d"}


def test_all_nodes_see_the_same_order() -> None:
    stores = [RecordStore(who, 1) for who in (ALICE, BOB, CAROL)]
    for store, name in itertools.product(stores, ("b", "a")):
        store.publish("note", name, note(name))
    for at, frm in itertools.permutations(stores, 2):
        read(at, frm)
    views = [[record.key for record in store.live("note", EVERYONE)] for store in stores]
    assert views[0] == sorted(views[0])
    assert views == [views[0]] * 3
    first = stores[0].find("note", "a")
    assert first is not None
    assert first.owner == min(EVERYONE - {EVE.peer_id})


def test_a_value_of_another_form_is_its_owners_fault() -> None:
    record = RecordStore(ALICE, 1).publish("note", "x", {"other": 1})
    with pytest.raises(PeerError):
        record.value(Note)


# -- what strangers send -----------------------------------------------------------------------------------------------


def forged(owner: PeerId = ALICE.peer_id, name: str = "x", sequence: int = 9) -> SignedRecord:
    payload = pack(Content(owner=owner, kind="note", name=name, incarnation=1, sequence=sequence))
    return SignedRecord(content=payload, signature=EVE.sign("record", payload))


def test_a_forged_record_is_refused_and_what_came_before_it_stays() -> None:
    alice, bob = RecordStore(ALICE, 1), RecordStore(BOB, 1)
    good = alice.publish("note", "good", note("g"))
    with pytest.raises(PeerError, match="was forged or damaged"):
        bob.merge([good.signed, forged()], since=START, known=anyone)
    assert picture(bob) == {(ALICE.peer_id, "good"): "g"}
    with pytest.raises(PeerError):
        open_record(forged())


@pytest.mark.parametrize("purpose", ["grant", "task"])
def test_a_signature_for_something_else_does_not_make_a_record(purpose: str) -> None:
    payload = RecordStore(ALICE, 1).publish("note", "x", note("")).signed.content
    with pytest.raises(PeerError):
        open_record(SignedRecord(content=payload, signature=ALICE.sign(purpose, payload)))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_a_peer_error(data: bytes) -> None:
    with pytest.raises(PeerError):
        RecordStore(BOB, 1).merge([SignedRecord(content=data, signature=bytes(64))], since=START, known=anyone)


@pytest.mark.parametrize(
    "fields",
    [{"kind": "../x"}, {"name": "X"}, {"name": ""}, {"incarnation": -1}, {"sequence": 2**53}, {"value": bytes(16385)}],
)
def test_a_record_of_the_right_owner_still_has_to_have_the_right_form(fields: dict[str, object]) -> None:
    good: dict[str, object] = {"owner": ALICE.peer_id, "kind": "n", "name": "x", "incarnation": 1, "sequence": 1}
    payload = pack(good | fields)
    with pytest.raises(PeerError):
        open_record(SignedRecord(content=payload, signature=ALICE.sign("record", payload)))


def test_an_older_version_replayed_changes_nothing() -> None:
    alice, bob = RecordStore(ALICE, 1), RecordStore(BOB, 1)
    old = alice.publish("note", "x", note("old"))
    alice.publish("note", "x", note("new"))
    gone = alice.publish("note", "y", note("y"))
    alice.withdraw("note", "y")
    read(bob, alice)
    revision = bob.revision
    assert take(bob, [old, gone]) == []
    assert picture(bob) == {(ALICE.peer_id, "x"): "new"}
    assert bob.revision == revision


def test_records_of_unknown_owners_wait_until_their_grant_is_known() -> None:
    alice, bob = RecordStore(ALICE, 1), RecordStore(BOB, 1)
    said = alice.publish("note", "x", note("a"))
    assert take(bob, [said], known=lambda _: False) == []
    assert bob.digest() == Digest()
    assert take(bob, [said]) == [said]


def test_after_a_revocation_nothing_is_left_and_it_may_be_read_again() -> None:
    alice, bob = RecordStore(ALICE, 1), RecordStore(BOB, 1)
    alice.publish("note", "x", note("a"))
    alice.publish("task", "t", note("t"), durable=True)
    read(bob, alice)
    bob.forget(ALICE.peer_id)
    assert picture(bob) == {}
    assert bob.digest() == Digest()
    assert len(read(bob, alice)) == 2


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_one_owner_fills_only_its_own_share_and_its_head_does_not_skip() -> None:
    bob, eve = RecordStore(BOB, 1), RecordStore(EVE, 1)
    share = limits.RECORDS_PER_OWNER_MAX
    said = [
        Record(content, SignedRecord(content=payload, signature=EVE.sign("record", payload)))
        for n in range(share + 5)
        for content in [Content(owner=EVE.peer_id, kind="note", name=f"n{n}", incarnation=1, sequence=n + 1)]
        for payload in [pack(content)]
    ]
    take(bob, said)
    assert len(bob.live("note", EVERYONE)) == share
    assert bob.digest().passing[EVE.peer_id] == (1, share)  # not that of the last one
    payload = pack(Content(owner=EVE.peer_id, kind="note", name="n0", incarnation=1, sequence=share + 6, deleted=True))
    later = open_record(SignedRecord(content=payload, signature=EVE.sign("record", payload)))
    assert take(bob, [*said, later]) == []  # it would fit, but what came before it is missing
    eve.publish("note", "x", note(""))


def test_all_owners_together_are_bounded_and_one_always_can_speak_oneself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MEMBERS_MAX", 3)
    bob = RecordStore(BOB, 1)
    for name in ("alice", "carol", "dora", "eve"):
        take(bob, [RecordStore(identity(name), 1).publish("note", "x", note(name))])
    assert {record.value(Note).text for record in bob.live("note", bob.owners())} == {"alice", "carol"}
    bob.publish("note", "x", note("bob"))
    assert len(bob.owners()) == 3


def test_all_records_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECORDS_MAX", 2)
    alice, bob = RecordStore(ALICE, 1), RecordStore(BOB, 1)
    said = [alice.publish("note", name, note("")) for name in "ab"]
    take(bob, [*said, RecordStore(CAROL, 1).publish("note", "c", note(""))])
    assert set(picture(bob)) == {(ALICE.peer_id, "a"), (ALICE.peer_id, "b")}
    take(bob, [alice.publish("note", "a", note("new"))], alice.digest())
    assert picture(bob)[ALICE.peer_id, "a"] == ""  # `since` says that it follows itself: nothing to read
    read(bob, alice)
    assert picture(bob)[ALICE.peer_id, "a"] == "new"


# -- reading on --------------------------------------------------------------------------------------------------------


def test_a_push_that_overtakes_another_is_passed_over_and_comes_again() -> None:
    alice, bob = RecordStore(ALICE, 1), RecordStore(BOB, 1)
    before_first = alice.digest(ALICE.peer_id)
    first = alice.publish("note", "x", note("x"))
    before_second = alice.digest(ALICE.peer_id)
    second = alice.publish("note", "y", note("y"))
    assert not bob.follows_on(before_second)
    assert take(bob, [second], before_second) == []
    assert bob.follows_on(before_first)
    assert take(bob, [first], before_first) == [first]
    assert bob.follows_on(before_second)
    assert take(bob, [second], before_second) == [second]


def test_a_line_that_lacks_something_does_not_hold_up_the_other_line() -> None:
    alice, bob = RecordStore(ALICE, 1), RecordStore(BOB, 1)
    alice.publish("note", "x", note("x"))
    since = alice.digest()
    passing, durable = alice.publish("note", "y", note("y")), alice.publish("task", "t", note("t"), durable=True)
    assert take(bob, [passing, durable], since) == [durable]


def test_a_long_story_is_read_in_parts() -> None:
    alice, bob = RecordStore(ALICE, 1), RecordStore(BOB, 1)
    for n in range(100):
        alice.publish("note", f"n{n}", note(""), durable=n % 3 == 0)
    parts = 0
    while read(bob, alice, most=7):
        parts += 1
        assert bob.follows_on(bob.digest())
    assert parts == 15
    assert bob.digest() == alice.digest()


def test_each_owner_is_first_at_times() -> None:
    stores = [RecordStore(who, 1) for who in (ALICE, BOB, CAROL)]
    for store in stores:
        store.publish("note", "x", note(""))
    for at, frm in itertools.permutations(stores, 2):
        read(at, frm)
    firsts = {stores[0].newer_than(START, turn=turn)[0].owner for turn in range(limits.MEMBERS_MAX)}
    assert firsts == stores[0].owners()
    assert {record.owner for record in stores[0].newer_than(START, BOB.peer_id)} == {BOB.peer_id}
    assert RecordStore(EVE, 1).newer_than(START) == []


# -- restarts ----------------------------------------------------------------------------------------------------------


def test_a_restart_ends_what_was_passing_at_every_node() -> None:
    alice, bob = RecordStore(ALICE, 1), RecordStore(BOB, 1)
    alice.publish("note", "old", note(""))
    task = alice.publish("task", "t", note("t"), durable=True)
    read(bob, alice)
    again = RecordStore(ALICE, 2, alice.durable())
    assert again.durable() == [task.signed]
    assert again.publish("note", "new", note("")).version == Version(2, 1)
    read(bob, again)
    assert set(picture(bob)) == {(ALICE.peer_id, "new")}
    assert set(picture(bob, "task")) == {(ALICE.peer_id, "t")}


def test_who_was_restarted_reads_anew_what_it_did_not_keep() -> None:
    """Its head must not claim what went with the process: the passing words of others that came before durable ones."""
    alice, bob = RecordStore(ALICE, 1), RecordStore(BOB, 1)
    alice.publish("note", "profile", note("p"))
    alice.publish("task", "t", note("t"), durable=True)
    read(bob, alice)
    again = RecordStore(BOB, 2, bob.durable())
    assert picture(again) == {}
    read(again, alice)
    assert set(picture(again)) == {(ALICE.peer_id, "profile")}


def test_a_passing_record_of_before_a_restart_that_comes_late_is_void() -> None:
    alice, bob, carol = RecordStore(ALICE, 1), RecordStore(BOB, 1), RecordStore(CAROL, 1)
    alice.publish("note", "old", note(""))
    read(carol, alice)
    again = RecordStore(ALICE, 2, alice.durable())
    again.publish("task", "t", note(""), durable=True)
    read(bob, again)
    assert read(bob, carol) == []
    assert picture(bob) == {}
    again.publish("note", "new", note(""))
    read(bob, again)
    assert set(picture(bob)) == {(ALICE.peer_id, "new")}


def test_durable_words_come_back_to_an_owner_that_lost_its_disk() -> None:
    alice, bob = RecordStore(ALICE, 1), RecordStore(BOB, 1)
    alice.publish("task", "t", note("t"), durable=True)
    alice.publish("note", "x", note("x"))
    read(bob, alice)
    again = RecordStore(ALICE, 2)
    again.publish("note", "y", note("y"))
    read(again, bob)
    read(bob, again)
    assert picture(again) == picture(bob) == {(ALICE.peer_id, "y"): "y"}
    assert picture(again, "task") == picture(bob, "task") == {(ALICE.peer_id, "t"): "t"}


def test_an_owner_whose_disk_forgot_even_its_starts_jumps_above_what_it_said() -> None:
    alice, bob = RecordStore(ALICE, 4), RecordStore(BOB, 1)
    for text in "abc":
        alice.publish("note", "x", note(text))
        alice.publish("task", f"t-{text}", note(text), durable=True)
    read(bob, alice)
    again = RecordStore(ALICE, 1)
    again.publish("note", "x", note("now"))
    again.publish("task", "t-c", note("now"), durable=True)
    again.withdraw("note", "x")
    again.publish("note", "z", note("z"))
    assert read(bob, again) == []  # under versions that were used before nobody looks at it
    read(again, bob)
    read(bob, again)
    assert picture(again) == picture(bob) == {(ALICE.peer_id, "z"): "z"}
    tasks = picture(bob, "task")
    assert picture(again, "task") == tasks
    assert tasks == {(ALICE.peer_id, f"t-{text}"): value for text, value in (("a", "a"), ("b", "b"), ("c", "now"))}
    assert again.publish("note", "x", note("")).version > Version(5, 0)


def test_a_restored_backup_starts_above_what_it_kept() -> None:
    alice = RecordStore(ALICE, 7)
    alice.publish("task", "t", note(""), durable=True)
    again = RecordStore(ALICE, 3, alice.durable())
    assert again.publish("note", "x", note("")).version == Version(8, 1)


def test_a_damaged_kept_record_is_told() -> None:
    with pytest.raises(PeerError):
        RecordStore(ALICE, 1, [forged()])


def test_only_durable_records_are_taken_back_from_disk() -> None:
    passing = RecordStore(ALICE, 1).publish("note", "x", note(""))
    assert RecordStore(BOB, 1, [passing.signed]).digest() == Digest()


# -- all together ------------------------------------------------------------------------------------------------------


class World:
    """Some stores that talk, lose messages, and are restarted from what they kept."""

    def __init__(self, seed: int, size: int) -> None:
        self.rng = random.Random(seed)
        self.people = [identity(f"peer {n}") for n in range(size)]
        self.incarnations = [1] * size
        self.stores = [RecordStore(who, 1) for who in self.people]
        self.pushes: list[tuple[Record, Digest]] = []

    def publish(self, n: int) -> None:
        store, rng = self.stores[n], self.rng
        since = store.digest(self.people[n].peer_id)
        kind = rng.choice(["note", "task"])
        name = rng.choice("abc")
        if rng.random() < 0.3:
            record = store.withdraw(kind, name)
        else:
            record = store.publish(kind, name, note(str(rng.random())), durable=kind == "task")
        if record is not None:
            self.pushes.append((record, since))

    def push(self, n: int) -> None:
        """One of all pushes ever made arrives: early, late, twice or never."""
        if self.pushes:
            record, since = self.rng.choice(self.pushes)
            take(self.stores[n], [record], since)

    def exchange(self, n: int) -> None:
        other = self.rng.choice(self.stores)
        digest = self.stores[n].digest()
        records = other.newer_than(digest, turn=self.rng.randrange(9))[: self.rng.randrange(6)]
        if self.rng.random() < 0.7:
            take(self.stores[n], records, digest)

    def restart(self, n: int) -> None:
        self.incarnations[n] += 1
        self.stores[n] = RecordStore(self.people[n], self.incarnations[n], self.stores[n].durable())

    def settle(self) -> None:
        while any(read(at, frm) for at, frm in itertools.permutations(self.stores, 2)):
            pass


@given(st.integers(0, 2**32), st.integers(2, 5), st.integers(0, 120))
def test_any_history_converges(seed: int, size: int, steps: int) -> None:
    """Any number of stores, any order, any loss, any restarts: in the end all have read what each owner says."""
    world = World(seed, size)
    everyone = {who.peer_id for who in world.people}
    actions = [world.publish, world.push, world.exchange, world.exchange, world.push, world.restart]
    for _ in range(steps):
        world.rng.choices(actions, [6, 4, 4, 4, 4, 1])[0](world.rng.randrange(size))
        for store in world.stores:
            assert all(
                record.version <= store.digest().head(record.line)
                for kind in ("note", "task")
                for record in store.live(kind, everyone)
            )
    for store in world.stores:  # who was restarted and has not spoken since is not known to have been
        store.publish("note", "here", note(""))
    world.settle()
    for kind in ("note", "task"):
        views = [store.live(kind, everyone) for store in world.stores]
        assert views == [views[0]] * size
        for who, view in zip(world.people, views, strict=True):
            own = [record for record in view if record.owner == who.peer_id]
            assert [record for record in views[0] if record.owner == who.peer_id] == own
