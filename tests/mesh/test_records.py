"""The replicated picture: whatever is lost, doubled or comes late, all who talk end up with the same."""

import itertools
import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh import limits
from lepton.mesh.errors import PeerError, UsageError
from lepton.mesh.identity import Identity, PeerId
from lepton.mesh.messages import pack
from lepton.mesh.records import Content, Key, Merged, Record, RecordStore, SignedRecord, Version, open_record

from .fakes import Note, identity

ALICE, BOB, CAROL, EVE = map(identity, ("alice", "bob", "carol", "eve"))
EVERYONE = {who.peer_id for who in (ALICE, BOB, CAROL, EVE)}


def anyone(_owner: PeerId) -> bool:
    return True


def merge(store: RecordStore, records: Iterable[Record], known: Callable[[PeerId], bool] = anyone) -> Merged:
    got = store.merge([record.signed for record in records], known=known)
    assert not got.forged
    return got


def take(store: RecordStore, records: Iterable[Record], known: Callable[[PeerId], bool] = anyone) -> list[Record]:
    return merge(store, records, known).new


def read(at: RecordStore, frm: RecordStore, most: int = limits.RECORDS_PER_OWNER_MAX) -> list[Record]:
    """One message of an exchange: what `at` lacks, from `frm`."""
    return take(at, [record for record in frm.all() if at.with_id(record.id) is None][:most])


def signed(who: Identity, name: str, sequence: int, value: object = None, *, incarnation: int = 1) -> Record:
    """Make a record as no honest store would: of any version."""
    data = pack(note(str(value)))
    payload = pack(
        Content(owner=who.peer_id, kind="note", name=name, incarnation=incarnation, sequence=sequence, value=data)
    )
    return open_record(SignedRecord(content=payload, signature=who.sign("record", payload)))


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
    later = alice.publish("note", "later", note("l"))
    assert "was forged or damaged" in bob.merge([good.signed, forged(), later.signed], known=anyone).forged
    assert picture(bob) == {(ALICE.peer_id, "good"): "g"}
    with pytest.raises(PeerError):
        open_record(forged())


@pytest.mark.parametrize("purpose", ["grant", "task"])
def test_a_signature_for_something_else_does_not_make_a_record(purpose: str) -> None:
    payload = RecordStore(ALICE, 1).publish("note", "x", note("")).signed.content
    with pytest.raises(PeerError):
        open_record(SignedRecord(content=payload, signature=ALICE.sign(purpose, payload)))


@given(st.binary(max_size=200))
def test_any_bytes_are_no_record_and_raise_nothing(data: bytes) -> None:
    bob = RecordStore(BOB, 1)
    assert bob.merge([SignedRecord(content=data, signature=bytes(64))], known=anyone).forged
    assert bob.all() == []


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
    got = merge(bob, [said], known=lambda _: False)
    assert got.new == []
    assert got.unproven == {said.id: ALICE.peer_id}
    assert bob.all() == []
    assert take(bob, [said]) == [said]


def test_an_owner_that_is_no_peer_at_all_is_a_forgery() -> None:
    """Its name would go back to the sender, as long as it is, in the list of those who are to be proved."""
    payload = pack(Content(owner=PeerId("x" * 4000), kind="note", name="x", incarnation=1, sequence=1))
    item = SignedRecord(content=payload, signature=bytes(64))
    assert "is not the peer id" in RecordStore(BOB, 1).merge([item], known=lambda _: False).forged


def test_after_a_revocation_nothing_is_left_and_nothing_comes_back_while_it_stands() -> None:
    alice, bob, carol = RecordStore(ALICE, 1), RecordStore(BOB, 1), RecordStore(CAROL, 1)
    alice.publish("note", "x", note("a"))
    alice.publish("task", "t", note("t"), durable=True)
    read(bob, alice)
    read(carol, alice)
    empty = RecordStore(BOB, 1).fingerprint
    bob.forget(ALICE.peer_id)
    assert picture(bob) == {}
    assert bob.all() == []
    assert bob.durable() == []
    assert bob.fingerprint == empty
    assert take(bob, carol.all(), known=lambda owner: owner != ALICE.peer_id) == []
    assert bob.all() == []
    assert len(read(bob, carol)) == 2  # it was invited again


# -- owners that contradict themselves ---------------------------------------------------------------------------------


def test_of_two_records_of_one_version_all_keep_the_same_and_the_proof() -> None:
    one, other = signed(EVE, "x", 5, "one"), signed(EVE, "x", 5, "other")
    stores = []
    for order in ([one, other], [other, one]):
        store = RecordStore(BOB, 1)
        accused = [owner for record in order for owner in merge(store, [record]).contradicted]
        assert accused == [EVE.peer_id]
        assert {open_record(item).id for item in store.contradictions[EVE.peer_id]} == {one.id, other.id}
        assert merge(store, order).contradicted == []  # it is named once
        stores.append(store)
    assert stores[0].fingerprint == stores[1].fingerprint
    for store in stores:
        assert take(store, [later := signed(EVE, "x", 6, "later")]) == [later]
    assert picture(stores[0]) == picture(stores[1]) == {(EVE.peer_id, "x"): "later"}


def test_a_forged_copy_contradicts_nobody() -> None:
    alice, bob = RecordStore(ALICE, 1), RecordStore(BOB, 1)
    said = alice.publish("note", "x", note("a"))
    take(bob, [said])
    lie = pack(Content(owner=ALICE.peer_id, kind="note", name="x", incarnation=1, sequence=1, value=b"\x80"))
    assert bob.merge([SignedRecord(content=lie, signature=EVE.sign("record", lie))], known=anyone).forged
    assert bob.contradictions == {}


def test_proofs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONTRADICTIONS_MAX", 1)
    bob = RecordStore(BOB, 1)
    for who in (ALICE, EVE):
        merge(bob, [signed(who, "x", 1, "one"), signed(who, "x", 1, "other")])
    assert set(bob.contradictions) == {ALICE.peer_id}


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_one_owner_fills_only_its_own_share() -> None:
    bob = RecordStore(BOB, 1)
    share = limits.RECORDS_PER_OWNER_MAX
    got = merge(bob, [signed(EVE, f"n{n}", n + 1) for n in range(share + 5)])
    assert len(got.new) == len(bob.live("note", EVERYONE)) == share
    assert len(got.useless) == 5
    assert take(bob, [again := signed(EVE, "n0", share + 6)]) == [again]  # in the place of its own older one
    alice = RecordStore(ALICE, 1)
    assert take(bob, [said := alice.publish("note", "x", note(""))]) == [said]


def test_one_owner_fills_only_its_share_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECORDS_BYTES_PER_OWNER_MAX", 5000)
    alice, bob = RecordStore(ALICE, 1), RecordStore(BOB, 1)
    for n in range(4):
        alice.publish("note", f"n{n}", note("x" * 1000))
    with pytest.raises(UsageError, match=r"others keep 5000 B of one node\. Withdraw some"):
        alice.publish("note", "n4", note("x" * 1000))
    alice.publish("note", "n3", note("y" * 1000))
    assert take(bob, alice.all()) == alice.all()
    assert len(take(bob, [signed(EVE, f"n{n}", n + 1, "x" * 2500) for n in range(3)])) == 1


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
    take(bob, [alice.publish("note", "a", note("new"))])
    assert picture(bob)[ALICE.peer_id, "a"] == "new"
    bob.publish("note", "own", note(""))  # what others have filled is no bound on what one says oneself


def test_all_bytes_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECORDS_BYTES_MAX", 3000)
    bob = RecordStore(BOB, 1)
    for name in ("alice", "carol", "dora"):
        take(bob, [RecordStore(identity(name), 1).publish("note", "x", note("x" * 1000))])
    assert len(bob.all()) == 2


# -- comparing ---------------------------------------------------------------------------------------------------------


def test_a_fingerprint_is_that_of_what_is_held_however_it_came_to_be() -> None:
    alice, bob, carol = RecordStore(ALICE, 1), RecordStore(BOB, 1), RecordStore(CAROL, 1)
    assert alice.fingerprint == bob.fingerprint
    for n in range(50):
        alice.publish("note", f"n{n}", note(str(n)))
    read(bob, alice)
    for n in range(25):
        alice.publish("note", f"n{n}", note("new"))
        assert alice.fingerprint != bob.fingerprint
    alice.withdraw("note", "n3")
    read(bob, alice)
    read(carol, bob)
    assert alice.fingerprint == bob.fingerprint == carol.fingerprint
    assert alice.digests() == carol.digests()
    assert len(alice.digests()) == 256 * len(alice.fingerprint)


def test_every_record_is_in_the_bucket_of_its_id() -> None:
    alice = RecordStore(ALICE, 1)
    for n in range(100):
        alice.publish("note", f"n{n}", note(str(n)))
    ids = {number: alice.bucket(number) for number in range(256)}
    assert {one for found in ids.values() for one in found} == {record.id for record in alice.all()}
    assert all(one[0] == number for number, found in ids.items() for one in found)
    assert all(alice.with_id(record.id) is record for record in alice.all())


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
    assert len(merge(again, bob.all()).restated) == 3
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
    assert RecordStore(BOB, 1, [passing.signed]).all() == []


def test_a_backup_that_repeats_a_start_loses_no_word_of_either_life_that_still_holds() -> None:
    """Two lives with one incarnation said different things under the same versions."""
    first, bob = RecordStore(ALICE, 6), RecordStore(BOB, 1)
    first.publish("note", "both", note("first"))
    first.publish("note", "old", note("first"))
    first.publish("task", "kept", note("first"), durable=True)
    first.publish("task", "both", note("first"), durable=True)
    read(bob, first)
    again = RecordStore(ALICE, 6)
    again.publish("note", "both", note("again"))
    again.publish("task", "both", note("again"), durable=True)
    merge(bob, again.all())
    got = merge(again, bob.all())
    assert {record.key[2] for record in got.restated} == {"both"}
    assert min(record.version for record in got.restated) > Version(7, 0)
    read(bob, again)
    assert picture(bob) == picture(again) == {(ALICE.peer_id, "both"): "again"}
    tasks = {(ALICE.peer_id, "both"): "again", (ALICE.peer_id, "kept"): "first"}
    assert picture(bob, "task") == picture(again, "task") == tasks
    assert bob.fingerprint == again.fingerprint
    assert again.contradictions == {}


def test_one_of_ones_own_words_that_was_replaced_since_comes_back_and_changes_nothing() -> None:
    alice = RecordStore(ALICE, 1)
    old = alice.publish("note", "x", note("old"))
    alice.publish("note", "x", note("new"))
    got = merge(alice, [old])
    assert (got.new, got.restated) == ([], [])
    assert alice.publish("note", "y", note("")).version == Version(1, 3)


# -- all together ------------------------------------------------------------------------------------------------------


class World:
    """Some stores that talk, lose messages, and are restarted from what they kept, or from what a backup did."""

    def __init__(self, seed: int, size: int) -> None:
        self.rng = random.Random(seed)
        self.people = [identity(f"peer {n}") for n in range(size)]
        self.incarnations = [1] * size
        self.stores = [RecordStore(who, 1) for who in self.people]
        self.pushes: list[Record] = []
        self.forgot: set[PeerId] = set()

    def pairs(self) -> list[tuple[Identity, RecordStore]]:
        return list(zip(self.people, self.stores, strict=True))

    def publish(self, n: int) -> None:
        store, rng = self.stores[n], self.rng
        kind = rng.choice(["note", "task"])
        name = rng.choice("abc")
        if rng.random() < 0.3:
            record = store.withdraw(kind, name)
        else:
            record = store.publish(kind, name, note(str(rng.random())), durable=kind == "task")
        if record is not None:
            self.pushes.append(record)

    def push(self, n: int) -> None:
        """One of all pushes ever made arrives: early, late, twice or never."""
        if self.pushes:
            merge(self.stores[n], [self.rng.choice(self.pushes)])

    def exchange(self, n: int) -> None:
        other = self.rng.choice(self.stores)
        records = self.rng.sample(other.all(), self.rng.randrange(1 + min(6, len(other.all()))))
        if self.rng.random() < 0.7:
            merge(self.stores[n], records)

    def restart(self, n: int) -> None:
        """Start again with what was kept; or, as from a backup, with nothing, and a start that was counted before."""
        if forgot := self.rng.random() < 0.3:
            self.forgot.add(self.people[n].peer_id)
        self.incarnations[n] += 0 if forgot else 1
        kept = [] if forgot else self.stores[n].durable()
        self.stores[n] = RecordStore(self.people[n], self.incarnations[n], kept)

    def meant(self, who: PeerId, store: RecordStore) -> dict[Key, bytes]:
        """What an owner says. Of a life that it forgot it may have met old words only: the newer ones replace them."""
        records = store._said.values() if who in self.forgot else store.of(who)
        return {record.key: record.content.value for record in records}

    def settle(self) -> None:
        while len({store.fingerprint for store in self.stores}) > 1:
            for at, frm in itertools.permutations(self.stores, 2):
                merge(at, frm.all())


@given(st.integers(0, 2**32), st.integers(2, 5), st.integers(0, 120))
def test_any_history_converges(seed: int, size: int, steps: int) -> None:
    """Any number of stores, any order, any loss, any restarts: in the end all hold what each owner says."""
    world = World(seed, size)
    everyone = {who.peer_id for who in world.people}
    actions = [world.publish, world.push, world.exchange, world.exchange, world.push, world.restart]
    for _ in range(steps):
        world.rng.choices(actions, [6, 4, 4, 4, 4, 1])[0](world.rng.randrange(size))
    own = [world.meant(who.peer_id, store) for who, store in world.pairs()]
    for store in world.stores:  # who was restarted and has not spoken since is not known to have been
        store.publish("note", "here", note(""))
    world.settle()
    for kind in ("note", "task"):
        views = [store.live(kind, everyone) for store in world.stores]
        assert views == [views[0]] * size
    for said, (_, store) in zip(own, world.pairs(), strict=True):  # nothing that an owner said meanwhile is lost
        assert {key: found.content.value for key in said if (found := store.get(key)) is not None} == said
