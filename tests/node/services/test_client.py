"""Programs call services with Python's values, by name or through the author's class, and mistakes are named."""

import inspect
import pydoc
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from lepton.mesh.errors import UsageError
from lepton.mesh.identity import PeerId
from lepton.mesh.rpc.methods import Answer
from lepton.mesh.tensors import Array
from lepton.node.services.calling.client import Clients
from lepton.node.services.errors import ServiceError
from lepton.node.services.messages import Asked, Given
from lepton.node.services.writing.api import method, service
from lepton.node.services.writing.declaring import declared
from lepton.node.services.writing.values import decode, encode
from trio.testing import MockClock

from .hosts import FakeInstance, Host, Net, release


@dataclass
class Box:
    corner: tuple[int, int]
    mask: npt.NDArray[np.uint8] | None = None


@service("calc", version="1")
class Calc:
    """Computes."""

    @method
    def add(self, x: int, y: int = 0) -> int:
        """Add two numbers."""
        return x + y

    @method(session="name")
    def frame(self, image: npt.NDArray[np.uint8], name: str = "") -> Box:
        return Box((int(image.shape[0]), 0), image)

    @method
    def watch(self, x: int) -> Iterator[Box]:
        yield from (Box((number, 0)) for number in range(x))

    @method
    async def sum(self, xs: AsyncIterator[int], y: int = 0) -> int:
        return y + sum([x async for x in xs])


async def work(asked: Asked, arrays: Sequence[Array]) -> Answer[Given]:
    """Do what an instance does, without checks."""
    value, made = encode(getattr(Calc(), asked.method)(**decode(asked.value, arrays)))
    return Answer(Given(value=value), made)


def clients(**changes: Any) -> tuple[Clients, FakeInstance, Net]:
    spec = msgspec.structs.replace(declared(Calc).spec, **changes)
    one = FakeInstance("a-1", work)
    one.wanted = type(one.wanted)(id="a-1", spec=spec, bundle=one.wanted.bundle, folder=one.wanted.folder)
    net = Net({PeerId("a"): Host(one)}, releases=(release("1", methods=spec.methods),))
    return Clients(net.calling), one, net


IMAGE = np.arange(6, dtype=np.uint8).reshape(2, 3)


async def test_values_go_by_name_and_by_position(autojump_clock: MockClock) -> None:
    by_name, _, net = clients()
    assert await by_name.call("calc.add", (1,), {"y": 2}) == 3
    assert await by_name.call("calc.add", (), {"x": 5}) == 5
    found = await by_name.call("calc.frame", (IMAGE,))
    assert found["corner"] == [2, 0]
    np.testing.assert_array_equal(found["mask"], IMAGE)
    assert net.hosts[PeerId("a")].asked == 4  # what the method takes was asked once


async def test_a_class_gives_its_own_types_back(autojump_clock: MockClock) -> None:
    by_class, _, _ = clients()
    calc = by_class.client(Calc)
    assert await calc.add(1, y=2) == 3
    box = await calc.frame(IMAGE)
    assert isinstance(box, Box)
    assert box.corner == (2, 0)
    np.testing.assert_array_equal(box.mask, IMAGE)

    async def numbers() -> AsyncIterator[int]:
        for number in range(4):
            yield number

    assert await calc.sum(numbers(), y=10) == 16
    assert str(inspect.signature(calc.add)) == "(x: int, y: int = 0) -> int"
    assert "Add two numbers." in pydoc.render_doc(calc.add)
    assert "frame" in dir(calc)


async def test_streams_have_the_types_too_and_may_be_left(autojump_clock: MockClock) -> None:
    by_class, one, _ = clients()

    async def items(x: int) -> list[Any]:
        return [item async for item in by_class.stream("calc.watch", (x,))]

    assert await items(3) == [0, 1, 2]  # the fake streams numbers, whatever the method
    async with by_class.client("calc").watch(x=10**6) as found:
        async for item in found:
            assert item == 0
            break
    assert one.cancelled == 2  # both were ended
    with pytest.raises(ServiceError, match=r"What calc.watch gave: Expected `object`, got `int`"):
        await anext(by_class.client(Calc).watch(3))


async def test_mistakes_are_named_before_anything_is_sent(autojump_clock: MockClock) -> None:
    by_name, one, _ = clients()
    calc = by_name.client(Calc)

    async def call(target: str, *positional: object, **named: object) -> None:
        await by_name.call(target, positional, named)

    for what, said in (
        (lambda: call("add", 1), "'add' is no method of a service: write SERVICE.METHOD"),
        (lambda: call("calc.add", 1, 2, 3), "calc.add takes x, y; 3 values were given"),
        (lambda: call("calc.add", 1, x=2), "calc.add was given 'x' twice"),
        (lambda: call("calc.watch", 1), "gives a stream: iterate over"),
        (lambda: call("calc.sum", 1), "takes one parameter that is a stream"),
        (lambda: call("calc.add", object()), "cannot travel like this"),
        (lambda: call("calc.frame", np.zeros(70_000_000, dtype=np.uint8)), "one message holds"),
        (calc.add, "calc.add needs x"),
        (lambda: calc.add(1, z=2), "calc.add has no parameter 'z'; it takes x, y"),
        (lambda: calc.sub(1), "Calc has no method 'sub' under @method"),
        (lambda: by_name.client("calc").ad(1), "has no method 'ad'. Did you mean 'add'"),
        (lambda: anext(by_name.stream("calc.add", (1,))), "gives one answer"),
    ):
        with pytest.raises(UsageError, match=said):
            await what()
    assert not one.ran
    assert not hasattr(calc, "_repr_html_")  # notebooks ask


async def test_equal_values_of_the_sessions_parameter_are_one_session(autojump_clock: MockClock) -> None:
    by_name, one, _ = clients()
    seen: list[str] = []

    async def note(asked: Asked, arrays: Sequence[Array]) -> Answer[Given]:
        seen.append(asked.session)
        return await work(asked, arrays)

    one._work = note
    for name in ("yard", "yard", "door", ""):
        await by_name.call("calc.frame", (IMAGE,), {"name": name})
    await by_name.call("calc.frame", (IMAGE,))
    assert seen[0] == seen[1] != seen[2]
    assert not seen[4]


async def test_one_id_follows_a_request(autojump_clock: MockClock) -> None:
    from lepton.node.seeing import request

    by_name, one, _ = clients()
    with request.entering("a user's request") as id_:
        await by_name.call("calc.add", (1,))
        await by_name.call("calc.add", (1,))
    await by_name.call("calc.add", (1,))
    assert one.ran[id_] == 2
    assert len(one.ran) == 2
