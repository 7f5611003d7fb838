"""Of statements with one name every node believes the same one."""

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.identity import Identity
from lepton.mesh.records import Record, RecordStore
from lepton.node.picture import STAGE, StageRecord, newest

OWNERS = [Identity(bytes([number]) * 32) for number in range(4)]
Said = list[tuple[Record, StageRecord]]


def said(statements: list[tuple[int, str, int]]) -> Said:
    """Records by owner, name and version."""
    found = []
    for owner, name, version in statements:
        value = StageRecord(version=version, first=0, end=1)
        found.append((RecordStore(OWNERS[owner], 1).publish(STAGE, name, value), value))
    return found


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from("ab"), st.integers(0, 3)), max_size=8),
    st.randoms(use_true_random=False),
)
def test_the_order_in_which_they_came_does_not_matter(
    statements: list[tuple[int, str, int]], rng: random.Random
) -> None:
    records = said(sorted(set(statements)))
    best = newest(records)
    again = newest(rng.sample(records, len(records)))
    assert {name: (record.owner, value) for name, (record, value) in best.items()} == {
        name: (record.owner, value) for name, (record, value) in again.items()
    }
    assert set(best) == {name for _, name, _ in statements}


def test_the_highest_version_counts_then_the_owner() -> None:
    one, other = sorted(range(2), key=lambda number: OWNERS[number].peer_id)
    statements = said([(one, "m", 2), (other, "m", 1), (other, "n", 3), (one, "n", 3)])
    for order in itertools.permutations(statements):
        best = newest(order)
        assert best["m"][0].owner == OWNERS[one].peer_id
        assert best["n"][0].owner == OWNERS[other].peer_id
