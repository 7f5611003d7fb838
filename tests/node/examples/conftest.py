"""Each example is played once, shortened, and every test of its file looks at what it told."""

from pathlib import Path

import pytest

REAL = Path(__file__).parents[4] / "shared/data"


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real data; tests that need it are skipped where it is not."""
    if not REAL.is_dir():
        pytest.skip("the real data of ../shared/data are not here")
    return REAL
