"""People's own training loops average with each other: in one program with nodes, and in scripts beside their nodes."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
import trio
from lepton.gossip.averager import Averager
from lepton.gossip.config import Config
from lepton.mesh.calls import Answer, Incoming, Method
from lepton.mesh.errors import LeptonError, Refused, UsageError
from lepton.mesh.identity import short
from lepton.node import Dataset, GossipOptimizer, Node
from lepton.node.learning import circle, optimizer
from lepton.node.learning.messages import State, StateWanted
from lepton.node.learning.shared import Shared
from lepton.node.picture import CIRCLE, CircleRecord
from torch import nn
from torch.nn.functional import cross_entropy

from .fakes import DIGITS, PATIENCE_S, World, parts, running, until


def network(seed: int = 0, *, width: int = 32, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)  # the global one is of all threads
    model = nn.Sequential(nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 10)).to(dtype)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.1, generator=generator)
    return model


def batches(data: Dataset, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        chosen = rng.choice(len(data.y), 32)
        yield torch.from_numpy(data.x[chosen]), torch.from_numpy(data.y[chosen])


def train(model: nn.Module, opt: GossipOptimizer, data: Dataset, steps: int) -> None:
    for x, y in batches(data, steps):
        opt.zero_grad()
        cross_entropy(model(x), y).backward()
        opt.step()


def accuracy(model: nn.Module) -> float:
    assert DIGITS.x_test is not None
    assert DIGITS.y_test is not None
    model.eval()
    with torch.inference_mode():
        right = model(torch.from_numpy(DIGITS.x_test)).argmax(dim=1).numpy() == DIGITS.y_test
    model.train()
    return float(right.mean())


def sgd(model: nn.Module, node: Node, **options: Any) -> GossipOptimizer:
    return GossipOptimizer(torch.optim.SGD(model.parameters(), 0.1), node, task="own", model=model, **options)


async def together(*loops: Callable[[], None]) -> None:
    """Run loops in threads, as their programs would."""
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for loop in loops:
                nursery.start_soon(trio.to_thread.run_sync, loop)


async def test_three_loops_become_one_model(tmp_path: Path) -> None:
    vectors, rates, reports = {}, {}, {}
    async with running(tmp_path, "a", "b", "c") as world:

        def loop(name: str, data: Dataset) -> None:
            model = network(seed=ord(name))
            inner = torch.optim.SGD(model.parameters(), 0.2)
            schedule = torch.optim.lr_scheduler.StepLR(inner, step_size=50, gamma=0.5)
            opt = GossipOptimizer(
                inner, world.nodes[name], task="own", every=10, model=model, weight=len(data.y), members_min=3
            )
            for _ in range(10):
                train(model, opt, data, 10)
                for _ in range(10):
                    schedule.step()
            assert accuracy(model) >= 0.9  # of ten kinds of digits each loop has seen but some
            vectors[name], rates[name], reports[name] = Shared(model).read(), opt.param_groups[0]["lr"], opt.report
            assert opt.round == 10

        async with trio.open_nursery() as nursery:
            for name, data in zip("abc", parts(3), strict=True):
                nursery.start_soon(world.nodes[name].run_loop, loop, name, data)
        members = {node.mesh.me for node in world.nodes.values()}
    for name in "abc":
        np.testing.assert_array_equal(vectors[name], vectors["a"])  # batch norm's statistics too
        assert rates[name] == 0.05
        report = reports[name]
        assert report is not None
        assert set(report.weights) == members
        assert report.failed == {}
        assert report.bytes_sent > 0
        assert str(report).startswith("round 9: 3 contributed, ")


def said(node: Node, of: Node) -> CircleRecord | None:
    """What a node knows of another's part in the circle."""
    return next((said for record, said in node.mesh.live(CIRCLE, CircleRecord) if record.owner == of.mesh.me), None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
async def test_one_that_comes_late_takes_a_model_first(tmp_path: Path, dtype: torch.dtype) -> None:
    async with running(tmp_path, "a", "b") as world:
        a, b = world.nodes.values()
        ours, theirs = network(1, dtype=dtype), network(2, dtype=dtype)
        averaged = Shared(ours).read()

        def early() -> None:
            opt = sgd(ours, a, every=None)
            for _ in range(5):
                assert set(opt.average().weights) == {a.mesh.me}  # a mesh of one goes on as well
            with torch.no_grad():
                next(ours.parameters()).add_(1.0)  # steps that no round has seen are not given

        def late() -> None:
            opt = sgd(theirs, b, every=None)
            assert opt.report is not None
            assert opt.report.adopted_from == a.mesh.me
            assert str(opt.report) == f"round 5: took the model of {short(a.mesh.me)}"
            assert opt.round == 5

        await together(early)
        await until(lambda: said(b, a))
        await together(late)
        np.testing.assert_allclose(Shared(theirs).read(), averaged, atol=1e-6)


async def test_where_nobody_can_give_a_model_one_goes_on_with_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_nothing(*_: object) -> None:
        raise UsageError("not to be had")

    monkeypatch.setattr(circle.Circle, "give_state", give_nothing)
    async with running(tmp_path, "a", "b") as world:
        a, b = world.nodes.values()
        opts: list[GossipOptimizer] = []

        def early() -> None:
            opts.append(sgd(network(), a, every=None))
            for _ in range(5):
                opts[0].average()

        def late() -> None:
            opts.append(sgd(network(), b, every=None))
            assert opts[1].report is None
            assert opts[1].round == 0

        await together(early)
        await until(lambda: (known := said(b, a)) is not None and known.round == 5)
        await together(late)
        await until(lambda: said(a, b))
        (shown,) = a.status()["tasks"]
        assert (shown["name"], shown["policy"], shown["rounds"]) == ("own", "trusted", None)
        assert {peer: node["state"] for peer, node in shown["nodes"].items()} == dict.fromkeys(
            (a.mesh.me, b.mesh.me), "in its own loop"
        )
        await together(*(lambda opt=opt: round_of_two(opt) for opt in opts))
        assert opts[1].report is not None
        assert opts[1].report.round == 5
        assert "not to be had" in opts[1].report.failed[a.mesh.me]


async def test_a_loop_that_others_have_passed_takes_their_model(tmp_path: Path) -> None:
    """It slept while another did rounds: it does not drag the mean back, nor average alone for ever."""
    async with running(tmp_path, "a", "b") as world:
        a, b = world.nodes.values()
        mine, other = network(1), network(2)
        opts: dict[str, GossipOptimizer] = {}

        def enter(node: Node, model: nn.Module) -> None:
            opts[node.device] = sgd(model, node, every=None, members_min=2)
            assert set(opts[node.device].average().weights) == {a.mesh.me, b.mesh.me}

        def go_on() -> None:  # as if it had done many rounds meanwhile
            opts["a"].load_state_dict(opts["a"].state_dict() | {"round": 40})
            opts["a"].load_state_dict(opts["a"].state_dict() | {"round": 3})
            assert opts["a"].round == 40

        def come_back() -> None:
            assert opts["b"].average().adopted_from == a.mesh.me
            assert opts["b"].round == 40
            np.testing.assert_array_equal(Shared(other).read(), Shared(mine).read())

        await together(lambda: enter(a, mine), lambda: enter(b, other))
        await together(go_on)
        await until(lambda: (known := said(b, a)) is not None and known.round == 40)
        await together(come_back)
        await until(lambda: (known := said(a, b)) is not None and known.first_round == 40)
        await together(*(lambda opt=opt: round_of_two(opt) for opt in opts.values()))


def came_back(opt: GossipOptimizer) -> None:
    assert opt.average().adopted_from is not None


def round_of_two(opt: GossipOptimizer) -> None:
    assert len(opt.average().weights) == 2


async def test_one_whose_loop_has_ended_is_not_waited_for_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circle, "Averager", partial(Averager, config=Config.test()))  # waits a second, not twenty
    async with running(tmp_path, "a", "b") as world:
        a, b = world.nodes.values()
        opts: list[GossipOptimizer] = []

        def enter(node: Node) -> None:
            opts.append(sgd(network(), node, every=None))

        def go_on() -> None:
            for count in (2, 2, 1, 1):
                report = opts[0].average()
                assert report.details is not None
                assert len(report.details.members) == count
                assert (b.mesh.me in report.failed) == (count == 2)

        await together(lambda: enter(a))
        await until(lambda: said(b, a))
        await together(lambda: enter(b))
        await until(lambda: said(a, b))
        await together(go_on)
        await until(lambda: (known := said(b, a)) is not None and known.round >= 3)
        await together(lambda: came_back(opts[1]))
        await until(lambda: (known := said(a, b)) is not None and known.round >= 3)
        await together(*(lambda opt=opt: round_of_two(opt) for opt in opts))
        await together(opts[1].close)
        await until(lambda: not said(a, b))
        await together(lambda: alone(opts[0]))


async def test_a_loop_ends_when_its_program_is_told_to(tmp_path: Path) -> None:
    async with running(tmp_path, "a") as world:
        (a,) = world.nodes.values()
        ended: list[BaseException] = []

        def loop() -> None:
            opt = sgd(network(), a, every=None)
            try:
                while True:
                    opt.average()
            except BaseException as error:
                ended.append(error)
                raise

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.run_loop, loop)
                await until(lambda: "own" in a.tasks.circles.open and a.tasks.circles.open["own"].round >= 3)
                scope.cancel()
        assert [type(error) for error in ended] == [trio.Cancelled]


async def test_one_that_dies_is_left_out(tmp_path: Path) -> None:
    async with running(tmp_path, "a") as world:
        a, model = world.nodes["a"], network()
        async with world.node("b") as b:
            await world.acquainted()
            one, other = [], []
            await together(
                lambda: one.append(sgd(model, a, every=None, members_min=2)),
                lambda: other.append(sgd(network(), b, every=None, members_min=2)),
            )
            await together(lambda: round_of_two(one[0]), lambda: round_of_two(other[0]))
        await together(lambda: alone(one[0]))
        await together(lambda: gone(other[0]))


def alone(opt: GossipOptimizer) -> None:
    assert len(opt.average().weights) == 1


def gone(opt: GossipOptimizer) -> None:
    with pytest.raises(LeptonError, match="closed"):
        opt.average()
    opt.close()


async def test_another_model_is_refused_by_name_and_a_third_who_fits_is_not_hindered(tmp_path: Path) -> None:
    async with running(tmp_path, "a", "b", "c") as world:
        a, b, c = world.nodes.values()
        opts: list[GossipOptimizer] = []
        await together(lambda: opts.append(sgd(network(), a, every=None)))
        await until(lambda: said(b, a) and said(c, a))

        def other() -> None:
            with pytest.raises(UsageError, match=rf"{short(a.mesh.me)} trains another model as 'own': it averages"):
                sgd(network(width=16), b)
            with pytest.raises(UsageError, match="stored otherwise"):
                sgd(network(dtype=torch.bfloat16), b)

        await together(other)
        b.mesh.publish(CIRCLE, "own", CircleRecord(model="0" * 64, dimension=7))
        await until(lambda: said(a, b) and said(c, b))

        def third() -> None:
            opts.append(sgd(network(), c, every=None))

        await together(third)
        await until(lambda: said(a, c))
        await together(*(lambda opt=opt: round_of_two(opt) for opt in opts))
        for opt in opts:
            assert opt.report is not None
            assert opt.report.failed == {b.mesh.me: "it trains another model, of 7 numbers"}


async def test_a_lying_donor_is_found_out_by_what_its_model_does(tmp_path: Path) -> None:
    async with running(tmp_path, "a", "liar", "late") as world:
        a, liar, late = world.nodes.values()
        model, start = network(), network(5)
        opts: list[GossipOptimizer] = []
        await together(lambda: opts.append(sgd(model, a, every=None)))
        size, kin = Shared(model).size, said(a, a)
        assert kin is not None
        noise = 30 * np.random.default_rng(0).standard_normal(size).astype(np.float32)

        async def lie(_: Incoming[StateWanted]) -> Answer[State]:
            return Answer(State(round=7), bulk=noise)

        liar.mesh.calls.serve(Method(name="train.state", needs="train", takes=StateWanted, handler=lie))
        liar.mesh.publish(CIRCLE, "own", CircleRecord(model=kin.model, dimension=size, round=7, first_round=9))
        await until(lambda: said(late, a) and said(late, liar))

        def loss() -> float:
            x, y = next(batches(DIGITS, 1))
            with torch.inference_mode():
                return float(cross_entropy(start(x), y))

        def join() -> None:
            opt = sgd(start, late, evaluate=loss)
            assert opt.report is not None
            assert opt.report.adopted_from == a.mesh.me
            assert opt.report.failed[liar.mesh.me].startswith("Its loss on this node's held-out samples is")
            np.testing.assert_array_equal(Shared(start).read(), Shared(model).read())

        await together(join)


async def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    async with running(tmp_path, "a", "guest", roles={"guest": "client"}) as world:
        a, guest = world.nodes.values()
        model = network()
        with pytest.raises(UsageError, match=r"await node\.run_loop"):
            sgd(model, a)
        stranger = torch.optim.SGD(network().parameters(), 0.1)

        def loop() -> None:
            with pytest.raises(Refused, match="lacks the capability 'train:own'"):
                sgd(model, guest)
            for options, why in (
                ({"every": 0}, "every=0"),
                ({"weight": -1.0}, "weight=-1"),
                ({"codec": "int7"}, "int7"),
                ({"local": ("7.*",)}, "fits no parameter"),
            ):
                with pytest.raises(UsageError, match=why):
                    sgd(model, a, **options)
            with pytest.raises(UsageError, match="give both the same model"):
                GossipOptimizer(stranger, a, task="own", model=model)
            with pytest.raises(UsageError, match="cannot name a task"):
                GossipOptimizer(stranger, a, task="No!")
            with sgd(model, a) as opt:
                with pytest.raises(UsageError, match="on this node already"):
                    sgd(model, a)
                with pytest.raises(UsageError, match="no state of a GossipOptimizer"):
                    opt.load_state_dict({"param_groups": []})
                with torch.no_grad():
                    next(model.parameters()).fill_(torch.nan)
                with pytest.raises(UsageError, match="lower the rate"):
                    opt.average()
            gone(opt)

        await together(loop)


def test_frozen_layers_stay_frozen_and_local_ones_at_home() -> None:
    model = network()
    model[0].requires_grad_(requires_grad=False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    shared, name = optimizer._shared(torch.optim.SGD(model.parameters()), model, ["3.*"])
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [tuple(parameter.shape) for parameter in shared.local] == [(10, 32), (10,)]
    assert [tuple(parameter.shape) for parameter in shared.shared] == [(32,), (32,)]
    head = torch.optim.SGD(model[3].parameters())
    assert optimizer._shared(head, model, [])[0].size == 330 + 64  # and the statistics of batch normalisation
    assert optimizer._shared(head, None, [])[0].size == 330
    whole = network()
    assert optimizer._shared(torch.optim.SGD(whole.parameters()), whole, ["3.*"])[1] != name


def test_two_scripts_with_nodes_beside_them_learn_together(tmp_path: Path) -> None:
    world = World(tmp_path)
    seen: dict[str, np.ndarray[Any, Any]] = {}

    def script(name: str, data: Dataset) -> None:
        options = {"listen": ["127.0.0.1:0"], "interfaces": ["127.0.0.1"], "name": name}
        with Node.in_background(world.furnish(name), **options) as node:
            model = network()
            opt = sgd(model, node, every=10, members_min=2, wait_s=PATIENCE_S)
            train(model, opt, data, 100)
            assert opt.report is not None
            assert len(opt.report.weights) == 2
            assert node.call(node.invite)
            seen[name] = Shared(model).read()
            done.wait(PATIENCE_S)  # a node that ends is missed in a round that still runs
        gone(opt)

    done = Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(script, name, data) for name, data in zip("ab", parts(2), strict=True)]:
            future.result(timeout=2 * PATIENCE_S)
    np.testing.assert_array_equal(seen["a"], seen["b"])


def test_a_node_that_cannot_start_says_so_where_it_was_wanted(tmp_path: Path) -> None:
    with pytest.raises(LeptonError, match="create"), Node.in_background(tmp_path / "nowhere"):
        pytest.fail("there is no mesh in this folder")
    node = Node(World(tmp_path).furnish("a"))
    with pytest.raises(UsageError, match="not running"):
        node.call(node.invite)
