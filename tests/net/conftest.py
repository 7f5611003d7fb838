"""Tests marked `net` run real nodes in network namespaces; where there are none they are skipped, and say why."""

import os
from collections.abc import Iterator

import pytest

from .lan import Lan, NoNetwork, require_network


@pytest.fixture(scope="session")
def seed() -> int:
    """What the lines draw their chances from: SEED of the environment, for other luck."""
    return int(os.environ.get("SEED", "1"))


@pytest.fixture(scope="session")
def possible() -> None:
    """Skip where devices cannot be made."""
    try:
        require_network()
    except (NoNetwork, OSError) as error:
        pytest.skip(f"no network of its own for a test on this machine: {error}")


@pytest.fixture
def lan(possible: None, seed: int) -> Iterator[Lan]:
    """A network without devices; its lines are perfect until a test changes them."""
    with Lan(seed) as made:
        yield made
