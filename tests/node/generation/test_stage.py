"""One stage: what it takes on and what it refuses, how it forms batches, and when it forgets."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest
from lepton.mesh.identity import PeerId
from lepton.mesh.tensors import Array
from lepton.node.generation.events import Came, Expired, Lost, Ran, Send
from lepton.node.generation.messages import Ack, Alive, Broke, Close, Data, Declined, Need, Open, Probe, Said, Token
from lepton.node.generation.prefixes import block_hashes
from lepton.node.generation.stage import Effect, Stage, StageConfig
from lepton.node.generation.steps import Drop, Fork, New, Result, Step, Truncate

ASKER, FIRST, MIDDLE, LAST, OTHER = map(PeerId, ("asker", "first", "middle", "last", "other"))
ROUTE, RUNS = (FIRST, MIDDLE, LAST), ((0, 2), (2, 4), (4, 6))
BYTES = 16  # of a position, in the cache and between stages


def opened(number: int = 0, *, index: int = 1, known: int = 8, positions: int = 100, **changes: Any) -> Open:
    about = Open(
        session=bytes([number]) * 16, epoch=1, name="toy", version=1, asker=ASKER, route=ROUTE, runs=RUNS, index=index,
        known=known, positions=positions,
    )  # fmt: skip
    return msgspec.structs.replace(about, **changes)


def data(number: int, position: int, count: int = 1, *, epoch: int = 1, tokens: bool = False) -> Data:
    x = None if tokens else np.zeros((count, BYTES), dtype=np.uint8)
    return Data(bytes([number]) * 16, epoch, position, tuple(range(position, position + count)), x)


@dataclass
class Bench:
    """A stage in the middle, or another, whose engine answers when the test says so."""

    index: int = 1
    config: dict[str, Any] = field(default_factory=dict)
    now: float = 0.0
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings = StageConfig(**{"cache_bytes_max": 10_000, "page": 1, "chunk": 4, "window": 8, **self.config})
        self.stage = Stage(ROUTE[self.index], settings, position_bytes=BYTES, input_bytes=BYTES if self.index else None)

    def sort(self, effects: Sequence[Effect]) -> list[tuple[PeerId, Said]]:
        self.steps += [effect for effect in effects if isinstance(effect, Step)]
        return [(effect.peer, effect.said) for effect in effects if isinstance(effect, Send)]

    def come(self, peer: PeerId, said: Said) -> list[tuple[PeerId, Said]]:
        return self.sort(self.stage.handle(Came(peer, said), self.now))

    def ran(self, token: int | None = None) -> list[tuple[PeerId, Said]]:
        """The step under way is done."""
        x: Array = np.zeros((1, BYTES), dtype=np.uint8)
        results = [
            Result(token=token) if work.draw else Result(x=np.repeat(x, len(work.ids), axis=0))
            for work in self.steps[-1].work
        ]
        return self.sort(self.stage.handle(Ran(tuple(results)), self.now))

    def begin(self, number: int = 0, **changes: Any) -> list[tuple[PeerId, Said]]:
        """Open a session, and let the stage behind need everything."""
        said = self.come(ROUTE[self.index - 1] if self.index else ASKER, opened(number, index=self.index, **changes))
        if self.steps and not self.steps[-1].work:
            said += self.ran()
        if self.index < 2:
            said += self.come(ROUTE[self.index + 1], Need(session=bytes([number]) * 16, epoch=1, position=0))
        return said

    def expire(self, now: float) -> list[tuple[PeerId, Said]]:
        self.now = now
        return self.sort(self.stage.handle(Expired(), now))


def test_an_opening_goes_down_the_route_and_what_is_needed_comes_back() -> None:
    bench = Bench()
    assert bench.begin() == [
        (LAST, opened(index=2)),
        (FIRST, Need(session=bytes(16), epoch=1, position=0, loads=(0.0,))),
    ]
    assert bench.steps[0].ops == (New(1),)
    last = Bench(index=2)
    assert last.begin() == [(MIDDLE, Need(session=bytes(16), epoch=1, position=0, loads=(0.0,)))]


def test_what_waits_runs_as_one_batch_with_one_chunk_of_prompts() -> None:
    bench = Bench()
    for number in range(4):
        bench.begin(number, known=1)
    bench.begin(4, known=40)
    bench.begin(5, known=40)
    bench.come(FIRST, data(0, 0))
    assert [len(work.ids) for work in bench.steps[-1].work] == [1]  # nothing waits for company
    for number in (4, 5):
        bench.come(FIRST, data(number, 0, 8))
    for number in (1, 2, 3):
        bench.come(FIRST, data(number, 0))
    bench.ran()
    assert sorted(len(work.ids) for work in bench.steps[-1].work) == [1, 1, 1, 4]
    bench.ran()
    assert [(work.key, work.ids) for work in bench.steps[-1].work] == [(6, (0, 1, 2, 3))]  # the other prompt's turn
    short = Bench()
    for number in range(3):
        short.begin(number, known=3)
        short.come(FIRST, data(number, 0, 2))
    short.ran()
    assert [work.ids for work in short.steps[-1].work] == [(0, 1), (0, 1)]  # two that fit
    assert bench.stage.counts.largest_batch == 4


def test_a_prompt_is_not_run_further_ahead_than_the_window() -> None:
    bench = Bench()
    bench.begin(known=40)
    bench.come(FIRST, data(0, 0, 16))
    sent = [*bench.ran(), *bench.ran()]
    assert [said.position for peer, said in sent if isinstance(said, Data)] == [0, 4]
    steps = len(bench.steps)
    assert [said for _, said in sent if isinstance(said, Ack)][-1].position == 8
    assert len(bench.steps) == steps  # 8 positions are ahead of what the last stage has run
    bench.come(LAST, Ack(session=bytes(16), epoch=1, position=4))
    assert len(bench.steps) == steps + 1


def test_the_last_stage_draws_and_tells_the_asker_and_the_first() -> None:
    bench = Bench(index=2)
    bench.begin(known=3, positions=5, stop_ids=(9,))
    bench.come(MIDDLE, data(0, 0, 3))
    draw = bench.steps[-1].work[0].draw
    assert draw is not None
    assert draw.position == 3
    token, step, _ = bench.ran(token=7)
    assert token == (ASKER, Token(bytes(16), 1, 3, 7))
    assert step == (FIRST, Data(bytes(16), 1, 3, (7,)))
    bench.come(MIDDLE, data(0, 3))
    assert bench.ran(token=7) == [(ASKER, Token(bytes(16), 1, 4, 7))]  # the last that there may be
    again = Bench(index=2)
    again.begin(known=3, stop_ids=(9,))
    again.come(MIDDLE, data(0, 0, 3))
    assert [peer for peer, _ in again.ran(token=9)] == [ASKER, MIDDLE]  # and nothing goes on behind a stop


@pytest.mark.parametrize(
    "wrong",
    [
        (OTHER, data(0, 0)),
        (LAST, data(0, 0)),
        (ASKER, data(0, 0)),
        (FIRST, data(0, 1)),
        (FIRST, data(0, 0, epoch=2)),
        (FIRST, data(0, 0, tokens=True)),
        (FIRST, data(0, 0)._replace(x=np.zeros((1, BYTES + 4), dtype=np.uint8))),
        (FIRST, data(0, 0, 101)),
        (FIRST, data(1, 0)),
    ],
)
def test_steps_that_are_not_this_session_s_are_passed_over(wrong: tuple[PeerId, Data]) -> None:
    bench = Bench()
    bench.begin()
    steps = len(bench.steps)
    assert bench.come(*wrong) == []
    assert len(bench.steps) == steps
    bench.come(FIRST, data(0, 0))
    assert len(bench.steps) == steps + 1
    bench.come(FIRST, data(0, 0))  # a second time
    bench.ran()
    assert len(bench.steps) == steps + 1


def test_only_the_route_opens_and_only_the_asker_closes() -> None:
    bench = Bench()
    for sender in (ASKER, OTHER, LAST):
        assert bench.come(sender, opened()) == []
    bench.begin()
    assert bench.come(FIRST, opened(epoch=2, asker=OTHER)) == []
    assert bench.come(FIRST, opened(epoch=1)) == []
    bench.come(OTHER, Close(session=bytes(16), epoch=9))
    assert bench.stage.sessions == 1
    bench.come(ASKER, Close(session=bytes(16), epoch=1))
    assert bench.stage.sessions == 0
    assert bench.come(FIRST, opened(epoch=1)) == []  # it was on its way
    assert bench.come(FIRST, opened(epoch=2)) != []


def test_memory_is_promised_before_it_is_used() -> None:
    bench = Bench(config={"cache_bytes_max": 250 * BYTES, "waiting_max": 1, "wait_s": 5.0})
    bench.begin(0)
    bench.begin(1)
    assert bench.come(FIRST, opened(2)) == []  # it waits
    ((peer, busy),) = bench.come(FIRST, opened(3))
    assert (peer, type(busy)) == (ASKER, Declined)
    assert isinstance(busy, Declined)
    assert busy.why == "busy"
    assert "2 sessions have" in busy.reason
    ((_, never),) = bench.come(FIRST, opened(4, positions=251))
    assert isinstance(never, Declined)
    assert never.why == "usage"
    assert bench.come(ASKER, Probe(session=bytes([2]) * 16, epoch=1))[0][1].state == "waiting"  # type: ignore[union-attr]
    bench.come(ASKER, Close(session=bytes(16), epoch=1))
    assert bench.stage.sessions == 2  # who waited was let in
    assert bench.stage.promised_bytes == 200 * BYTES
    bench.come(FIRST, opened(5))
    ((_, late),) = bench.expire(5.0)
    assert isinstance(late, Declined)
    assert late.why == "busy"
    assert bench.stage.waiting == 0


def test_a_session_of_which_nothing_is_heard_is_dropped_and_a_probe_keeps_it() -> None:
    bench = Bench(config={"lease_s": 10.0})
    bench.begin(0)
    bench.begin(1)
    bench.now = 8.0
    assert bench.come(ASKER, Probe(session=bytes(16), epoch=1))[0][1] == Alive(
        session=bytes(16), epoch=1, state="idle", length=0, asked=True
    )
    bench.expire(10.0)
    assert bench.stage.sessions == 1
    assert any(isinstance(op, Drop) for op in bench.steps[-1].ops)
    bench.ran()
    bench.sort(bench.stage.handle(Lost(ASKER, "left"), 11.0))
    assert bench.stage.sessions == 0


def test_whoever_cannot_be_reached_is_named_to_the_asker() -> None:
    bench = Bench()
    bench.begin()
    for peer in (LAST, FIRST):
        ((to, said),) = bench.sort(bench.stage.handle(Lost(peer, "was lost", left=False), 1.0))
        assert to == ASKER
        assert isinstance(said, Broke)
        assert said.peer == peer
    assert bench.sort(bench.stage.handle(Lost(OTHER, "was lost"), 1.0)) == []
    bench.sort(bench.stage.handle(Lost(ASKER, "was lost", left=False), 1.0))
    assert bench.stage.sessions == 1  # only this node does not see it


def test_a_replica_is_given_what_was_kept_and_without_it_the_stage_computes_again() -> None:
    for kept, expected in ((1 << 20, [8]), (0, [0])):
        bench = Bench(config={"kept_bytes_max": kept})
        bench.begin(known=8)
        bench.come(FIRST, data(0, 0, 8))
        bench.ran()
        bench.come(LAST, Ack(session=bytes(16), epoch=1, position=4))
        bench.ran()
        bench.come(FIRST, opened(epoch=2, known=8))
        said = bench.come(LAST, Need(session=bytes(16), epoch=2, position=0))
        assert [one.position for peer, one in said if isinstance(one, Need)] == expected
        assert sum(len(one.ids) for _, one in said if isinstance(one, Data)) == expected[0]
        assert any(isinstance(op, Truncate) for step in bench.steps for op in step.ops) == (kept == 0)


def test_a_prompt_that_begins_like_another_is_computed_from_there_on() -> None:
    ids = tuple(range(130))
    bench = Bench(config={"cache_bytes_max": 700 * BYTES, "chunk": 130, "window": 500})
    bench.begin(0, known=130, positions=200, blocks=block_hashes(ids))
    bench.come(FIRST, data(0, 0, 130))
    bench.ran()
    assert [op for op in bench.steps[-1].ops if isinstance(op, Fork)] == [Fork(2, 1, 128)]
    bench.ran()
    said = bench.begin(1, known=100, positions=200, blocks=block_hashes(ids[:100]))
    assert [one.position for _, one in said if isinstance(one, Need)] == [0]  # the stage behind has nothing, so
    assert any(op == Fork(3, 2, 64) for step in bench.steps for op in step.ops)
    assert bench.stage.counts.shared_positions == 64
    bench.begin(2, positions=200)
    assert bench.stage.promised_bytes == (600) * BYTES  # the prefix made room for a session


def test_a_stage_that_is_replaced_takes_no_new_session_and_keeps_those_it_has() -> None:
    bench = Bench()
    bench.begin(0)
    bench.stage.draining = "it moves"
    ((_, gone),) = bench.come(FIRST, opened(1))
    assert isinstance(gone, Declined)
    assert gone.why == "gone"
    assert bench.come(FIRST, opened(0, epoch=2)) != []
    effects = bench.stage.close_all(1.0, "it ends")
    assert [said.why for _, said in bench.sort(effects) if isinstance(said, Declined)] == ["gone"]
    assert bench.stage.sessions == bench.stage.promised_bytes == 0


def test_the_shared_part_of_a_longer_prefix_is_all_that_is_taken() -> None:
    ids = tuple(range(130))
    bench = Bench(index=2, config={"cache_bytes_max": 700 * BYTES, "chunk": 130})
    bench.begin(0, known=130, positions=200)
    bench.come(MIDDLE, data(0, 0, 130))
    bench.ran(token=5)
    bench.ran()
    said = bench.begin(1, known=100, positions=200, blocks=block_hashes(ids[:100]))
    assert [one.position for _, one in said if isinstance(one, Need)] == [64]
    bench.come(MIDDLE, data(1, 64, 36))
    assert bench.steps[-1].work[0].ids == tuple(range(64, 100))
