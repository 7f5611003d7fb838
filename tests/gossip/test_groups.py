"""Groups, hashing and terms: what everyone computes alone has to be what everyone else computes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.gossip.errors import BadSetup, UnknownCodec
from lepton.gossip.groups import balanced, group_of, groups
from lepton.gossip.hashing import digest
from lepton.gossip.terms import Terms

views = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=60, unique=True)


@given(views, st.integers(2, 12), st.integers(0, 2**40))
def test_groups_partition_the_members_whatever_the_order_of_learning(
    members: list[str], size: int, round_: int
) -> None:
    split = groups(b"mesh", "task", round_, members, size)
    assert sorted(peer for group in split for peer in group) == sorted(members)
    shuffled = sorted(members, reverse=True)
    assert groups(b"mesh", "task", round_, shuffled, size) == split
    for group in split:
        assert all(group_of(b"mesh", "task", round_, peer, shuffled, size) == group for peer in group)
        assert list(group) == sorted(group)


@given(st.integers(1, 100), st.integers(2, 12))
def test_groups_are_balanced_and_nobody_is_alone(count: int, size: int) -> None:
    sizes = [len(group) for group in groups(b"", "t", 0, map(str, range(count)), size)]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= (size if size > 2 else 3)
    assert min(sizes) >= 2 or count == 1
    assert len(sizes) == 1 or count > size


def test_each_round_task_and_mesh_meets_others() -> None:
    members = [f"peer-{i}" for i in range(64)]
    splits = {groups(mesh, task, r, members) for mesh in (b"a", b"b") for task in ("a", "b") for r in range(10)}
    assert len(splits) == 40
    met = {peer for r in range(60) for peer in group_of(b"a", "a", r, "peer-0", members)}
    assert len(met) > 60


def test_groups_need_a_view_with_oneself_in_it() -> None:
    assert groups(b"", "t", 0, []) == ()
    with pytest.raises(BadSetup, match="me is not among the members of round 3"):
        group_of(b"", "t", 3, "me", ["you"])
    with pytest.raises(BadSetup, match="2 or more"):
        groups(b"", "t", 0, ["a"], 1)


@given(st.integers(0, 1000), st.integers(1, 20))
def test_parts_cover_the_vector_in_order(length: int, count: int) -> None:
    slices = balanced(length, count)
    assert [i for part in slices for i in range(length)[part]] == list(range(length))
    sizes = [part.stop - part.start for part in slices]
    assert max(sizes) - min(sizes) <= 1
    assert len(slices) == count


def test_digests_keep_fields_and_purposes_apart() -> None:
    assert len({digest("p", b"ab", b"c"), digest("p", b"a", b"bc"), digest("q", b"ab", b"c"), digest("p", b"abc")}) == 4


def terms(
    mesh: bytes = b"m",
    task: str = "t",
    round_: int = 1,
    members: tuple[str, ...] = ("a", "b"),
    dimension: int = 10,
    codec: str = "int8",
) -> Terms:
    return Terms(mesh=mesh, task=task, round=round_, members=members, dimension=dimension, codec=codec)


def test_every_term_is_in_the_context() -> None:
    others = [
        terms(mesh=b"n"),
        terms(task="u"),
        terms(round_=2),
        terms(members=("a", "c")),
        terms(dimension=11),
        terms(codec="int4"),
    ]
    assert len({each.context for each in [terms(), *others]}) == 7
    assert terms().context == terms().context


def test_terms_say_what_is_wrong_with_them() -> None:
    for members in (("b", "a"), ("a", "a"), ()):
        with pytest.raises(BadSetup, match="sorted, each once"):
            terms(members=members)
    with pytest.raises(UnknownCodec):
        terms(codec="float31")
    with pytest.raises(BadSetup, match="c is not in the group of round 1: a, b"):
        terms().part_of("c")
