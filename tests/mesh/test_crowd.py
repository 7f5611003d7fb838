"""Many membership machines together: one piece with few connections each, and again so after crashes and partitions.

Time is virtual, and all chance is drawn from a seed that a failure names by its test's parameters.
"""

import dataclasses

import pytest
from lepton.mesh import limits
from lepton.mesh.pace import Config

from .crowd import DOUBT_S, Crowd

PACE = dataclasses.replace(Config(), linger_s=5.0)  # so that it is soon over
FEW = 2 * PACE.rings


def crowd(size: int, seed: int = 1, within_s: float = 10.0) -> Crowd:
    """So many nodes that have found each other."""
    made = Crowd(size, seed, PACE)
    made.start_all(within_s)
    made.run(60.0, until=made.settled)
    return made


def test_three_hundred_find_each_other_and_are_one_mesh_again_after_three_in_ten_crash() -> None:
    made = crowd(300)
    assert made.pieces() == 1
    assert made.most <= limits.CONNECTIONS_MAX
    assert made.dials <= 25 * 300
    made.run(3 * PACE.linger_s)
    assert made.pieces() == 1
    degrees = made.degrees().values()
    assert max(degrees) <= FEW
    assert sum(degrees) / len(degrees) > 0.9 * FEW
    assert made.settled()

    for name in made.dice.sample(made.names, 90):
        made.crash(name)
    made.run(12.0 + DOUBT_S, until=made.settled)  # twelve rounds of exchanges
    assert made.pieces() == 1
    made.run(3 * PACE.linger_s)
    assert max(made.degrees().values()) <= FEW


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_partition_that_heals_leaves_one_mesh(seed: int) -> None:
    made = crowd(150, seed)
    made.part({name: n % 2 for n, name in enumerate(made.names)})
    made.run(60.0)
    assert made.pieces() == 2
    seen = {name: node.members.present for name, node in made.nodes.items()}
    assert all(len(present) == 74 for present in seen.values())  # of its own side, and nobody else
    made.heal()
    made.run(40.0, until=made.settled)
    assert made.pieces() == 1
    made.run(4 * PACE.linger_s)
    assert max(made.degrees().values()) <= FEW


def test_in_a_small_mesh_everybody_is_connected_to_everybody_and_a_split_one_heals_after_an_hour() -> None:
    made = crowd(12)
    assert set(made.degrees().values()) == {11}
    made.part({name: int(n < 5) for n, name in enumerate(made.names)})
    made.run(3600.0)
    assert set(made.degrees().values()) == {4, 6}
    made.heal()
    made.run(2 * PACE.redial_lost_s, until=made.settled)
    assert set(made.degrees().values()) == {11}


def test_a_mesh_that_grows_and_shrinks_about_fifty_does_not_flap() -> None:
    made = crowd(52)
    made.run(4 * PACE.linger_s)
    assert max(made.degrees().values()) <= FEW  # large
    dials = made.dials
    for _ in range(4):
        gone = made.names[:6]
        for name in gone:
            made.crash(name)
        made.run(20.0)
        assert not any(node.members.neighbours.whole for node in made.nodes.values())
        for name in gone:
            made.start(name, made.names[-1])
        made.run(20.0, until=made.settled)
    assert made.dials - dials < 4 * 6 * 52 * 2  # those of the newcomers, and no mesh anew


def test_who_was_alone_meets_all_again() -> None:
    made = crowd(80)
    lonely = made.names[7]
    made.part({name: int(name == lonely) for name in made.names})
    made.run(120.0)
    assert made.nodes[lonely].members.present == set()
    made.heal()
    made.run(40.0, until=made.settled)
