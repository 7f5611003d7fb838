"""Deployments become plans that keep memory's bounds, follow the speeds, share what is left and say what is lacking."""

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lepton.node.deployments import BlobRef, DeploymentRecord
from lepton.node.placement import Links, Plan, Run
from lepton.node.planning import (
    Offer,
    Small,
    Speed,
    at_precision,
    choose_precision,
    job_of,
    plan_deployment,
    plans,
)

MIB = 2**20
BLOB = BlobRef(digest="0" * 64, size_bytes=1)


def deployment(blocks: int = 6, **changes: Any) -> DeploymentRecord:
    """A language model with an embedding, blocks of 100 MiB, and a head of two blocks' size."""
    layers = blocks + 2
    said: dict[str, Any] = {
        "version": 1, "kind": "causal_lm", "manifest": BLOB, "precision": "bfloat16",
        "weights_bytes": (200 * MIB, *([100 * MIB] * blocks), 200 * MIB), "cache_bytes": (0, *([1024] * blocks), 0),
        "width_bytes": 4096, "sessions": 1, "positions": 1024,
    }  # fmt: skip
    record = DeploymentRecord(**{**said, **changes})
    assert len(record.weights_bytes) == layers
    return record


def speed(mib_ns: int) -> dict[Any, Speed]:
    return {
        precision: Speed(mib_ns=mib_ns, mib_many_ns=mib_ns * 2, layer_ns=50_000)
        for precision in ("float32", "bfloat16", "int8", "int4")
    }


def offer(peer: str, mib: int, mib_ns: int = 100_000, **holds: Run) -> Offer:
    return Offer(peer=peer, memory_bytes=mib * MIB, speeds=speed(mib_ns), holds=holds)


def test_a_model_that_fits_one_device_runs_on_the_fastest_and_the_forecast_says_how_fast() -> None:
    plan = plan_deployment("m", deployment(), [offer("a", 2000), offer("b", 2000, 50_000), offer("c", 2000)], Links())
    assert plan.assigned == {"b": (0, 8)}
    assert plan.token_s == pytest.approx((800 * 50_000 + 8 * 50_000) / 1e9)
    assert plan.tokens_per_s == pytest.approx(1 / plan.token_s)
    assert plan.moved_bytes == 1000 * MIB


def test_a_matrix_that_both_ends_share_takes_memory_once_where_one_device_has_both() -> None:
    tied = deployment(tied_bytes=200 * MIB)
    one = [offer("a", 810)]
    assert plan_deployment("m", tied, one, Links()).assigned == {"a": (0, 8)}
    assert plan_deployment("m", deployment(), one, Links()).missing_bytes == 190 * MIB + 6 * MIB
    assert plan_deployment("m", tied, [offer("a", 790)], Links()).missing_bytes == 10 * MIB + 6 * MIB
    two = [offer("a", 500), offer("b", 500)]  # apart from each other the ends take their whole size
    assert plan_deployment("m", tied, two, Links()).missing_bytes == 6 * MIB
    small, left = Small(weights_bytes=(100 * MIB,), copies=1), [offer("a", 910)]
    assert plans({}, {"m": tied, "n": tied}, [offer("a", 1612)], Links())["n"].assigned == {"a": (0, 8)}
    assert plans({"s": small}, {"m": tied}, left, Links())["m"].assigned == {"a": (0, 8)}
    assert job_of(at_precision(tied, "int8")).tied_bytes == job_of(at_precision(tied, "int8")).weights_bytes[0]
    wrong = deployment(tied_bytes=2**53 - 1)  # a record may say anything
    assert plan_deployment("m", wrong, one, Links()).assigned == {"a": (0, 8)}


def test_a_device_that_would_slow_the_answer_is_left_out_and_caches_count_as_memory() -> None:
    offers = [offer("a", 650), offer("b", 650), offer("slow", 650, 10_000_000)]
    assert set(plan_deployment("m", deployment(), offers, Links()).assigned) == {"a", "b"}
    crowded = plan_deployment("m", deployment(sessions=100), offers, Links())  # 100 MiB of caches for each block
    assert set(crowded.assigned) == {"a", "b", "slow"}


def test_what_is_missing_is_said_with_the_precision_that_would_fit() -> None:
    plan = plan_deployment("m", deployment(), [offer("a", 300), offer("b", 300)], Links())
    assert (plan.stages, plan.fits_at) == ((), "int8")
    assert plan.missing_bytes == 400 * MIB + 6 * MIB
    assert plan_deployment("m", deployment(), [offer("a", 10)], Links()).fits_at == ""


def test_copies_have_the_same_cuts_and_throughput_copies_the_slowest_stage() -> None:
    offers = [offer(peer, 650) for peer in "abcde"]
    plan = plan_deployment("m", deployment(replicas=2), offers, Links())
    assert sorted(len(plan.replicas(stage)) for stage in plan.stages) == [2, 2]
    many = plan_deployment("m", deployment(objective="throughput"), offers, Links())
    assert len(many.assigned) == 5
    assert many.tokens_per_s > plan.tokens_per_s


def test_a_gain_that_does_not_pay_for_the_move_changes_nothing() -> None:
    held = [offer("a", 2000, m=(0, 8)), offer("b", 2000, 99_000)]
    assert plan_deployment("m", deployment(), held, Links()).assigned == {"a": (0, 8)}
    held[1] = offer("b", 2000, 10_000)
    assert plan_deployment("m", deployment(), held, Links()).assigned == {"b": (0, 8)}


def test_when_a_stage_dies_the_others_stay_and_somebody_takes_its_layers() -> None:
    left = [offer("a", 650, m=(0, 4)), offer("c", 650), offer("d", 650)]
    plan = plan_deployment("m", deployment(), left, Links())
    assert plan.assigned["a"] == (0, 4)
    assert plan.moved_bytes == 500 * MIB


def test_models_share_memory_and_a_name_counts_once() -> None:
    small = Small(weights_bytes=(100 * MIB,), copies=1)
    found = plans({"m": small, "s": small}, {"m": deployment(), "x": deployment()}, [offer("a", 1300)], Links())
    assert set(found) == {"m", "s", "x"}
    assert found["m"].stages == ((0, 1),)
    assert found["x"].assigned == {"a": (0, 8)}
    assert plans({"s": small}, {"x": deployment()}, [offer("a", 1000)], Links())["x"].missing_bytes > 0


def test_who_may_not_serve_a_model_gets_none_of_it() -> None:
    offers = [replace(offer("a", 2000, 10_000), may=frozenset({"other"})), offer("b", 2000)]
    assert set(plans({}, {"m": deployment()}, offers, Links())["m"].assigned) == {"b"}


def test_precision_is_the_quickest_that_pays_and_int4_only_the_last_resort() -> None:
    def chosen(mib: int, int8_ns: int) -> str:
        speeds = speed(100_000)
        speeds["int8"] = Speed(mib_ns=int8_ns, mib_many_ns=int8_ns)
        return choose_precision("m", deployment(), [Offer(peer="a", memory_bytes=mib * MIB, speeds=speeds)], Links())

    assert chosen(2000, 100_000) == "int8"  # half the bytes
    assert chosen(2000, 200_000) == "bfloat16"  # which this device takes twice as long for
    assert chosen(600, 500_000) == "int8"  # the only one of them that fits
    assert chosen(400, 100_000) == "int4"
    assert chosen(4, 100_000) == "int4"


def test_numbers_at_the_end_of_their_range_overflow_nothing() -> None:
    most = 2**53 - 1
    record = deployment(
        weights_bytes=(most,) * 8, cache_bytes=(most,) * 8, width_bytes=most, sessions=1024, positions=1_000_000
    )
    offers = [Offer(peer=peer, memory_bytes=most, speeds=speed(most)) for peer in "abc"]
    assert plan_deployment("m", record, offers, Links()).missing_bytes > 0
    assert job_of(record).batch == 1


@st.composite
def houses(draw: st.DrawFn) -> tuple[DeploymentRecord, list[Offer]]:
    record = deployment(
        blocks=(blocks := draw(st.integers(1, 6))),
        replicas=draw(st.integers(1, 2)),
        objective=draw(st.sampled_from(["latency", "throughput"])),
    )
    layers = blocks + 2
    runs = [(first, end) for first in range(layers) for end in range(first + 1, layers + 1)]
    offers = []
    for peer in "abcde"[: draw(st.integers(1, 5))]:
        held = draw(st.none() | st.sampled_from(runs))
        offers.append(
            offer(peer, draw(st.integers(100, 1200)), draw(st.sampled_from([20_000, 50_000, 200_000])))
            if held is None
            else offer(peer, draw(st.integers(100, 1200)), draw(st.sampled_from([20_000, 50_000])), m=held)
        )
    return record, offers


def holding(offers: list[Offer], plan: Plan) -> list[Offer]:
    return [replace(o, holds={"m": plan.assigned[o.peer]} if o.peer in plan.assigned else {}) for o in offers]


@settings(max_examples=60)
@given(houses(), st.randoms(use_true_random=False))
def test_a_plan_is_whole_fits_is_the_same_for_all_and_stays_when_followed(
    house: tuple[DeploymentRecord, list[Offer]], rng: random.Random
) -> None:
    record, offers = house
    plan = plan_deployment("m", record, offers, Links())
    assert plan_deployment("m", record, rng.sample(offers, len(offers)), Links()) == plan
    if not plan.stages:
        assert plan.missing_bytes > 0
        return
    job, memory = job_of(record), {o.peer: o.memory_bytes for o in offers}
    assert [layer for first, end in plan.stages for layer in range(first, end)] == list(range(job.layers))
    assert all(plan.replicas(stage) for stage in plan.stages)
    assert [plan.assigned[peer] for peer in plan.route] == list(plan.stages)
    for peer, (first, end) in plan.assigned.items():
        assert sum(job.resident_bytes(layer) for layer in range(first, end)) <= memory[peer]
    assert plan_deployment("m", record, holding(offers, plan), Links()) == replace(plan, moved_bytes=0)


@settings(max_examples=40)
@given(houses(), st.randoms(use_true_random=False))
def test_nodes_that_load_one_after_the_other_come_to_rest(
    house: tuple[DeploymentRecord, list[Offer]], rng: random.Random
) -> None:
    record, offers = house
    held = {o.peer: o.holds for o in offers}
    for _ in range(4):
        moved = False
        for peer in rng.sample(sorted(held), len(held)):
            now = [replace(o, holds=held[o.peer]) for o in offers]
            wanted = plan_deployment("m", record, now, Links()).assigned.get(peer)
            before, held[peer] = held[peer], {} if wanted is None else {"m": wanted}
            moved |= before != held[peer]
        if not moved:
            return
    raise AssertionError("with full news the plan must settle")
