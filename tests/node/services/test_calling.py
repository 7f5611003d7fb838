"""A call is answered once or fails with a reason, whatever happens to hosts, instances and links meanwhile."""

import random
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np
import pytest
import trio
from lepton.mesh import limits
from lepton.mesh.errors import Busy, LeptonError, LinkError, PeerError, Refused, Uncertain, UsageError
from lepton.mesh.identity import PeerId
from lepton.mesh.rpc.methods import Answer
from lepton.mesh.tensors import Array
from lepton.node.services.calling.answering import Answering
from lepton.node.services.calling.calling import PER_HOST_MAX, SMALL_PER_HOST_MAX, WAITING_MAX
from lepton.node.services.calling.hedging import KNOWN_MIN
from lepton.node.services.errors import InstanceLost, NotHere, ServiceError, TooLate
from lepton.node.services.messages import Asked, Given, Value
from lepton.node.services.spec import MethodBrief
from lepton.node.services.writing.values import decode, encode
from trio.testing import MockClock, wait_all_tasks_blocked

from .hosts import ME, METHODS, FakeInstance, FakeInstances, Host, Net, compute, lost, nonsense, release, unsent

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def asked(method: str, *, session: str = "", version: str = "", **value: Any) -> Asked:
    tree, _ = encode(value)
    return Asked(method=method, value=tree, session=session, version=version, request=secrets.token_hex(8))


async def ask(net: Net, method: str = "add", **value: Any) -> Any:
    answer = await net.calling.ask("calc", asked(method, **{"x": 1, "y": 2, **value}))
    return decode(answer.message.value, answer.arrays)


def two(work: Any = compute) -> tuple[Net, FakeInstance, FakeInstance]:
    a, b = FakeInstance("a-1", work), FakeInstance("b-1", work)
    return Net({A: Host(a), B: Host(b)}), a, b


async def slowly(question: Asked, arrays: Sequence[Array]) -> Answer[Given]:
    await trio.sleep(1.0)
    return await compute(question, arrays)


async def forever(question: Asked, arrays: Sequence[Array]) -> Answer[Given]:
    return await trio.sleep_forever()


async def numbers() -> AsyncIterator[Answer[Given]]:
    for number in range(3):
        yield Answer(Given(value=encode(number)[0]))


async def late() -> None:
    await trio.sleep(5.0)


# -- plain calls -------------------------------------------------------------------------------------------------------


async def test_calls_are_answered_by_all_who_are_ready(autojump_clock: MockClock) -> None:
    net, a, b = two()
    assert [await ask(net, x=number) for number in range(40)] == [number + 2 for number in range(40)]
    assert a.ran.total() + b.ran.total() == 40
    assert min(a.ran.total(), b.ran.total()) > 5


async def test_what_cannot_be_is_said_at_once(autojump_clock: MockClock) -> None:
    net, *_ = two()
    for service, question, said in (
        ("cal", asked("add"), "No service 'cal' runs in this mesh. Did you mean 'calc'"),
        ("calc", asked("ad"), "'calc' has no method 'ad'. Did you mean 'add'"),
        ("calc", asked("add", version="7"), "'calc' has no release '7'; there is 1."),
        ("calc", asked("watch"), "calc.watch is a server_stream method and was called as unary"),
    ):
        with pytest.raises(UsageError, match=said):
            await net.calling.ask(service, question)


async def test_this_nodes_own_instance_is_called_without_the_network(autojump_clock: MockClock) -> None:
    own = FakeInstance("own-1")
    net = Net({ME: Host(own)})
    assert await ask(net) == 3
    assert own.ran.total() == 1
    assert net.hosts[ME].asked == 0


async def test_what_is_to_stay_here_is_never_sent_elsewhere(autojump_clock: MockClock) -> None:
    own, other = FakeInstance("own-1", slowly), FakeInstance("a-1")
    net = Net({ME: Host(own), A: Host(other)})
    async with trio.open_nursery() as nursery:
        for number in range(20):  # however long its queue is, and however idle the other
            nursery.start_soon(ask, net, "peek")
            nursery.start_soon(partial(net.calling.ask, "calc", asked("look", x=number), where="here"))
    assert own.ran.total() == 40
    own.die()  # and starts again
    with pytest.raises(NotHere, match="No instance of 'calc' of version 1 is ready on this node"):
        await ask(net, "peek")
    del net.hosts[ME]
    net.tell()
    for call in (asked("peek", x=1, y=2), asked("look", x=1, y=2)):
        began = trio.current_time()
        with pytest.raises(NotHere, match=f"No instance of 'calc' runs on this device, and calc.{call.method} is"):
            await net.calling.ask("calc", call, where="here")
        assert trio.current_time() == began  # nobody could come in time
    with pytest.raises(NotHere, match="runs on this device"):
        await net.calling.feed("calc", asked("sum"), numbers(), where="here")
    with pytest.raises(NotHere, match="runs on this device"):
        [item async for item in net.calling.items("calc", asked("watch", x=3), where="here")]
    assert net.hosts[A].asked == other.ran.total() == 0
    assert await ask(net) == 3
    with pytest.raises(UsageError, match="where='there' is no place"):
        await net.calling.ask("calc", asked("look"), where="there")  # type: ignore[arg-type]


async def test_one_release_that_is_called_here_alone_keeps_calls_of_all_here(autojump_clock: MockClock) -> None:
    open_to_all = [msgspec.structs.replace(method, where="anywhere") for method in METHODS]
    net, a, b = two()
    net.releases = (release("1"), release("2", methods=open_to_all))
    net.tell()
    with pytest.raises(NotHere, match="runs on this device"):
        await ask(net, "peek")
    assert not a.ran + b.ran


async def test_a_host_refuses_calls_from_elsewhere_that_are_for_its_own_programs(autojump_clock: MockClock) -> None:
    a = FakeInstance("a-1")
    net = Net({A: Host(a)})
    net.releases = (release(methods=[msgspec.structs.replace(method, where="anywhere") for method in METHODS]),)
    net.tell()  # a caller to whom something else was said, or that does not care
    with pytest.raises(Refused, match=r"calc\.peek answers programs on its own device alone"):
        await ask(net, "peek")
    assert not a.ran


async def test_what_a_service_says_is_the_last_word(autojump_clock: MockClock) -> None:
    async def fail(question: Asked, arrays: Sequence[Array]) -> Answer[Given]:
        raise ServiceError("ValueError: the frame is black")

    net, a, b = two(fail)
    with pytest.raises(ServiceError, match="the frame is black"):
        await ask(net, "look")
    assert a.ran.total() + b.ran.total() == 1


async def test_who_has_no_grant_is_refused_and_nothing_runs(autojump_clock: MockClock) -> None:
    net, a, b = two()
    for host in net.hosts.values():
        host.capabilities = ("service:other",)
    with pytest.raises(Refused, match="service:calc"):
        await ask(net)
    assert not a.ran + b.ran


# -- elsewhere ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["add", "look"])
async def test_who_certainly_did_not_take_a_call_is_passed_over(autojump_clock: MockClock, method: str) -> None:
    net, a, b = two()
    a.state = "draining"  # and the record still says that it is ready
    assert [await ask(net, method) for _ in range(9)] == [3] * 9
    a.state, b.running_max = "ready", 0
    assert await ask(net, method) == 3
    a.running_max, b.running_max = 0, 1000
    net.hosts[A].before = unsent
    assert [await ask(net, method) for _ in range(9)] == [3] * 9


@pytest.mark.parametrize("fault", [lost, nonsense])
@pytest.mark.parametrize("after", [False, True])
async def test_after_a_loss_only_an_idempotent_method_is_asked_again(
    autojump_clock: MockClock, fault: Any, after: bool
) -> None:
    net, a, b = two()
    for host in net.hosts.values():
        setattr(host, "after" if after else "before", fault)
    with pytest.raises(Uncertain, match=r"not known whether calc.add ran") as caught:
        await ask(net, "add")
    assert isinstance(caught.value, LinkError)
    assert a.ran.total() + b.ran.total() == int(after)
    net.hosts[A].before = net.hosts[A].after = None
    for _ in range(9):
        assert await ask(net, "look") == 3


async def test_a_request_that_kills_instances_kills_two_at_most(autojump_clock: MockClock) -> None:
    async def poison(question: Asked, arrays: Sequence[Array]) -> Answer[Given]:
        raise InstanceLost("it ended while it worked on a call")

    instances = [FakeInstance(f"i-{number}", poison) for number in range(5)]
    net = Net({PeerId(f"h{number}"): Host(one) for number, one in enumerate(instances)})
    with pytest.raises(InstanceLost):
        await ask(net, "look")
    assert sum(one.ran.total() for one in instances) == 2


async def test_an_instance_that_dies_under_a_call_says_so(autojump_clock: MockClock) -> None:
    net, a, b = two(slowly)
    b.state = "draining"
    net.tell()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_raises, InstanceLost, net, "add")
        await trio.sleep(0.5)
        a.die()
    assert a.ran.total() == 1
    assert not b.ran


async def _raises(kind: type[LeptonError], net: Net, method: str) -> None:
    with pytest.raises(kind):
        await ask(net, method)


async def test_a_call_waits_for_somebody_to_be_ready_and_wakes_who_sleeps(autojump_clock: MockClock) -> None:
    net = Net({})
    a = FakeInstance("a-1")

    async def start() -> None:
        await trio.sleep(2.0)
        assert net.woken[:2] == ["calc", "calc"]
        net.hosts[A] = Host(a)
        net.tell()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        assert await ask(net) == 3
    assert trio.current_time() == pytest.approx(2.0, abs=0.01)


async def test_a_call_that_nobody_takes_fails_in_time_with_what_hosts_said(autojump_clock: MockClock) -> None:
    net, a, b = two()
    for one in (a, b):
        one.state = "failed"
    net.tell()
    said = net.said[A]
    failed = type(said.instances[0])(id="a-1", bundle=a.wanted.bundle, version="1", state="failed", reason="no camera")
    net.said[A] = type(said)(revision=1, instances=(failed,))
    with pytest.raises(
        NotHere, match=r"Nobody took a call of calc.add within 10 s: no instance was ready \(no camera\)"
    ):
        await ask(net)
    assert trio.current_time() == pytest.approx(10.0)


async def test_all_busy_is_busy_only_when_the_time_is_over(autojump_clock: MockClock) -> None:
    net, a, b = two()
    a.running_max = b.running_max = 0
    with pytest.raises(Busy), trio.fail_after(20):
        await ask(net)
    assert 9.0 < trio.current_time() <= 10.0


async def test_all_attempts_share_the_callers_deadline(autojump_clock: MockClock) -> None:
    net, *_ = two()
    for host in net.hosts.values():
        host.before = trio.sleep_forever
    with pytest.raises(TooLate):
        await net.calling.ask("calc", asked("look", x=1), timeout_s=3.0)
    assert trio.current_time() == pytest.approx(3.0)
    with trio.move_on_after(1.0) as scope:
        await ask(net)
    assert scope.cancelled_caught


async def test_the_authors_time_is_kept_at_the_host(autojump_clock: MockClock) -> None:
    net, *_ = two(forever)
    with pytest.raises(TooLate):
        await net.calling.ask("calc", asked("add", x=1), timeout_s=300.0)
    assert trio.current_time() == pytest.approx(10.0)


async def test_cancelling_reaches_the_instance(autojump_clock: MockClock) -> None:
    net, a, b = two(slowly)
    with trio.move_on_after(0.5):
        await ask(net)
    assert a.cancelled + b.cancelled == 1


# -- bounds ------------------------------------------------------------------------------------------------------------


async def test_no_host_gets_more_calls_at_once_than_it_takes(autojump_clock: MockClock) -> None:
    most = 0

    async def work(question: Asked, arrays: Sequence[Array]) -> Answer[Given]:
        nonlocal most
        most = max(most, len(a._running))
        return await slowly(question, arrays)

    a = FakeInstance("a-1", work)
    net = Net({A: Host(a)})
    async with trio.open_nursery() as nursery:
        for _ in range(5 * PER_HOST_MAX):
            nursery.start_soon(ask, net)
    assert a.ran.total() == 5 * PER_HOST_MAX
    assert most == PER_HOST_MAX
    assert trio.current_time() == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("places", "given_bytes", "gives_bytes", "expected"),
    [
        (20, 0, 0, 40),  # one batch runs, the next one fills
        (1000, 0, 0, SMALL_PER_HOST_MAX),
        (1, 0, 0, PER_HOST_MAX),
        (20, limits.INLINE_BYTES_MAX + 1, 0, PER_HOST_MAX),
        (20, 0, limits.INLINE_BYTES_MAX + 1, PER_HOST_MAX),
    ],
)
async def test_so_many_calls_are_under_way_as_a_host_works_on_and_as_many_again(
    places: int, given_bytes: int, gives_bytes: int, expected: int, autojump_clock: MockClock
) -> None:
    most = 0

    async def work(question: Asked, arrays: Sequence[Array]) -> Answer[Given]:
        nonlocal most
        most = max(most, len(a._running))
        await trio.sleep(1.0)
        return Answer(Given(), [np.zeros(gives_bytes, np.uint8)])

    a = FakeInstance("a-1", work)
    net = Net({A: Host(a)}, releases=(release(methods=[MethodBrief(name="add", batch_size_max=places)]),))
    arrays = [np.zeros(given_bytes, np.uint8)]

    async def call() -> None:
        await net.calling.ask("calc", asked("add"), arrays, timeout_s=60)

    await call()  # what an answer is like is known from the first on
    async with trio.open_nursery() as nursery:
        for _ in range(3 * SMALL_PER_HOST_MAX):
            nursery.start_soon(call)
    assert most == expected
    assert not net.calling._of_method


async def test_one_call_too_many_that_waits_is_busy(autojump_clock: MockClock) -> None:
    net = Net({})
    async with trio.open_nursery() as nursery:
        for _ in range(WAITING_MAX):
            nursery.start_soon(_raises, NotHere, net, "add")
        await wait_all_tasks_blocked()
        with pytest.raises(Busy, match="already wait"):
            await ask(net)


# -- second questions --------------------------------------------------------------------------------------------------


async def test_a_late_answer_is_asked_of_a_second_and_the_first_answer_counts(autojump_clock: MockClock) -> None:
    rng = random.Random(0)

    async def work(question: Asked, arrays: Sequence[Array]) -> Answer[Given]:
        await trio.sleep(rng.uniform(0.005, 0.010))
        return await compute(question, arrays)

    net, a, b = two(work)
    for method in ("look", "add"):
        for _ in range(2 * KNOWN_MIN):
            await ask(net, method)
    slow = net.hosts[A]
    slow.before, before = late, slow.asked
    with trio.fail_after(1.0):
        while slow.asked == before:
            assert await ask(net, "look") == 3  # from b, though a was asked first
    ran, began = a.ran.total() + b.ran.total(), trio.current_time()
    b.state = "draining"
    assert await ask(net, "add") == 3  # is never asked twice
    assert trio.current_time() - began > 5.0
    assert a.ran.total() + b.ran.total() == ran + 1


# -- sessions, releases ------------------------------------------------------------------------------------------------


async def test_a_session_stays_on_its_instance_until_that_goes(autojump_clock: MockClock) -> None:
    instances = [FakeInstance(f"{host}-{number}") for host in "abc" for number in range(2)]
    net = Net({PeerId(host): Host(*instances[2 * at : 2 * at + 2]) for at, host in enumerate("abc")})
    for number in range(20):
        for _ in range(3):
            await net.calling.ask("calc", asked("keep", session=f"s{number}", x=1))
    assert all(one.ran.total() % 3 == 0 for one in instances)
    home = next(one for one in instances if one.ran)
    home.state = "draining"
    net.tell()
    before = home.ran.total()
    for number in range(20):
        await net.calling.ask("calc", asked("keep", session=f"s{number}", x=1))
    assert home.ran.total() == before


async def test_releases_share_calls_and_a_version_can_be_insisted_on(autojump_clock: MockClock) -> None:
    old, new = FakeInstance("a-1"), FakeInstance("a-2", version="2")
    net = Net({A: Host(old, new)}, releases=(release("1", share=75), release("2", share=25)))
    for _ in range(100):
        await ask(net)
    assert new.ran.total() == pytest.approx(25, abs=2)
    await net.calling.ask("calc", asked("add", version="1", x=1))
    assert old.ran.total() == pytest.approx(76, abs=2)


# -- hosts that lie ----------------------------------------------------------------------------------------------------


async def test_what_is_no_answer_is_said_to_be_none(autojump_clock: MockClock) -> None:
    async def lie(question: Asked, arrays: Sequence[Array]) -> Answer[Given]:
        return Answer(Given(value=Value(tree=b"\xc1")), [])

    net, *_ = two(lie)
    with pytest.raises(PeerError, match="A value cannot be read"):
        await ask(net)


async def test_a_host_that_says_it_runs_what_it_does_not_costs_a_moment(autojump_clock: MockClock) -> None:
    net, _, b = two()
    net.hosts[A].instances.running.clear()  # and its record goes on
    assert [await ask(net) for _ in range(50)] == [3] * 50
    assert b.ran.total() == 50
    assert net.hosts[A].asked < 10
    net.hosts[A].methods.clear()  # of a node that does not answer for services at all
    net.hosts[A].before = told_unknown
    assert await ask(net) == 3


async def told_unknown() -> None:
    error = UsageError("This node does not answer 'services.call'.")
    error.told = True
    raise error


async def test_hosts_that_never_answer_cost_only_their_own_calls(autojump_clock: MockClock) -> None:
    net, *_ = two()
    net.hosts[A].before = trio.sleep_forever
    ends: Counter[str] = Counter()

    async def one() -> None:
        try:
            await ask(net)
            ends["answered"] += 1
        except TooLate:
            ends["late"] += 1

    for _ in range(12):  # five in a row open its breaker
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(one)
    assert ends.total() == 120
    assert ends["late"] < 30


# -- streams -----------------------------------------------------------------------------------------------------------


async def _listed(net: Net, count: int) -> list[int]:
    return [
        decode(item.message.value, item.arrays) async for item in net.calling.items("calc", asked("watch", x=count))
    ]


async def test_a_stream_comes_whole_and_leaving_it_ends_it(autojump_clock: MockClock) -> None:
    net, a, b = two()
    assert await _listed(net, 50) == list(range(50))
    a.state = "draining"
    assert await _listed(net, 3) == [0, 1, 2]  # from the other, though the record is old
    items = net.calling.items("calc", asked("watch", x=10**9))
    async for _ in items:
        break
    await items.aclose()
    assert not b._running
    assert b.cancelled == b.ran.total()


async def test_a_stream_that_breaks_says_so_behind_its_items(autojump_clock: MockClock) -> None:
    net, a, b = two()
    seen: list[int] = []

    async def watch() -> None:
        async for item in net.calling.items("calc", asked("watch", x=100)):
            seen.append(decode(item.message.value, item.arrays))
            if len(seen) == 7:
                a.die()
                b.die()

    with pytest.raises(InstanceLost):
        await watch()
    assert seen[:7] == list(range(7))
    assert a.ran.total() + b.ran.total() == 1


async def test_a_client_stream_is_summed_and_never_sent_twice(autojump_clock: MockClock) -> None:
    net, a, b = two()

    async def dying() -> AsyncIterator[Answer[Given]]:
        for number in range(10):
            if number == 5:
                poisoned.die()
            yield Answer(Given(value=encode(number)[0]))

    poisoned = FakeInstance("nobody")
    a.state = "draining"
    answer = await net.calling.feed("calc", asked("sum", y=1), dying())
    assert decode(answer.message.value, answer.arrays) == 46
    poisoned = b
    with pytest.raises(InstanceLost):
        await net.calling.feed("calc", asked("sum", y=1), dying())
    assert b.ran.total() == 2


# -- all of it ---------------------------------------------------------------------------------------------------------


class Storm:
    """Hosts to which everything happens that can, and callers that count."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.ends: Counter[str] = Counter()
        self.peers = [PeerId(f"h{number}") for number in range(4)]
        self.everybody = [FakeInstance(f"{peer}-0", self.work) for peer in self.peers]
        self.net = Net({peer: Host(one) for peer, one in zip(self.peers, self.everybody, strict=True)})

    async def work(self, question: Asked, arrays: Sequence[Array]) -> Answer[Given]:
        await trio.sleep(self.rng.uniform(0.01, 0.05))
        return await compute(question, arrays)

    async def call(self) -> None:
        for _ in range(60):
            question = asked(self.rng.choice(["add", "look"]), x=1, y=2)
            try:
                answer = await self.net.calling.ask("calc", question)
                assert decode(answer.message.value, answer.arrays) == 3
                self.ends["answered"] += 1
            except (LinkError, Busy) as error:
                self.ends[type(error).__name__] += 1
            runs = sum(one.ran[question.request] for one in self.everybody)
            assert runs <= (1 if question.method == "add" else 3)

    async def blow(self) -> None:
        for _ in range(60):
            await trio.sleep(0.1)
            self.gust(self.net.hosts[self.rng.choice(self.peers)])
            if self.rng.random() < 0.5:
                self.net.tell()
        for host in self.net.hosts.values():
            host.before = host.after = None

    def gust(self, host: Host) -> None:
        running = host.instances.running
        match self.rng.randrange(5):
            case 0:
                for one in running.values():
                    one.die()
            case 1:
                for one in running.values():
                    one.state = "draining"
            case 2:
                host.before = self.rng.choice([unsent, lost, None])
            case 3:
                host.after = self.rng.choice([lost, None, None])
            case _:
                new = FakeInstance(f"n{len(self.everybody)}", self.work)
                self.everybody.append(new)
                kept = {id_: one for id_, one in running.items() if one.state == "ready"}
                host.instances.running = kept | {new.wanted.id: new}
                host.before = host.after = None


@pytest.mark.parametrize("seed", range(5))
async def test_every_call_is_answered_once_or_fails_with_a_reason(autojump_clock: MockClock, seed: int) -> None:
    storm = Storm(seed)
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(storm.call)
        nursery.start_soon(storm.blow)
    assert storm.ends.total() == 600
    assert storm.ends["answered"] > 300, storm.ends
    assert not storm.net.calling._under_way.total()


def test_the_newest_of_versions_side_by_side_is_so_by_its_numbers() -> None:
    instances = FakeInstances(*(FakeInstance(version, version=version) for version in ("0.10", "0.9", "0.9.1")))
    assert Answering(instances).spec("calc").version == "0.10"
