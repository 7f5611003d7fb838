"""Who is here: stories of hints, dials, connections and silences, each a few events and what comes of them."""

import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh import limits
from lepton.mesh.identity import PeerId
from lepton.mesh.membership import (
    Config,
    Connected,
    Dial,
    DialFailed,
    Disconnected,
    Effect,
    Event,
    Exchanged,
    Expelled,
    Expired,
    Gone,
    Heard,
    Hinted,
    Membership,
    Needed,
    Parting,
    Probe,
    Release,
    Unsettled,
)

ME, A, B = PeerId("me"), PeerId("a"), PeerId("b")
AT_A, AT_B, ELSEWHERE = ("/ip4/10.0.0.1/tcp/1",), ("/ip4/10.0.0.2/tcp/1",), ("/ip4/10.0.0.3/tcp/1",)
CONFIG = Config()


def machine(seed: int = 1) -> Membership:
    members = Membership(ME, random.Random(seed))
    members.handle(Expired(), 0.0)
    return members


STORIES: dict[str, list[tuple[float, Event, list[Effect]]]] = {
    "a hint is worth a dial at once, and only one": [
        (0.0, Hinted(A, AT_A), [Dial(A, AT_A)]),
        (0.1, Hinted(A, AT_A), []),
        (0.1, Hinted(A, ELSEWHERE), []),
    ],
    "who was dialled and greeted is present and told what is known": [
        (0.0, Hinted(A, AT_A), [Dial(A, AT_A)]),
        (0.1, Connected(A), []),
        (0.2, Hinted(A, AT_A), []),
        (0.2, Hinted(A, ELSEWHERE), []),
    ],
    "who connects unknown is present too, and not dialled when it goes": [
        (0.0, Connected(A), []),
        (0.1, Disconnected(A), []),
    ],
    "two connections of one peer are one peer": [
        (0.0, Connected(A), []),
        (0.0, Connected(A), []),
        (0.1, Disconnected(A), []),
    ],
    "a dial that fails while the peer connects by itself changes nothing": [
        (0.0, Hinted(A, AT_A), [Dial(A, AT_A)]),
        (0.1, Connected(A), []),
        (0.2, DialFailed(A), []),
        (0.2, DialFailed(A, refused=True), []),
    ],
    "I do not dial myself, nor peers at no address": [
        (0.0, Hinted(ME, AT_A), []),
        (0.0, Hinted(A, ()), []),
    ],
    "a new address is dialled together with the old ones": [
        (0.0, Hinted(A, AT_A), [Dial(A, AT_A)]),
        (0.1, DialFailed(A, refused=True), []),
        (0.3, Hinted(A, ELSEWHERE), [Dial(A, (*ELSEWHERE, *AT_A))]),
    ],
    "but a flood of new addresses is not a flood of dials": [
        (0.0, Hinted(A, AT_A), [Dial(A, AT_A)]),
        (0.01, DialFailed(A, refused=True), []),
        (0.02, Hinted(A, ELSEWHERE), []),
        (0.03, Hinted(A, AT_B), []),
        (CONFIG.redial_first_s, Expired(), [Dial(A, (*AT_B, *ELSEWHERE, *AT_A))]),
    ],
    "what is said of peers that nobody knows is passed over": [
        (0.0, DialFailed(A), []),
        (0.0, Disconnected(A), []),
        (0.0, Exchanged(A, ok=True), []),
        (0.0, Exchanged(A, ok=False), []),
    ],
}


@pytest.mark.parametrize("name", STORIES)
def test_story(name: str) -> None:
    members = machine()
    for now, event, expected in STORIES[name]:
        assert members.handle(event, now) == expected, event


def next_dial(members: Membership) -> tuple[float, Dial]:
    """Let time pass until the machine dials."""
    while True:
        now = members.deadline
        for effect in members.handle(Expired(), now):
            if isinstance(effect, Dial):
                return now, effect


def pauses(members: Membership, now: float, count: int) -> list[float]:
    found = []
    for _ in range(count):
        members.handle(DialFailed(A), now)
        then, _ = next_dial(members)
        found.append(then - now)
        now = then
    return found


def test_pauses_grow_with_jitter_up_to_a_bound() -> None:
    runs = []
    for seed in range(30):
        members = machine(seed)
        members.handle(Hinted(A, AT_A, signed=True), 0.0)
        runs.append(pauses(members, 0.0, 10))
    for nth, each in enumerate(zip(*runs, strict=True)):
        pause_s = min(CONFIG.redial_first_s * 2**nth, CONFIG.redial_most_s)
        assert all(0.5 * pause_s <= got <= 1.5 * pause_s + 1e-6 for got in each)
        assert len(set(each)) > 20  # peers of one outage do not dial in step


def test_who_refuses_is_left_alone_for_longest_at_once() -> None:
    members = machine()
    members.handle(Hinted(A, AT_A), 0.0)
    members.handle(DialFailed(A, refused=True), 0.0)
    assert next_dial(members)[0] >= 0.5 * CONFIG.redial_most_s


def test_a_connection_that_breaks_is_dialled_again_soon() -> None:
    members = machine()
    members.handle(Hinted(A, AT_A), 0.0)
    members.handle(Connected(A), 0.0)
    members.handle(Exchanged(A, ok=True), 0.1)
    members.handle(Disconnected(A), 100.0)
    then, dial = next_dial(members)
    assert dial == Dial(A, AT_A)
    assert 100.0 < then <= 100.0 + 1.5 * CONFIG.redial_first_s


def test_connections_that_never_come_to_an_exchange_are_no_busy_loop() -> None:
    """A peer of another release, say: it greets, breaks the protocol, loses its connection, and all over again."""
    members, now, gaps = machine(), 0.0, []
    members.handle(Hinted(A, AT_A, signed=True), now)
    for _ in range(12):
        members.handle(Connected(A), now)
        members.handle(Exchanged(A, ok=False), now)
        members.handle(Disconnected(A), now)
        then, _ = next_dial(members)
        gaps.append(then - now)
        now = then
    assert gaps[-1] >= 0.5 * CONFIG.redial_most_s
    members.handle(Connected(A), now)
    members.handle(Exchanged(A, ok=True), now)
    members.handle(Disconnected(A), now)
    assert next_dial(members)[0] - now <= 1.5 * CONFIG.redial_first_s


def test_a_hint_that_comes_to_nothing_is_forgotten_unless_the_user_gave_it() -> None:
    members = machine()
    members.handle(Hinted(A, AT_A), 0.0)
    members.handle(Hinted(B, AT_B, signed=True), 0.0)
    dialled = Counter[PeerId]()
    for peer in (A, B):
        members.handle(DialFailed(peer), 0.0)
    while members.deadline < 3 * CONFIG.hint_lifetime_s:
        now = members.deadline
        for effect in members.handle(Expired(), now):
            assert isinstance(effect, Dial)
            dialled[effect.peer] += now > 1.5 * CONFIG.hint_lifetime_s
            members.handle(DialFailed(effect.peer), now)
    assert dialled[A] == 0
    assert dialled[B] > 5


def test_a_fresh_hint_or_a_visit_keeps_a_peer_in_mind() -> None:
    members = machine()
    members.handle(Hinted(A, AT_A), 0.0)
    members.handle(Connected(A), 0.0)
    members.handle(Disconnected(A), 10 * CONFIG.hint_lifetime_s)  # a day later
    assert next_dial(members)[1] == Dial(A, AT_A)


def test_forged_hints_are_bounded_and_push_out_nobody_who_was_here() -> None:
    members = machine()
    members.handle(Hinted(A, AT_A), 0.0)
    members.handle(Connected(A), 0.0)
    members.handle(Hinted(B, AT_B, signed=True), 0.0)
    members.handle(DialFailed(B), 0.0)
    for n in range(2 * limits.HINTED_PEERS_MAX):
        now = 1.0 + n * 1e-3
        members.handle(Hinted(PeerId(f"forged {n}"), ELSEWHERE), now)
        members.handle(DialFailed(PeerId(f"forged {n}")), now)
        members.handle(Hinted(A, (f"/ip4/10.9.9.9/tcp/{n}",)), now)
    assert len(members.book) == limits.HINTED_PEERS_MAX + 2
    assert {A, B} < set(members.book)
    assert len(members.book.addresses(A)) == limits.HINTED_ADDRESSES_MAX
    assert set(AT_A) < set(members.book.addresses(A))


def test_when_all_whom_one_knows_matter_a_new_hint_has_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HINTED_PEERS_MAX", 1)
    members = machine()
    members.handle(Hinted(A, AT_A), 0.0)
    assert members.handle(Hinted(B, AT_B), 0.0) == []  # A's dial is under way
    members.handle(DialFailed(A), 0.0)
    assert members.handle(Hinted(B, AT_B), 0.0) == [Dial(B, AT_B)]


# -- a mesh too large for everybody to be connected to everybody ------------------------------------------------------


CROWD = tuple(PeerId(f"peer {n}") for n in range(100))


def in_a_crowd(seed: int = 1) -> Membership:
    """Who has heard of a hundred members, knows where they are, and is connected to those beside it."""
    members = machine(seed)
    members.handle(Connected(A), 0.0)  # who tells it of the others
    members.handle(Heard(CROWD), 0.0)
    for peer in CROWD:
        members.handle(Hinted(peer, (f"/ip4/10.1.0.1/tcp/{peer[5:]}",), signed=True), 0.0)
    for peer in sorted(members.neighbours.wanted):
        members.handle(Connected(peer, dialled=True), 0.0)
    members.handle(Disconnected(A), 0.0)
    return members


def test_in_a_large_mesh_only_those_beside_one_are_dialled_and_one_of_the_absent_now_and_then() -> None:
    members = in_a_crowd()
    assert members.present == set(CROWD)
    assert members.connected == members.neighbours.wanted
    for peer in sorted(members.book.dialling):  # dials from before so many were known
        members.handle(DialFailed(peer), 0.0)
    away = PeerId("away")
    members.handle(Hinted(away, ELSEWHERE, signed=True), 0.0)
    dialled = []
    while members.deadline < 60.0:
        now = members.deadline
        for effect in members.handle(Expired(), now):
            if isinstance(effect, Dial):
                dialled.append(effect.peer)
                members.handle(DialFailed(effect.peer), now)
    assert set(dialled) == {away}
    assert 2 <= len(dialled) <= 60 / (0.5 * CONFIG.reach_interval_s)


def test_when_a_neighbour_is_gone_the_next_one_on_its_ring_is_dialled() -> None:
    members = in_a_crowd()
    gone = min(members.connected)
    members.handle(Disconnected(gone), 1.0)
    assert gone in members.present  # until those who hear of it say otherwise
    before = members.neighbours.wanted
    effects = members.handle(Gone((gone,)), 1.1)
    assert gone not in members.present
    new = members.neighbours.wanted - before
    assert new
    assert {effect.peer for effect in effects if isinstance(effect, Dial)} == new


def test_a_connection_that_somebody_waits_for_is_dialled_at_once_and_once() -> None:
    members = in_a_crowd()
    peer = next(peer for peer in CROWD if not members.neighbours.wants(peer))
    assert members.handle(Needed(peer), 1.0) == [Dial(peer, members.book.addresses(peer))]
    assert members.handle(Needed(peer), 1.1) == []  # under way
    members.handle(DialFailed(peer), 1.1)
    assert members.handle(Needed(peer), 1.15) == []  # too soon: nobody was there a moment ago
    assert members.handle(Needed(peer), 1.0 + CONFIG.redial_first_s) == [Dial(peer, members.book.addresses(peer))]
    members.handle(Connected(peer, dialled=True), 1.3)
    assert members.handle(Needed(peer), 1.4) == []
    assert members.handle(Needed(PeerId("unheard of")), 1.4) == []


def test_a_connection_that_is_nobodys_neighbour_is_given_up_in_the_end() -> None:
    members = in_a_crowd()
    peer = next(peer for peer in CROWD if not members.neighbours.wants(peer))
    members.handle(Connected(peer, dialled=True), 1.0)
    released = []
    while members.deadline < 2.5 * CONFIG.linger_s:
        now = members.deadline
        released += [(now, effect.peer) for effect in members.handle(Expired(), now) if isinstance(effect, Release)]
    assert {who for _, who in released} == {peer}
    assert released[0][0] > CONFIG.linger_s


def test_who_is_told_that_its_connection_is_given_up_takes_the_other_for_present_and_does_not_redial_at_once() -> None:
    members = machine()
    members.handle(Hinted(A, AT_A), 0.0)
    members.handle(Connected(A), 0.0)
    members.handle(Connected(B), 0.0)
    members.handle(Exchanged(A, ok=True), 0.1)
    members.handle(Parting(A), 1.0)
    members.handle(Disconnected(A), 1.0)
    assert members.present == {A, B}
    assert members.connected == {B}
    assert next_dial(members)[0] >= 1.0 + CONFIG.linger_s
    members.handle(Gone((A,)), 2.0)
    assert members.present == {B}


def test_a_word_of_parting_from_who_is_not_connected_counts_for_nothing() -> None:
    members = machine()
    members.handle(Parting(A), 0.0)
    assert members.present == set()


def test_who_has_lost_every_connection_knows_of_nobody_that_it_is_here_until_it_has_one_again() -> None:
    members = in_a_crowd()
    neighbours = sorted(members.connected)
    for peer in neighbours:
        members.handle(Disconnected(peer), 1.0)
    assert members.present == set()
    assert members.neighbours.whole  # so it tries all of whom it knows
    now, dialled = 1.0, set[PeerId]()
    while dialled != set(CROWD):
        dialled |= members.book.dialling
        for peer in sorted(members.book.dialling):
            members.handle(DialFailed(peer), now)
        members.handle(Expired(), now)
        now = max(now, members.deadline)
        assert now < 10.0
    members.handle(Gone((CROWD[0],)), now)
    members.handle(Connected(neighbours[0]), now)
    assert members.present == set(CROWD) - {CROWD[0]} | {neighbours[0]}


def test_no_more_dials_are_under_way_at_once_than_may_be_and_members_come_first() -> None:
    members = machine()
    dialled = []
    for n in range(2 * limits.DIALS_MAX):
        dialled += members.handle(Hinted(PeerId(f"forged {n}"), ELSEWHERE), 0.0)
    assert len(dialled) == limits.DIALS_MAX
    assert members.handle(Hinted(A, AT_A, signed=True), 1.0) == []
    members.handle(DialFailed(PeerId("forged 0")), 1.0)
    assert A in members.book.dialling


def test_who_was_thrown_out_is_not_present_by_hearsay_and_soon_forgotten() -> None:
    members = in_a_crowd()
    near, far = min(members.connected), next(peer for peer in CROWD if not members.neighbours.wants(peer))
    members.handle(Expelled((near, far)), 1.0)
    assert members.present == set(CROWD) - {far}  # as long as its connection is open
    members.handle(Disconnected(near), 1.1)
    assert members.present == set(CROWD) - {near, far}
    while members.deadline < 3 * CONFIG.hint_lifetime_s:
        now = members.deadline
        members.handle(Expired(), now)
        for peer in sorted(members.book.dialling):
            members.handle(DialFailed(peer, refused=True), now)
    assert near not in members.book


# -- time that was not noticed -----------------------------------------------------------------------------------------


def test_after_a_sleep_connections_are_probed_and_dials_begin_without_the_old_pauses() -> None:
    members = machine()
    members.handle(Hinted(A, AT_A), 0.0)
    members.handle(Hinted(B, AT_B, signed=True), 0.0)
    members.handle(Connected(A), 0.0)
    now = 0.0
    for _ in range(10):
        members.handle(DialFailed(B), now)
        now, _ = next_dial(members)
    members.handle(DialFailed(B), now)
    effects = members.handle(Unsettled(), now)
    assert Probe(A) in effects
    assert next_dial(members)[0] <= now + CONFIG.redial_first_s


def test_a_deadline_missed_by_far_is_a_sleep_and_a_late_one_is_none() -> None:
    members = machine()
    members.handle(Connected(A), 0.0)
    assert Probe(A) not in members.handle(Expired(), members.deadline + 0.9 * CONFIG.late_s)
    assert Probe(A) in members.handle(Expired(), members.deadline + 1.1 * CONFIG.late_s)


def test_a_member_that_stays_away_is_tried_for_ever_but_seldom() -> None:
    members = machine()
    members.handle(Hinted(A, AT_A, signed=True), 0.0)
    members.handle(DialFailed(A), 0.0)
    dials = []
    while members.deadline < 3600.0:
        now = members.deadline
        for effect in members.handle(Expired(), now):
            if isinstance(effect, Dial):
                dials.append(now)
                members.handle(DialFailed(A), now)
    gaps = [later - earlier for earlier, later in itertools.pairwise(dials)]
    assert dials[-1] > 3600.0 - 2 * CONFIG.redial_lost_s
    assert max(gaps[:10]) <= 1.5 * CONFIG.redial_most_s + 1e-6
    assert min(gaps[-20:]) >= 0.5 * CONFIG.redial_lost_s


def test_addresses_of_members_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "KNOWN_MEMBERS_MAX", 3)
    members = machine()
    members.handle(Hinted(A, AT_A, signed=True), 0.0)
    members.handle(Connected(A), 0.0)
    for n in range(5):
        members.handle(Hinted(PeerId(f"member {n}"), AT_B, signed=True), float(n))
        for peer in sorted(members.book.dialling):
            members.handle(DialFailed(peer), float(n))
    assert sorted(members.book) == [A, "member 3", "member 4"]  # who is here, and who was heard of last


PEERS = [PeerId(f"peer {n}") for n in range(4)]
EVENTS = st.one_of(
    st.builds(Hinted, st.sampled_from([ME, *PEERS]), st.sampled_from([AT_A, AT_B, ()]), st.booleans()),
    st.builds(Connected, st.sampled_from(PEERS)),
    st.builds(Disconnected, st.sampled_from(PEERS)),
    st.builds(DialFailed, st.sampled_from(PEERS), st.booleans()),
    st.builds(Exchanged, st.sampled_from(PEERS), st.booleans()),
    st.just(Expired()),
)


@given(st.integers(0, 99), st.lists(st.tuples(EVENTS, st.floats(0, 400)), max_size=80))
def test_any_story_keeps_the_invariant(seed: int, story: list[tuple[Event, float]]) -> None:
    """`present` holds exactly the peers with an admitted connection; at most one dial per peer is under way."""
    members, now = machine(seed), 0.0
    connected: set[PeerId] = set()
    under_way = Counter[PeerId]()
    for event, pause_s in story:
        now += pause_s
        if isinstance(event, DialFailed) and not under_way[event.peer]:
            continue  # the shell reports the end of dials that it began
        match event:
            case Connected(peer):
                connected.add(peer)
                under_way[peer] = 0
            case Disconnected(peer):
                connected.discard(peer)
            case DialFailed(peer):
                under_way[peer] = 0
        for effect in members.handle(event, now):
            match effect:
                case Dial(peer, addresses):
                    under_way[peer] += 1
                    assert addresses
                    assert peer not in connected | {ME}
                case Probe(peer):
                    assert peer in connected
        assert members.connected == connected
        assert members.present == connected
        assert all(count <= 1 for count in under_way.values())
        assert now < members.deadline < math.inf or not isinstance(event, Expired)


@given(st.integers(0, 99), st.lists(st.tuples(EVENTS, st.floats(0, 2)), max_size=30))
def test_time_alone_is_no_busy_loop(seed: int, story: list[tuple[Event, float]]) -> None:
    members, now = machine(seed), 0.0
    for event, pause_s in story:
        now += pause_s
        members.handle(event, now)
    effects, wakes, end = 0, 0, now + 60.0
    while members.deadline < end:
        now = max(now, members.deadline)
        for effect in members.handle(Expired(), now):
            effects += 1
            if isinstance(effect, Dial):
                members.handle(DialFailed(effect.peer), now)
        wakes += 1
    assert effects <= 60 / 0.8 + len(PEERS) * 20  # an exchange a period, and dials that grow rare
    assert wakes <= effects + 60 / 0.8 + len(PEERS) + 1
