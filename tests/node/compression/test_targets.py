"""What is asked of a smaller model is read in one way, and which candidate is taken follows from the figures alone."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.errors import LeptonError, UsageError
from lepton.node.compression.search.picking import Figures, Tried, breaks, front, nearest, pick
from lepton.node.compression.search.recipes import (
    Distil,
    Prune,
    Recipe,
    Round,
    harsher,
    is_ordered,
    least_share,
    said,
    same_form,
)
from lepton.node.compression.search.searching import hopeless, search
from lepton.node.compression.search.targets import Limits, Targets, parse_targets

BEFORE = Figures(size_bytes=1000, latency_s=0.010, quality=90.0)
INT8, INT4, TRAINED = (Round(bits=8),), (Round(bits=4),), (Round(bits=4, trained=True),)


def figures(size: int, latency_ms: float = 5, lost: float = 0) -> Figures:
    return Figures(size_bytes=size, latency_s=latency_ms / 1000, quality=90 - lost, lost=lost)


def tried(*each: Figures) -> list[Tried]:
    return [Tried(recipe=(Prune(kind="global", share=(i + 1) / 100),), figures=one) for i, one in enumerate(each)]


def test_targets_are_bounds_or_shares_of_what_the_model_has() -> None:
    found = parse_targets(["size=4MB, latency=0.5x", "accuracy=-0.5"])
    assert found == Targets(size_bytes=4_000_000, latency_share=0.5, quality="accuracy", lost=0.5)
    assert found.limits(9_000_000, 0.2) == Limits(size_bytes=4_000_000, latency_s=0.1, lost=0.5)
    assert parse_targets("perplexity=+5%") == Targets(quality="perplexity", lost=5.0)
    assert parse_targets("size=0.25x").limits(1000, 1.0) == Limits(size_bytes=250)
    assert parse_targets("latency=5ms").latency_s == pytest.approx(0.005)
    assert parse_targets("latency=250us").latency_s == pytest.approx(0.00025)
    assert parse_targets("accuracy=-0").lost == 0


@pytest.mark.parametrize(
    "text",
    [
        "", "size", "size=", "size=big", "size=2x", "size=0x", "latency=5", "latency=0ms", "accuracy=0.5", "speed=2x",
        "accuracy=-0.5%", "perplexity=5%", "perplexity=-5%", "size=1MB,size=2MB", "accuracy=-1,perplexity=+1%",
    ],
)  # fmt: skip
def test_what_is_no_target_is_answered_by_how_one_is_written(text: str) -> None:
    with pytest.raises(UsageError, match=r"write|give one|lies between"):
        parse_targets(text)


def test_of_what_keeps_the_bounds_the_smallest_is_taken_where_it_was_said_what_may_be_lost() -> None:
    all_of_them = tried(figures(500, lost=0.1), figures(300, lost=0.4), figures(100, lost=3))
    taken = pick(all_of_them, BEFORE, Limits(lost=0.5))
    assert taken is all_of_them[1]
    assert pick(all_of_them, BEFORE, Limits(size_bytes=600)) is all_of_them[0]  # else the one that loses least
    assert pick(all_of_them, BEFORE, Limits(size_bytes=90)) is None
    assert nearest(all_of_them, BEFORE, Limits(size_bytes=90)) == all_of_them[::-1]


def test_what_is_not_smaller_or_not_faster_where_that_is_asked_is_never_taken() -> None:
    assert pick(tried(figures(1000), figures(1200)), BEFORE, Limits()) is None
    assert nearest(tried(figures(1000)), BEFORE, Limits()) == []
    assert breaks(figures(500, latency_ms=11), BEFORE, Limits(latency_s=0.02)) == ("not faster",)
    assert breaks(figures(500, latency_ms=11), BEFORE, Limits()) == ()


@given(st.lists(st.tuples(st.integers(1, 1500), st.integers(1, 20), st.integers(-2, 9)), max_size=12))
def test_the_front_is_what_nothing_beats_and_what_is_taken_lies_on_it(rows: list[tuple[int, int, int]]) -> None:
    all_of_them = tried(*(figures(*row) for row in rows))
    on_front = front(all_of_them)
    assert bool(on_front) == bool(all_of_them)
    for one, other in itertools.product(on_front, repeat=2):
        assert one.figures is not None
        assert other.figures is not None
        better = (one.figures.size_bytes, one.figures.lost) < (other.figures.size_bytes, other.figures.lost)
        assert not (
            better and one.figures.latency_s < 0.9 * other.figures.latency_s and one.figures.lost <= other.figures.lost
        )
    for limits in (Limits(lost=1.0), Limits(size_bytes=700)):
        taken = pick(all_of_them, BEFORE, limits)
        if taken is not None:
            assert taken.figures is not None
            assert breaks(taken.figures, BEFORE, limits) == ()
            assert any(each.figures == taken.figures for each in on_front)


def test_steps_have_an_order_and_a_least_size() -> None:
    student, channels = Distil(student="mlp:hidden=8", share=0.5), Prune(kind="channels", share=0.5)
    assert is_ordered((student, channels, Round(bits=4)))
    assert not is_ordered((Round(bits=4), channels))
    assert not is_ordered((channels, channels))
    assert least_share((student, channels)) == 0.125
    assert least_share((student, *INT4)) < least_share((student, *INT8)) < least_share(INT8) < 0.25
    assert said((channels, *TRAINED)) == "channels -50%, int4 trained"


def test_a_harsher_recipe_has_the_same_steps_and_takes_more_away_with_no_more_training() -> None:
    mild, harsh = Prune(kind="global", share=0.5), Prune(kind="global", share=0.9)
    assert harsher(INT4, INT8)
    assert harsher((harsh, *INT8), (mild, *INT8))
    assert harsher((harsh, *INT4), (mild, *INT8))
    for one, other in (
        (INT8, INT4),
        (INT8, INT8),
        (TRAINED, INT4),
        ((harsh, *INT8), INT8),
        ((mild, *INT4), (harsh, *INT8)),
    ):
        assert not harsher(one, other)
    assert same_form((harsh, *INT4), TRAINED)
    assert not same_form((Prune(kind="channels", share=0.5), *INT4), INT4)


def test_what_cannot_keep_a_bound_is_not_tried() -> None:
    lost = [Tried(recipe=INT8, figures=figures(300, latency_ms=9, lost=2))]
    assert "bytes" in hopeless(INT8, BEFORE, Limits(size_bytes=100), [])
    assert "lost too much" in hopeless(INT4, BEFORE, Limits(lost=1), lost)
    assert hopeless(TRAINED, BEFORE, Limits(lost=1), lost) == ""
    assert "too slow" in hopeless((Prune(kind="global", share=0.5), *INT8), BEFORE, Limits(latency_s=0.005), lost)
    assert hopeless(INT4, BEFORE, Limits(size_bytes=200, latency_s=0.009, lost=3), lost) == ""


class Known:
    """A subject whose candidates have these figures; None: it cannot be made."""

    def __init__(self, known: dict[Recipe, Figures | None]) -> None:
        self.known, self.dropped = known, list[Recipe]()

    def recipes(self) -> Sequence[Recipe]:
        return tuple(self.known)

    def before(self) -> Figures:
        return BEFORE

    def make(self, recipe: Recipe) -> Recipe:
        if self.known[recipe] is None:
            raise LeptonError("it diverged")
        return recipe

    def measure(self, made: Recipe) -> Figures:
        found = self.known[made]
        assert found is not None
        return found

    def drop(self, made: Recipe) -> None:
        self.dropped.append(made)


@given(
    st.lists(st.none() | st.tuples(st.integers(1, 1500), st.integers(1, 20), st.integers(-2, 9)), max_size=8),
    st.sampled_from(["size=0.6x", "accuracy=-1", "latency=0.5x", "size=1B", "size=0.9x,latency=8ms,accuracy=-3"]),
)
def test_what_a_search_keeps_is_what_it_picks_and_else_the_nearest(
    rows: list[tuple[int, int, int] | None], target: str
) -> None:
    recipes: list[Recipe] = [(Prune(kind="global", share=0.9 - i / 10), Round(bits=4)) for i in range(len(rows))]
    subject = Known({one: row and figures(*row) for one, row in zip(recipes, rows, strict=True)})
    found = search(subject, parse_targets(target))
    wanted = found.picked or next(iter(found.nearest), None)
    measured = [each.recipe for each in found.tried if each.figures is not None]
    assert (found.made == wanted.recipe) if wanted else (found.made in [None, *measured])
    assert len(found.tried) == len(rows)
    assert sorted([*subject.dropped, *([found.made] if found.made else [])], key=str) == sorted(measured, key=str)


def test_a_search_says_why_what_was_not_measured_and_ends_with_its_budget() -> None:
    other = (Prune(kind="channels", share=0.5), *INT8)
    subject = Known({INT8: None, INT4: figures(200, lost=1), TRAINED: figures(200), other: figures(90)})
    found = search(subject, parse_targets("accuracy=-2"), candidates_max=2)
    assert [each.why for each in found.tried] == ["it diverged", "", "2 were tried", "2 were tried"]
    assert found.made == INT4
    found = search(subject, parse_targets("accuracy=-2"), budget_s=-1)
    assert {each.why for each in found.tried} == {"the -1 s were over"}
    assert (found.picked, found.made) == (None, None)
