"""Models larger than a frame: a newcomer is given one in pieces; a policy that cannot send in pieces says so first."""

from pathlib import Path

import numpy as np
import pytest
from lepton.mesh import limits
from lepton.mesh.calls import Answer, Incoming, Method
from lepton.mesh.errors import UsageError
from lepton.node.learning import donors
from lepton.node.learning.messages import State, StateWanted
from lepton.node.shapes import ModelSpec, parameter_count

from .fakes import DIGITS, running

pytestmark = pytest.mark.trio
LARGE = ModelSpec(architecture="mlp", inputs=(64,), classes=4096, hidden=2500)


async def test_a_model_larger_than_a_frame_is_given_whole(tmp_path: Path) -> None:
    dimension = limits.BODY_BYTES_MAX // 4 + 1000
    model = np.arange(dimension, dtype=np.float32)

    async def give(_: Incoming[StateWanted]) -> Answer[State]:
        return Answer(State(round=7, reference=b"name"), bulk=model)

    async with running(tmp_path, "a", "b") as world:
        a, b = world.nodes.values()
        a.mesh.calls.serve(Method(name=donors.METHOD, needs="train", takes=StateWanted, handler=give))
        given = await donors.ask(b.mesh.calls, a.mesh.me, scope="t", version=1, dimension=dimension, rounds=9)
        assert (given.peer, given.round, given.reference) == (a.mesh.me, 7, b"name")
        assert given.vector.dtype == np.float32
        np.testing.assert_array_equal(given.vector, model)


@pytest.mark.parametrize("policy", ["private", "robust"])
async def test_a_policy_that_sends_whole_models_says_at_the_start_that_this_one_is_too_large(
    tmp_path: Path, policy: str
) -> None:
    async with running(tmp_path, "a", data={"a": {"digits": DIGITS}}) as world:
        a = world.nodes["a"]
        size = f"for {parameter_count(LARGE):,} parameters"
        with pytest.raises(UsageError, match=f"The policy '{policy}' sends .* at once {size}.* take less of the model"):
            await a.train("digits", data="digits", model=LARGE, policy=policy, members_min=4)  # type: ignore[arg-type]
