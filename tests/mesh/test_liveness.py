"""Who lives: stories of single machines, small swarms on virtual time, and what hypothesis makes of both."""

import itertools
import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lepton.mesh import limits
from lepton.mesh.errors import PeerError
from lepton.mesh.identity import SIGNATURE_BYTES, PeerId
from lepton.mesh.lifeguard import HEALTH_MAX, Suspicion
from lepton.mesh.liveness import Config, Died, Effect, Event, Heard, Liveness, Living, Message, Seen, Send, Suspected
from lepton.mesh.membership import Connected, DialFailed, Disconnected, Expelled, Expired, Parting
from lepton.mesh.messages import pack, unpack
from lepton.mesh.rumours import Ack, Doubt, Probe, ProbeFor, Rumours, SignedWords, Statement, Tell

from .fakes import ROOT, identity
from .swarm import Swarm, Unsigned, called

CONFIG = Config()
PEERS = [PeerId(f"peer {n}") for n in range(6)]
ME, A, B, C, D, E = PEERS
SIGNATURE = bytes(SIGNATURE_BYTES)
LEAST_S = CONFIG.suspicion_s + CONFIG.round_s  # of a small mesh


def machine(*neighbours: PeerId, seed: int = 1, now: float = 0.0) -> Liveness:
    one = Liveness(ME, random.Random(seed), Unsigned(ME), knows=PEERS.__contains__)
    for peer in neighbours:
        one.handle(Connected(peer), now)
        one.handle(Seen(peer), now)
    return one


def state(peer: PeerId, incarnation: int) -> Statement:
    return Statement(peer=peer, incarnation=incarnation, signature=SIGNATURE)


def doubt(peer: PeerId, incarnation: int, *by: PeerId) -> Doubt:
    return Doubt(peer=peer, incarnation=incarnation, by=by)


def tell(*rumours: Statement | Doubt, incarnation: int = 0) -> Tell:
    return Tell(
        incarnation=incarnation,
        signature=SIGNATURE,
        statements=tuple(r for r in rumours if isinstance(r, Statement)),
        doubts=tuple(r for r in rumours if isinstance(r, Doubt)),
    )


def ack(number: int, *, reached: bool = True, incarnation: int = 0) -> Ack:
    return Ack(number=number, reached=reached, incarnation=incarnation, signature=SIGNATURE)


def sent(effects: Sequence[Effect], kind: type[Message]) -> dict[PeerId, Message]:
    return {e.peer: e.message for e in effects if isinstance(e, Send) and type(e.message) is kind}


Silent = Callable[[PeerId, Message], Message | None]


def live(one: Liveness, now: float, seconds: float, answer: Silent) -> list[tuple[float, Effect]]:
    """Let time pass; whoever is asked says what ``answer`` gives, at once."""
    story, end = [], now + seconds
    while one.deadline < end:
        now = one.deadline
        effects = one.handle(Expired(), now)
        while effects:
            effect = effects.pop(0)
            story.append((now, effect))
            if isinstance(effect, Send) and (said := answer(effect.peer, effect.message)) is not None:
                effects += one.handle(Heard(effect.peer, said), now)
    return story


def all_but(*silent: PeerId) -> Silent:
    """Everybody answers, but for those, who are reached by nobody."""

    def answer(peer: PeerId, message: Message) -> Message | None:
        match message:
            case Probe(number=number) if peer not in silent:
                return ack(number)
            case ProbeFor(number=number, target=target) if peer not in silent:
                return ack(number, reached=target not in silent)
        return None

    return answer


def deaths(story: Sequence[tuple[float, Effect]]) -> dict[PeerId, float]:
    return {effect.peer: now for now, effect in story if isinstance(effect, Died)}


# -- probing -----------------------------------------------------------------------------------------------------------


def test_each_neighbour_is_probed_once_a_round_in_an_order_drawn_anew() -> None:
    one = machine(A, B, C, D)
    story = live(one, 0.0, 40.5, all_but())
    probed = [effect.peer for _, effect in story if isinstance(effect, Send) and isinstance(effect.message, Probe)]
    rounds = [tuple(probed[start : start + 4]) for start in range(0, 40, 4)]
    assert all(set(one) == {A, B, C, D} for one in rounds)
    assert len(set(rounds)) > 5


def test_in_a_large_mesh_who_probes_is_not_probed_and_who_is_silent_for_a_round_is() -> None:
    one, probed, now = machine(A, B, C), list[tuple[float, PeerId]](), 0.0
    one.handle(Heard(A, tell(state(D, 0))), 0.0)  # there is one who is no neighbour
    heard_s = 0.0
    while now < 60.0:
        if heard_s <= one.deadline:  # A probes, once in a period
            now, heard_s = heard_s, heard_s + CONFIG.period_s
            one.handle(Heard(A, Probe(number=1, incarnation=0, signature=SIGNATURE)), now)
            continue
        now = one.deadline
        for peer, message in sent(one.handle(Expired(), now), Probe).items():
            probed.append((now, peer))
            one.handle(Heard(peer, ack(message.number)), now)  # type: ignore[union-attr]
    assert {peer for _, peer in probed} == {B, C}
    times = [at for at, peer in probed if peer == B]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(0.5 * 3 * CONFIG.period_s <= gap <= 2 * 3 * CONFIG.period_s for gap in gaps)


def test_who_does_not_answer_is_tried_by_three_others_then_suspected_then_dead() -> None:
    one = machine(A, B, C, D, E)
    story = live(one, 0.0, 30.0, all_but(A))
    asked = [now for now, effect in story if isinstance(effect, Send) and A in sent([effect], Probe)]
    relays = sent([effect for now, effect in story if now <= asked[0] + CONFIG.period_s], ProbeFor).keys()
    suspected = next(now for now, effect in story if effect == Suspected(A))
    assert len(relays) == CONFIG.relays
    assert A not in relays
    assert suspected == pytest.approx(asked[0] + CONFIG.period_s)
    # Nobody else doubts it, so it has the most time.
    assert deaths(story) == {A: pytest.approx(suspected + CONFIG.suspicion_most * LEAST_S)}
    assert one.alive == {B, C, D, E}
    assert one.health.score == 0, "the others answered: it was not this node"


def test_who_is_reached_by_another_is_not_suspected() -> None:
    def answer(peer: PeerId, message: Message) -> Message | None:
        return ack(message.number) if isinstance(message, ProbeFor) else all_but(A)(peer, message)

    story = live(machine(A, B, C), 0.0, 30.0, answer)
    assert not [effect for _, effect in story if isinstance(effect, Suspected)]


def test_of_two_members_one_that_is_silent_is_dead_in_the_least_time() -> None:
    story = live(machine(A), 0.0, 30.0, all_but(A))
    assert deaths(story) == {A: pytest.approx(CONFIG.period_s + LEAST_S)}


def test_doubts_of_others_shorten_the_time_to_speak_up_and_forged_names_do_not() -> None:
    took = {}
    for name, by in {"two others": (B, C), "one, twice": (B, B), "strangers": (PeerId("x"), PeerId("y"))}.items():
        one = machine(A, B, C, D, E)
        one.handle(Heard(B, tell(doubt(A, 0, *by))), 0.0)
        took[name] = deaths(live(one, 0.0, 40.0, all_but(A)))[A]
    assert took["two others"] <= CONFIG.period_s + LEAST_S
    assert took["two others"] < took["one, twice"] < took["strangers"]


def test_an_errand_is_answered_either_way_and_in_time() -> None:
    one = machine(A, B)
    errand = ProbeFor(number=7, target=B, incarnation=0, signature=SIGNATURE)
    probe = sent(one.handle(Heard(A, errand), 0.0), Probe)[B]
    assert isinstance(probe, Probe)
    answer = sent(one.handle(Heard(B, ack(probe.number)), 0.1), Ack)[A]
    assert (answer.number, answer.reached) == (7, True)  # type: ignore[union-attr]
    one.handle(Heard(A, errand), 1.0)
    late = [(now, e) for now, e in live(one, 1.0, 0.6, all_but(B)) if A in sent([e], Ack)]
    assert [now for now, _ in late] == [pytest.approx(1.0 + 0.8 * CONFIG.timeout_s)]
    assert not sent([late[0][1]], Ack)[A].reached  # type: ignore[union-attr]


def test_who_is_not_connected_with_the_target_says_so_at_once() -> None:
    one = machine(A)
    answer = sent(one.handle(Heard(A, ProbeFor(number=7, target=B, incarnation=0, signature=SIGNATURE)), 0.0), Ack)[A]
    assert not answer.reached  # type: ignore[union-attr]


def test_errands_are_bounded() -> None:
    one = machine(A, B)
    for number in range(limits.ERRANDS_MAX + 1):
        errand = ProbeFor(number=number, target=B, incarnation=0, signature=SIGNATURE)
        answers = sent(one.handle(Heard(A, errand), 0.0), Ack)
    assert len(one._errands) == limits.ERRANDS_MAX
    assert not answers[A].reached  # type: ignore[union-attr]


# -- connections -------------------------------------------------------------------------------------------------------


def test_a_connection_that_closes_is_no_death_while_others_reach_the_member() -> None:
    one = machine(A, B, C)
    effects = one.handle(Disconnected(A), 1.0)
    asked = sent(effects, ProbeFor)
    assert set(asked) == {B, C}
    assert Living(A) in one.handle(Heard(B, ack(asked[B].number)), 1.1)  # type: ignore[union-attr]
    assert A in one.alive
    assert A not in one.neighbours
    assert not deaths(live(one, 1.1, 60.0, all_but()))


def test_a_connection_that_closes_as_its_peer_said_is_no_reason_to_ask_anybody() -> None:
    one = machine(A, B, C)
    one.handle(Parting(A), 1.0)
    assert A in one.neighbours  # and is probed, until the connection is gone: the word alone hides nobody
    assert not sent(one.handle(Disconnected(A), 1.1), ProbeFor)
    assert A in one.alive
    one.handle(Connected(A), 2.0)
    assert set(sent(one.handle(Disconnected(A), 3.0), ProbeFor)) == {B, C}  # it said nothing this time


def test_one_whom_nobody_reaches_after_its_connection_closed_is_dead_soon_and_sooner_if_it_takes_no_dial() -> None:
    took = []
    for dialled in (False, True):
        one = machine(A, B, C)
        one.handle(Disconnected(A), 0.0)
        story = live(one, 0.0, 1.5, all_but(A))
        assert [now for now, effect in story if effect == Suspected(A)] == [pytest.approx(CONFIG.period_s)]
        one.handle(Heard(B, tell(doubt(A, 0, B))), 1.5)
        if dialled:
            one.handle(DialFailed(A), 1.5)
        took.append(deaths(live(one, 1.5, 60.0, all_but(A)))[A])
    assert took[0] >= took[1]
    assert A not in one.alive


@pytest.mark.parametrize(("refused", "dies"), [(False, True), (True, False)])
def test_one_of_whom_only_hearsay_tells_is_dead_when_no_dial_finds_it_and_nobody_reaches_it(
    refused: bool,
    dies: bool,
) -> None:
    """All who were connected with it may have died in the same moment."""
    one = machine(B, C)
    one.handle(Heard(B, tell(state(A, 1))), 0.1)
    assert A in one.alive
    one.handle(DialFailed(A, refused=refused), 0.2)
    assert (A in deaths(live(one, 0.2, 60.0, all_but(A)))) == dies


def test_one_that_connects_again_lives_at_once_and_hears_that_it_was_doubted() -> None:
    one = machine(A)
    assert A in deaths(live(one, 0.0, 30.0, all_but(A)))
    one.handle(Disconnected(A), 30.0)
    effects = one.handle(Connected(A), 31.0)
    assert effects[0] == Living(A)
    assert sent(effects, Probe)[A].doubts == (doubt(A, 0, ME),)


def test_any_sign_of_a_neighbour_clears_it() -> None:
    for event in (Seen(A), Heard(A, tell()), Connected(A)):
        one = machine(A)
        one.handle(Expired(), 0.0)
        while A not in one.suspects:
            one.handle(Expired(), one.deadline)
        assert Living(A) in one.handle(event, one.deadline - 0.1)
        assert one.suspects == frozenset()


def test_what_comes_from_somebody_who_is_not_connected_is_passed_over() -> None:
    one = machine(A)
    for event in (Seen(B), Heard(B, tell(doubt(A, 0, B))), Disconnected(B), DialFailed(B)):
        assert one.handle(event, 0.0) == []
    assert one.suspects == frozenset()


# -- incarnations and lies ---------------------------------------------------------------------------------------------


def test_who_was_cut_off_tells_whom_it_meets_again_whom_it_suspects() -> None:
    """While nobody answered it gave all others much time, and its doubts went nowhere: one that had died meanwhile was
    held for alive up to two minutes after the cut was healed, for nobody doubted with it.
    """
    one = machine(A, B, C)
    story = live(one, 0.0, 15.0, lambda _peer, _message: None)
    assert B in {effect.peer for _, effect in story if isinstance(effect, Suspected)}
    assert B not in deaths(story)
    one._lives._rumours = Rumours()  # all was told as often as it is, to nobody
    one.handle(Disconnected(A), 15.0)
    one.handle(Connected(A), 15.1)
    assert B in {rumour.peer for rumour in one._lives._rumours.next(9, 9)}


def test_who_is_doubted_states_that_it_lives() -> None:
    one = machine(A)
    one.handle(Heard(A, tell(doubt(ME, 0, A))), 0.0)
    assert one.incarnation == 1
    assert one.health.score == 1, "others find this node slow"
    one.handle(Heard(A, tell(doubt(ME, 0, B))), 0.0)
    assert one.incarnation == 1, "that is answered already"


def test_a_statement_outdoes_an_older_doubt_in_whichever_order_they_come() -> None:
    said: list[Statement | Doubt] = [doubt(B, 0, C), state(B, 1)]
    for rumours in itertools.permutations(said):
        one = machine(A)
        one._lives.hear_statement(state(B, 0))
        for rumour in rumours:
            one.handle(Heard(A, tell(rumour)), 0.0)
        assert B in one.alive
        assert one.suspects == frozenset()


def test_an_absurd_incarnation_in_a_doubt_raises_nothing_and_is_not_passed_on() -> None:
    absurd = 2**53 - 1
    one = machine(A, B)
    one.handle(Heard(A, tell(doubt(ME, absurd, A), doubt(B, absurd, A))), 0.0)
    assert one.incarnation == 1
    assert one._lives[B].incarnation == 0
    said = [d for _, e in live(one, 0.0, 3.0, all_but()) if isinstance(e, Send) for d in e.message.doubts]
    assert said
    assert all(each.incarnation < absurd for each in said)
    one.handle(Heard(B, tell(incarnation=1)), 3.0)
    assert B not in one.suspects


def test_nobody_can_state_for_another() -> None:
    alice, bob, me = identity("alice"), identity("bob"), identity("me")
    members = {each.peer_id for each in (alice, bob, me)}
    one = Liveness(me.peer_id, random.Random(1), SignedWords(me, ROOT.peer_id), knows=members.__contains__)
    one.handle(Connected(bob.peer_id), 0.0)
    words = SignedWords(bob, ROOT.peer_id).state(0)
    forged = SignedWords(bob, ROOT.peer_id).state(10**9).signature
    elsewhere = SignedWords(alice, bob.peer_id).state(5)  # of another mesh
    for statement in (Statement(peer=alice.peer_id, incarnation=10**9, signature=forged), elsewhere):
        message = Tell(incarnation=0, signature=words.signature, statements=(statement,))
        with pytest.raises(PeerError, match="forged"):
            one.handle(Heard(bob.peer_id, message), 0.0)
    good = SignedWords(alice, ROOT.peer_id).state(5)
    one.handle(Heard(bob.peer_id, Tell(incarnation=0, signature=words.signature, statements=(good,))), 0.0)
    assert one.alive == {alice.peer_id, bob.peer_id}


def test_who_lost_its_memory_is_told_what_it_once_stated_and_outdoes_it() -> None:
    one, forgetful = machine(A), Liveness(A, random.Random(2), Unsigned(A), knows=PEERS.__contains__)
    one.handle(Heard(A, tell(incarnation=9)), 0.0)
    one.handle(Heard(A, tell(incarnation=0)), 1.0)
    forgetful.handle(Connected(ME), 1.0)
    [(_, probe), *_] = live(one, 1.0, 1.5, all_but(A))
    assert isinstance(probe, Send)
    forgetful.handle(Heard(ME, probe.message), 1.1)
    assert forgetful.incarnation == 10


def test_strangers_are_never_kept() -> None:
    one = machine(A)
    one.handle(Heard(A, tell(state(PeerId("nobody"), 3), doubt(PeerId("no one"), 0, A))), 0.0)
    assert one.alive == {A}
    assert one.suspects == frozenset()


def test_who_was_thrown_out_is_forgotten_and_no_rumour_brings_it_back() -> None:
    members = {A, B}
    one = Liveness(ME, random.Random(1), Unsigned(ME), knows=members.__contains__)
    one.handle(Connected(A), 0.0)
    one.handle(Heard(A, tell(state(B, 1), doubt(B, 1, A))), 0.0)
    assert one.suspects == {B}
    members.remove(B)
    one.handle(Expelled((B,)), 1.0)
    assert one.handle(Heard(A, tell(state(B, 2), doubt(B, 2, A))), 1.0) == []
    assert one.alive == {A}
    assert one.suspects == frozenset()


def test_a_liar_that_doubts_everybody_all_the_time_makes_nobody_drop_anybody() -> None:
    swarm = Swarm(12)
    swarm.connect_all()
    swarm.run(2.0)
    died = list[Effect]()
    swarm.watch = lambda _name, effect: died.append(effect) if isinstance(effect, Died) else None
    liar, *others = swarm.names
    for _ in range(300):
        victim, listener = swarm.dice.choice(others), swarm.dice.choice(others)
        lie = tell(doubt(victim, swarm.dice.choice([0, 5, 2**53 - 1]), *swarm.dice.sample(swarm.names, 3)))
        swarm.tell(listener, Heard(liar, lie))
        swarm.run(0.1)
    assert died == []
    assert max(swarm.machines[name].incarnation for name in others) > 0, "the lies were heard"
    swarm.run(30.0)
    assert not any(swarm.machines[name].suspects for name in others)


# -- asleep, stopped, busy ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("away_s", [3.0, 60.0, 8 * 3600.0])
def test_who_was_asleep_blames_itself_and_nobody_else(away_s: float) -> None:
    one = machine(A, B, C)
    live(one, 0.0, 10.0, all_but())
    while not one._attempts:  # it falls asleep with a probe under way
        one.handle(Expired(), one.deadline)
    woken = one.deadline + away_s
    effects = one.handle(Expired(), woken)
    assert not [effect for effect in effects if isinstance(effect, Suspected | Died)]
    assert one.health.score == min(math.ceil(away_s), HEALTH_MAX)
    story = live(one, woken, 60.0, all_but())
    assert not [effect for _, effect in story if isinstance(effect, Suspected | Died)]
    assert one.health.score == 0, "and trusts itself again after some answers"


def test_a_suspect_has_all_its_time_although_this_node_slept_through_it() -> None:
    one = machine(A)
    one.handle(Expired(), 0.0)
    while A not in one.suspects:
        now = one.deadline
        one.handle(Expired(), now)
    slept_until = now + 3600.0
    assert one.handle(Expired(), slept_until) != [Died(A)]
    assert A in one.suspects
    died_at = deaths(live(one, slept_until, 60.0, all_but(A)))[A]
    assert died_at > slept_until + 0.5 * LEAST_S


def test_one_that_wakes_to_closed_connections_declares_nobody_dead_before_it_is_connected_again() -> None:
    one = machine(A, B, C)
    live(one, 0.0, 10.0, all_but())
    woken = one.deadline + 5 * 3600.0
    story = [(woken, effect) for peer in (A, B, C) for effect in one.handle(Disconnected(peer), woken)]
    story += live(one, woken, 10.0, all_but(A, B, C))
    assert deaths(story) == {}
    for peer in (A, B, C):
        one.handle(Connected(peer), woken + 10.0)
    assert deaths(live(one, woken + 10.0, 60.0, all_but())) == {}
    assert one.alive == {A, B, C}


def test_who_slept_through_its_own_try_tries_again_before_it_believes_others() -> None:
    one = machine(A, B, C, D, E)
    one.handle(Heard(B, tell(doubt(A, 0, B, C, D))), 0.0)
    woken = one.deadline + 60.0
    one._round = [A, B, C, D, E]  # its turn comes last, and this node is slow now
    story = [(woken, effect) for effect in one.handle(Expired(), woken)] + live(one, woken, 60.0, all_but())
    assert deaths(story) == {}
    assert one.suspects == frozenset()


def test_a_slow_one_asks_less_often_and_waits_longer() -> None:
    one = machine(A, B)
    one.health.note(HEALTH_MAX + 5)
    one.handle(Expired(), 0.0)
    assert one.deadline == pytest.approx((1 + HEALTH_MAX) * CONFIG.timeout_s)


# -- swarms ------------------------------------------------------------------------------------------------------------


def watched(swarm: Swarm) -> list[tuple[PeerId, Effect]]:
    seen = list[tuple[PeerId, Effect]]()
    swarm.watch = lambda name, effect: None if isinstance(effect, Send) else seen.append((name, effect))
    return seen


@pytest.mark.parametrize("nodes", [2, 3, 8, 30])
def test_all_notice_one_that_is_frozen_and_it_is_back_with_all(nodes: int) -> None:
    swarm = Swarm(nodes)
    swarm.connect_all()
    swarm.run(5.0)
    seen = watched(swarm)
    frozen, *others = swarm.names
    swarm.freeze(frozen)
    swarm.run(25.0)
    assert {name for name, effect in seen if effect == Died(frozen)} == set(others)
    assert not [effect for _, effect in seen if isinstance(effect, Died) and effect.peer != frozen]
    assert all(swarm.machines[name].alive == set(others) - {name} for name in others)
    swarm.thaw(frozen)
    for name in others:
        swarm.tell(frozen, Disconnected(name))
        swarm.tell(frozen, Connected(name))
        swarm.tell(name, Connected(frozen))
    swarm.run(30.0)
    assert all(machine.alive == set(swarm.names) - {name} for name, machine in swarm.machines.items())
    assert not any(machine.suspects for machine in swarm.machines.values())
    assert swarm.machines[frozen].incarnation > 0


def test_in_a_large_mesh_a_death_is_known_to_those_who_are_not_connected_with_the_dead() -> None:
    swarm = Swarm(120)
    swarm.connect_rings(5)
    swarm.run(5.0)
    seen = watched(swarm)
    swarm.freeze(swarm.names[0])
    swarm.run(30.0)
    assert {name for name, effect in seen if effect == Died(swarm.names[0])} == set(swarm.names[1:])
    assert not [effect for _, effect in seen if isinstance(effect, Died) and effect.peer != swarm.names[0]]


def test_nobody_is_suspected_where_nothing_is_lost() -> None:
    swarm = Swarm(20)
    swarm.connect_all()
    seen = watched(swarm)
    swarm.run(120.0)
    assert [effect for _, effect in seen if not isinstance(effect, Living)] == []


STORIES = st.lists(
    st.tuples(
        st.sampled_from(["freeze", "thaw", "close", "connect", "lie", "wait"]),
        st.integers(0, 4),
        st.integers(0, 4),
        st.floats(0.0, 8.0),
    ),
    max_size=12,
)


@settings(max_examples=40)
@given(st.integers(0, 99), st.sampled_from([0.0, 0.1, 0.4]), st.sampled_from([0.0, 0.5]), st.floats(0.0, 0.6), STORIES)
def test_whatever_is_lost_late_doubled_closed_or_a_lie_all_agree_in_the_end(
    seed: int, loss: float, duplication: float, late_s: float, story: list[tuple[str, int, int, float]]
) -> None:
    """No crash, bounded state, incarnations only grow; when it is over, all know that all live."""
    swarm = Swarm(5, seed=seed, loss=loss, duplication=duplication, latency_s=(0.001, 0.001 + late_s))
    swarm.connect_all()
    swarm.run(3.0)
    before = dict.fromkeys(swarm.names, 0)
    for what, first, second, pause_s in story:
        act(swarm, what, swarm.names[first], swarm.names[second])
        swarm.run(pause_s)
        for name, one in swarm.machines.items():
            assert one.incarnation >= before[name]
            before[name] = one.incarnation
            assert len(one._attempts) <= 2 * len(swarm.names)
            assert len(one._lives._rumours) <= len(swarm.names)
            assert one.deadline > swarm.now - 1e-9 or name in swarm.frozen
    swarm.loss, swarm.latency_s = 0.0, (0.001, 0.005)
    for name in list(swarm.frozen):
        swarm.thaw(name)
    swarm.run(40.0)
    for name, other in itertools.permutations(swarm.names, 2):
        swarm.tell(name, Connected(other))
    swarm.run(60.0)
    for name, one in swarm.machines.items():
        assert one.alive == set(swarm.names) - {name}
        assert one.suspects == frozenset()


def act(swarm: Swarm, what: str, one: PeerId, other: PeerId) -> None:
    match what:
        case "freeze" if one not in swarm.frozen:
            swarm.freeze(one)
        case "thaw" if one in swarm.frozen:
            swarm.thaw(one)
        case "close" if one != other:
            swarm.tell(one, Disconnected(other))
            swarm.tell(other, Disconnected(one))
        case "connect" if one != other:
            swarm.tell(one, Connected(other))
            swarm.tell(other, Connected(one))
        case "lie" if one != other:
            swarm.tell(one, Heard(other, tell(doubt(one, 10**6, other), doubt(swarm.names[0], 0, one, other))))


EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(Connected, st.sampled_from(PEERS[1:])),
    st.builds(Disconnected, st.sampled_from(PEERS[1:])),
    st.builds(DialFailed, st.sampled_from(PEERS[1:])),
    st.builds(Seen, st.sampled_from(PEERS[1:])),
    st.just(Expired()),
    st.builds(
        Heard,
        st.sampled_from(PEERS[1:]),
        st.one_of(
            st.builds(ack, st.integers(0, 30), reached=st.booleans(), incarnation=st.integers(0, 5)),
            st.builds(
                tell,
                st.builds(state, st.sampled_from(PEERS), st.integers(0, 5)),
                st.builds(doubt, st.sampled_from(PEERS), st.integers(0, 5), st.sampled_from(PEERS)),
                incarnation=st.integers(0, 5),
            ),
            st.builds(
                ProbeFor,
                number=st.integers(0, 30),
                target=st.sampled_from(PEERS),
                incarnation=st.integers(0, 5),
                signature=st.just(SIGNATURE),
            ),
        ),
    ),
)


@given(st.integers(0, 99), st.lists(st.tuples(EVENTS, st.floats(0, 20)), max_size=60))
def test_any_story_keeps_the_invariants(seed: int, story: list[tuple[Event, float]]) -> None:
    one, now = machine(seed=seed), 0.0
    connected: set[PeerId] = set()
    known = dict.fromkeys(PEERS, 0)
    for event, pause_s in story:
        now += pause_s
        match event:
            case Connected(peer):
                connected.add(peer)
            case Disconnected(peer):
                connected.discard(peer)
        for effect in one.handle(event, now):
            if isinstance(effect, Send):
                assert effect.peer in connected
                assert len(pack(effect.message)) <= 1400
        assert one.neighbours == connected
        assert one.suspects <= one.alive <= set(PEERS[1:])
        assert ME not in one.alive
        for peer in one.alive:
            assert one._lives[peer].incarnation >= known[peer]
            known[peer] = one._lives[peer].incarnation


@given(st.integers(0, 5), st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=20))
def test_a_statement_always_wins_over_an_older_doubt(stated: int, said: list[tuple[bool, int]]) -> None:
    one = machine(A)
    one.handle(Heard(A, tell(state(B, stated))), 0.0)
    for is_doubt, incarnation in said:
        one.handle(Heard(A, tell(doubt(B, incarnation, C) if is_doubt else state(B, incarnation))), 0.0)
    life = one._lives[B]
    assert life.incarnation == max([stated, *(number for is_doubt, number in said if not is_doubt)])
    one.handle(Heard(A, tell(state(B, life.incarnation + 1))), 0.0)
    assert B not in one.suspects
    one.handle(Heard(A, tell(doubt(B, life.incarnation - 1, C))), 0.0)
    assert B not in one.suspects


# -- parts -------------------------------------------------------------------------------------------------------------


def test_a_message_never_takes_more_than_an_ethernet_frame() -> None:
    swarm = Swarm(40, loss=0.3)
    swarm.connect_rings(3)
    sizes = list[int]()
    swarm.watch = lambda _name, e: sizes.append(len(pack(e.message))) if isinstance(e, Send) else None
    swarm.run(20.0)
    assert max(sizes) <= 1400


def test_messages_come_back_as_they_were_sent_and_too_long_ones_do_not() -> None:
    message = ProbeFor(
        number=1,
        target=A,
        incarnation=2,
        signature=SIGNATURE,
        statements=(state(B, 3),),
        doubts=(doubt(C, 1, A, B),),
    )
    assert unpack(pack(message), ProbeFor) == message
    for bad in (
        tell(*[state(A, 1)] * (limits.RUMOURS_MAX + 1)),
        tell(*[doubt(A, 1, B)] * (limits.RUMOURS_MAX + 1)),
        tell(doubt(A, 1, *[B] * (limits.DOUBTERS_MAX + 1))),
        tell(doubt(A, 1)),
        tell(Statement(peer=A, incarnation=1, signature=bytes(63))),
        tell(state(A, -1)),
    ):
        with pytest.raises(PeerError):
            unpack(pack(bad), Tell)


def test_rumours_are_told_least_told_first_so_often_and_are_bounded() -> None:
    rumours = Rumours()
    for number in range(limits.RUMOURS_KEPT_MAX + 1):
        rumours.add(state(called(number), 1))
    assert len(rumours) == limits.RUMOURS_KEPT_MAX
    rumours = Rumours()
    rumours.add(state(A, 1))
    assert [rumour.peer for rumour in rumours.next(6, 3)] == [A]
    rumours.add(state(B, 1))
    assert [rumour.peer for rumour in rumours.next(1, 3)] == [B]
    assert {rumour.peer for rumour in rumours.next(6, 3)} == {A, B}
    assert {rumour.peer for rumour in rumours.next(6, 3)} == {A, B}
    assert rumours.next(6, 3) == []


def test_lives_are_bounded_and_the_dead_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LIVES_MAX", 2)
    one = machine(A)
    one.handle(Heard(A, tell(state(B, 1), state(C, 1))), 0.0)
    assert one.alive == {A, B}
    one.handle(Heard(A, tell(doubt(B, 1, A, C, D))), 0.0)
    live(one, 0.0, 40.0, all_but(B))
    assert one.alive == {A}
    one.handle(Heard(A, tell(state(C, 1))), one.deadline)
    assert one.alive == {A, C}


def test_a_suspicion_shrinks_from_the_most_to_the_least_with_what_others_say() -> None:
    suspicion = Suspicion(10.0, 4.0, 24.0, 2)
    suspicion.confirm(A)
    times = [suspicion.deadline]
    for peer in (B, B, C, D):
        suspicion.confirm(peer)
        times.append(suspicion.deadline)
    assert times[0] == 34.0
    assert times[1] == times[2] == pytest.approx(34.0 - 20.0 * math.log(2) / math.log(3))
    assert times[3] == times[4] == 14.0
