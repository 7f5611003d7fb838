"""What askers, stages and sources that lie or flood cannot do to the sessions of others; each drives the machines."""

from typing import Any

import msgspec
import numpy as np
import pytest
from lepton.mesh.errors import PeerError
from lepton.mesh.identity import PeerId
from lepton.node.generation import messages
from lepton.node.generation.asker import Asked, Asker
from lepton.node.generation.events import Came, Send
from lepton.node.generation.messages import BLOCK, Close, Data, Need, Open, Probe, Token
from lepton.node.generation.prefixes import block_hashes
from lepton.node.generation.route import Route
from lepton.node.generation.sampling import Sampling
from lepton.node.generation.stage import Stage, StageConfig
from lepton.node.generation.steps import Draw, Fork, New, Step, Work
from lepton.node.generation.worker import Worker
from lepton.simulations.toy import LAYERS, ToyEngine

from .fakes import draw
from .test_stage import ASKER, BYTES, FIRST, LAST, MIDDLE, OTHER, ROUTE, RUNS, Bench, data, opened

LIAR = OTHER
PROMPT = tuple(range(2 * BLOCK))


def test_a_draw_that_fails_changes_nothing_for_the_others_of_its_batch() -> None:
    def tokens(*histories: tuple[int, ...]) -> list[int | None]:
        worker = Worker(ToyEngine(0, LAYERS), draw)
        ops = tuple(New(key) for key in range(len(histories)))
        first = [Work(key, (1,), None, Draw(Sampling(), (), 1)) for key in range(len(histories))]
        worker.execute(Step(ops, tuple(first)))
        again = [Work(key, (2,), None, Draw(Sampling(), history, 2)) for key, history in enumerate(histories)]
        return [result.token for result in worker.execute(Step((), tuple(again)))]

    (alone,) = tokens(())
    assert tokens((), (2**31 - 1,)) == [alone, None]  # a token that there is not, in what was said before


def test_a_step_under_way_is_not_upset_by_any_number_of_openings() -> None:
    bench = Bench()
    bench.begin(known=8)
    bench.come(FIRST, data(0, 0, 4))
    for epoch in range(2, 60):
        bench.come(FIRST, opened(epoch=epoch, known=2))
    settle(bench)
    assert bench.come(ASKER, Probe(session=bytes(16), epoch=1))
    bench.begin(1, known=1)
    settle(bench)
    bench.come(FIRST, data(1, 0))
    assert bench.steps[-1].work, "others go on"


def settle(bench: Bench) -> None:
    while bench.stage._batch is not None:
        bench.ran()


def prompt_through(bench: Bench, number: int, before: PeerId, *, epoch: int = 1, ran: bool = True) -> Any:
    """Open a session whose prompt comes from this peer, and let it run; returns what was done to caches first."""
    about = opened(number, known=len(PROMPT) + 1, positions=len(PROMPT) + 2, blocks=block_hashes(PROMPT), epoch=epoch)
    seen = len(bench.steps)
    bench.come(before, msgspec.structs.replace(about, route=(before, MIDDLE, LAST)))
    ops = [op for step in bench.steps[seen:] for op in step.ops]
    settle(bench)
    bench.come(LAST, Need(session=bytes([number]) * 16, epoch=epoch, position=0))
    if ran:
        bench.come(before, data(number, 0, len(PROMPT), epoch=epoch))
        settle(bench)
    return ops


def wide(**config: Any) -> Bench:
    return Bench(config={"cache_bytes_max": 100_000, "chunk": 200, "window": 400, **config})


def test_what_a_liar_made_of_a_prompt_is_not_found_by_those_who_come_another_way() -> None:
    bench = wide()
    prompt_through(bench, 0, LIAR)
    assert isinstance(prompt_through(bench, 1, FIRST)[0], New), "the liar's numbers under the prompt's true name"
    assert isinstance(prompt_through(bench, 2, FIRST)[0], Fork), "what came the same way is shared"


def test_what_came_along_two_routes_is_kept_for_nobody() -> None:
    bench = wide()
    prompt_through(bench, 0, LIAR, ran=False)
    bench.come(LIAR, data(0, 0, len(PROMPT) - 1))
    settle(bench)
    prompt_through(bench, 0, FIRST, epoch=2, ran=False)
    bench.come(ASKER, Close(session=bytes(16), epoch=2))
    settle(bench)
    assert isinstance(prompt_through(bench, 1, FIRST)[0], New)


def test_what_waits_for_a_step_is_bounded_and_a_flood_costs_only_those_who_flood() -> None:
    bench = Bench(config={"inbox_bytes_max": 64 * BYTES, "window": 1, "cache_bytes_max": 10**6})
    bench.begin(0, known=1, positions=200)
    bench.come(FIRST, data(0, 0))  # under way: all else waits
    for number in range(1, 30):
        bench.begin(number, known=1, positions=200)
        for start in range(0, 150, 2):
            bench.come(FIRST, data(number, start, 2))
    sessions = bench.stage._sessions.values()
    assert sum(session.end - len(session.ids) for session in sessions) * BYTES <= 3 * 64 * BYTES
    bench.come(FIRST, data(0, 1))
    assert bench.stage._sessions[bytes(16)].end == 2, "a step of somebody who has little waiting is taken"


def test_a_frame_of_which_little_is_new_does_not_stay_in_memory() -> None:
    bench = wide()
    bench.begin(known=1, positions=900)
    bench.come(FIRST, data(0, 0, 300))
    bench.come(FIRST, data(0, 1, 300))
    kept = bench.stage._sessions[bytes(16)].inbox[-1].x
    assert kept is not None
    assert len(kept) == 1
    assert kept.base is None


def test_many_sessions_of_one_position_do_not_take_more_pages_than_there_is_memory_for() -> None:
    settings = StageConfig(cache_bytes_max=10 * BLOCK * BYTES)
    stage = Stage(MIDDLE, settings, position_bytes=BYTES, input_bytes=BYTES)
    for number in range(200):
        stage.handle(Came(FIRST, opened(number, known=1, positions=1)), 0.0)
    assert stage.sessions == 10


def test_a_session_cannot_be_ended_beforehand_by_somebody_else() -> None:
    bench = Bench()
    bench.come(LIAR, Close(session=bytes(16), epoch=2**32 - 1))
    assert bench.begin()
    bench.come(LIAR, Close(session=bytes(16), epoch=2**32 - 1))
    assert bench.stage.holds(bytes(16))


@pytest.mark.parametrize("said", [Token(bytes(16), 1, 8, 2**31), Token(bytes(16), 1, 2**31, 5)])
def test_a_token_that_could_not_travel_on_is_not_taken(said: Token) -> None:
    (frame,) = messages.decoder().receive(messages.encode(said))
    with pytest.raises(PeerError, match="is none"):
        messages.decode(frame)


def test_a_first_stage_that_asks_again_and_again_is_given_the_prompt_once() -> None:
    asked = Asked(
        session=bytes(16), name="toy", version=1, layers=LAYERS, prompt=PROMPT, positions=200,
        stop_ids=frozenset(), sampling=Sampling(),
    )  # fmt: skip
    asker = Asker(ASKER, asked, lambda *_: Route(ROUTE, RUNS), 0.0)
    effects = asker.handle(Came(FIRST, Probe(session=bytes(16), epoch=1)), 0.0)
    deadline = 0.0
    for second in range(5):
        effects += asker.handle(Came(FIRST, Need(session=bytes(16), epoch=1, position=0)), second / 10)
        deadline = deadline or asker.deadline
    given = [effect for effect in effects if isinstance(effect, Send) and isinstance(effect.said, Data)]
    assert len(given) == 1
    assert asker.deadline == deadline, "asking again does not put off the moment at which it is looked after"


def test_only_who_is_on_the_route_brings_anything_into_a_session() -> None:
    bench = Bench()
    bench.begin()
    before = bench.stage._sessions[bytes(16)]
    for peer in (LIAR, LAST):
        bench.come(peer, data(0, 0, 4))
        bench.come(peer, opened(epoch=9))
        bench.come(peer, Close(session=bytes(16), epoch=9))
    bench.come(LIAR, Need(session=bytes(16), epoch=1, position=0))
    assert bench.stage._sessions[bytes(16)] is before
    assert (before.end, before.opened.epoch) == (0, 1)
    assert isinstance(before.opened, Open)
    assert np.array_equal(before.ids, [])
