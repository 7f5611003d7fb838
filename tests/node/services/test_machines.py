"""The machines beside an instance: which calls run together, when it is started again, who waits at its gate."""

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.errors import Busy
from lepton.node.services.errors import NotHere
from lepton.node.services.instances import gate, restarts
from lepton.node.services.instances.batching import NEVER, Batching
from lepton.node.services.instances.gate import Gate, Queueing
from lepton.node.services.instances.restarts import Restarts

steps = st.lists(st.tuples(st.sampled_from(["add", "done", "tick", "drop"]), st.floats(0, 3)), max_size=60)


@given(steps=steps, size=st.integers(1, 4), wait_s=st.sampled_from([0.0, 1.0]), concurrency=st.integers(1, 3))
def test_batches_keep_order_size_and_concurrency_and_nobody_waits_while_a_place_is_free(
    steps: list[tuple[str, float]], size: int, wait_s: float, concurrency: int
) -> None:
    machine = Batching[list[int]](size_max=size, wait_s=wait_s, concurrency=concurrency)
    now, running, came, begun, dropped = 0.0, 0, list[list[int]](), list[list[int]](), list[list[int]]()
    for what, passed in steps:
        now += passed
        batches = machine.tick(now)
        if what == "add":
            came.append([len(came)])
            batches += machine.add(came[-1], now)
        elif what == "done" and running:
            running -= 1
            batches += machine.done(now)
        elif what == "drop" and came:
            waited = came[-1] not in begun + [each for batch in batches for each in batch] + dropped
            assert machine.drop(came[-1]) == waited
            if waited:
                dropped.append(came[-1])
        running += len(batches)
        begun += [each for batch in batches for each in batch]
        assert all(1 <= len(batch) <= size for batch in batches)
        assert running <= concurrency
        assert running == concurrency or machine.deadline > now
        assert len(machine) == len(came) - len(begun) - len(dropped)
    assert begun == [each for each in came if each in begun]


def test_a_batch_waits_to_fill_and_no_longer() -> None:
    machine = Batching[str](size_max=3, wait_s=0.5, concurrency=1)
    assert machine.add("a", 10.0) == []
    assert machine.deadline == 10.5
    assert machine.add("b", 10.2) == []
    assert machine.tick(10.5) == [["a", "b"]]
    assert [machine.add(each, 11.0) for each in "cdef"] == [[], [], [], []]
    assert machine.deadline == NEVER
    assert machine.done(11.0) == [["c", "d", "e"]]


def test_pauses_double_and_are_forgotten_by_what_worked() -> None:
    machine = Restarts()
    machine.ready(0.0)
    assert [machine.died(0.0) for _ in range(4)] == [0.25, 0.5, 1.0, 2.0]
    for _ in range(50):
        machine.ready(0.0)
        last = machine.died(1.0)
    assert last == 1.0 + restarts.PAUSE_S_MAX
    machine.ready(100.0)
    assert machine.died(100.0 + restarts.WORKED_S) == 100.0 + restarts.WORKED_S + 0.25
    assert (machine.deaths, machine.restarts) == (1, 55)


def test_what_never_was_ready_is_given_up() -> None:
    machine = Restarts()
    assert [machine.died(1.0) is None for _ in range(restarts.STARTS_MAX)] == [False, False, True]
    assert machine.restarts == restarts.STARTS_MAX - 1


async def test_a_gate_lets_in_one_after_another(autojump_clock: trio.testing.MockClock) -> None:
    queueing, order = Queueing(), list[int]()
    narrow = Gate(1, queueing)

    async def one(number: int) -> None:
        await narrow.enter()
        await trio.sleep(1)
        order.append(number)
        narrow.leave()

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(one, number)
            await trio.testing.wait_all_tasks_blocked()
        assert (narrow.running, narrow.waiting, narrow.oldest) == (1, 2, trio.current_time())
    assert order == [0, 1, 2]
    assert (narrow.running, narrow.waiting) == (0, 0)
    now = trio.current_time()
    assert queueing.ms(now) > 300
    assert queueing.ms(now + 60) < 1


async def test_who_leaves_the_line_takes_no_place(autojump_clock: trio.testing.MockClock) -> None:
    narrow = Gate(1, Queueing())
    await narrow.enter()
    with trio.move_on_after(1):
        await narrow.enter()
    assert narrow.waiting == 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(narrow.enter)
        await trio.testing.wait_all_tasks_blocked()
        narrow.leave()  # the place and the cancellation come together
        nursery.cancel_scope.cancel()
    assert narrow.running in {0, 1}
    narrow.shut("It is closed.")
    with pytest.raises(NotHere, match="It is closed"):
        await narrow.enter()


async def test_a_line_has_an_end_and_all_in_it_hear_when_it_shuts(autojump_clock: trio.testing.MockClock) -> None:
    narrow, sent_away = Gate(1, Queueing()), list[int]()
    await narrow.enter()

    async def one(caller: str) -> None:
        with pytest.raises(NotHere):
            await narrow.enter(caller)
        sent_away.append(1)

    async with trio.open_nursery() as nursery:
        for _ in range(gate.WAITING_OF_CALLER_MAX):
            nursery.start_soon(one, "greedy")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Busy, match="128 calls wait"):  # the other half is for others
            await narrow.enter("greedy")
        for _ in range(gate.WAITING_MAX - gate.WAITING_OF_CALLER_MAX):
            nursery.start_soon(one, "modest")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Busy, match="256 calls wait"):
            await narrow.enter("late")
        narrow.shut("It died.")
    assert len(sent_away) == gate.WAITING_MAX
