"""How a late comer learns who is here: a neighbour that knows of clearly more tells it, page by page."""

import random

import pytest
from lepton.mesh import limits
from lepton.mesh.identity import SIGNATURE_BYTES, PeerId
from lepton.mesh.lesson import Lesson
from lepton.mesh.liveness import Heard, Liveness, Send
from lepton.mesh.membership import Connected, Disconnected, Expired
from lepton.mesh.messages import pack, unpack
from lepton.mesh.rumours import Ack, Probe, Statement

from .swarm import Swarm, Unsigned, called

ME, A, B = PeerId("me"), PeerId("teacher a"), PeerId("teacher b")
SIGNATURE = bytes(SIGNATURE_BYTES)


def answer(number: int, *told: int, known: int = 100) -> Ack:
    statements = tuple(Statement(peer=called(each), incarnation=1, signature=SIGNATURE) for each in told)
    return Ack(number=number, incarnation=1, signature=SIGNATURE, known=known, statements=statements)


def late_comer(*neighbours: PeerId) -> Liveness:
    one = Liveness(ME, random.Random(1), Unsigned(ME), knows=lambda _peer: True)
    for peer in neighbours:
        one.handle(Connected(peer), 0.0)
    return one


def questions(one: Liveness, event: Heard | Expired | Disconnected, now: float) -> list[tuple[PeerId, int, str]]:
    sent = [effect for effect in one.handle(event, now) if isinstance(effect, Send)]
    asked = [(effect.peer, effect.message) for effect in sent if isinstance(effect.message, Probe)]
    return [(peer, probe.number, probe.after) for peer, probe in asked if probe.after is not None]


@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_one_that_comes_late_to_three_hundred_knows_all_within_half_a_minute(loss: float) -> None:
    swarm = Swarm(300, loss=loss)
    late = swarm.names[-1]
    for machine in swarm.machines.values():
        machine._lives.forget(late)
    swarm.machines[late] = Liveness(late, random.Random(1), Unsigned(late), knows=lambda _peer: True)
    swarm.connect_rings(5)
    swarm.run(30.0)
    everybody = set(swarm.names)
    assert swarm.machines[late].alive == everybody - {late}
    assert all(machine.alive == everybody - {name} for name, machine in swarm.machines.items())


def test_it_asks_one_neighbour_at_a_time_for_what_comes_after_the_last_name() -> None:
    one = late_comer(A, B)
    [(peer, number, after)] = questions(one, Heard(A, answer(0)), 0.0)
    assert (peer, after) == (A, "")
    assert questions(one, Heard(B, answer(0)), 0.1) == []  # one lesson is enough
    assert questions(one, Heard(B, answer(number, 1)), 0.1) == []  # and it is of another
    [(peer, number, after)] = questions(one, Heard(A, answer(number, 5, 3)), 0.1)
    assert (peer, after) == (A, called(5))
    assert questions(one, Heard(A, answer(number)), 0.2) == []  # that was all
    assert questions(one, Heard(B, answer(0)), 0.3) == []  # it waits, should that have been too little
    assert questions(one, Heard(A, answer(0)), 20.0) == []  # and then it is another's turn
    assert [peer for peer, _, _ in questions(one, Heard(B, answer(0)), 20.0)] == [B]


def test_nobody_asks_in_a_small_mesh_or_for_a_few() -> None:
    assert questions(late_comer(A), Heard(A, answer(0, known=50)), 0.0) == []
    one = late_comer(A)
    one.recall([Statement(peer=called(each), incarnation=1, signature=SIGNATURE) for each in range(640)])
    assert questions(one, Heard(A, answer(0, known=661)), 0.0) == []
    assert len(questions(one, Heard(A, answer(0, known=663)), 0.0)) == 1


def test_a_question_is_repeated_twice_and_a_teacher_that_goes_is_left_at_once() -> None:
    lesson = Lesson()
    lesson.begin(A)
    for number in (1, 2):
        lesson.asked(number, 0.0)
        assert lesson.lost(1.0)
    lesson.asked(3, 0.0)
    assert not lesson.lost(1.0)
    assert lesson.teacher is None
    one = late_comer(A, B)
    assert questions(one, Heard(A, answer(0)), 0.0)
    assert questions(one, Disconnected(A), 0.1) == []
    assert [peer for peer, _, _ in questions(one, Heard(B, answer(0)), 11.0)] == [B]


def test_a_teacher_that_tells_the_same_again_is_left() -> None:
    one = late_comer(A)
    [(_, number, _)] = questions(one, Heard(A, answer(0)), 0.0)
    [(_, number, _)] = questions(one, Heard(A, answer(number, 5)), 0.0)
    assert questions(one, Heard(A, answer(number, 4, 5)), 0.0) == []


def test_a_teacher_without_end_is_left_after_so_many_pages() -> None:
    lesson = Lesson()
    lesson.begin(A)
    for page in range(1, limits.LESSON_PAGES_MAX):
        lesson.asked(page, 0.0)
        assert lesson.answered(A, answer(page, page), 0.0)
    lesson.asked(limits.LESSON_PAGES_MAX, 0.0)
    assert not lesson.answered(A, answer(limits.LESSON_PAGES_MAX, limits.LESSON_PAGES_MAX), 0.0)
    assert lesson.teacher is None


def test_a_page_is_the_next_members_by_name_and_never_a_longer_one_than_may_be() -> None:
    one = late_comer(A)
    one.recall([Statement(peer=called(each), incarnation=1, signature=SIGNATURE) for each in range(40, 0, -1)])
    ask = Probe(number=7, incarnation=1, signature=SIGNATURE, after=called(10))
    [reply] = [effect.message for effect in one.handle(Heard(A, ask), 0.0) if isinstance(effect, Send)]
    assert isinstance(reply, Ack)
    assert reply.number == 7
    assert [said.peer for said in reply.statements] == [called(each) for each in range(11, 11 + limits.RUMOURS_MAX)]
    assert unpack(pack(reply), Ack) == reply
