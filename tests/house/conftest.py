"""What the house's tests look at: this checkout, and the files that git knows or would know in it."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def list_files(*options: str) -> list[Path]:
    """Files of the checkout relative to ROOT, as `git ls-files` with these options lists them, if they still exist."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", *options], capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout: there is no list of files to compare with")
    return [Path(name) for name in sorted(listed.stdout.split("\0")) if name and (ROOT / name).is_file()]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def tracked() -> list[Path]:
    """What is committed or staged."""
    return list_files()


@pytest.fixture(scope="session")
def written() -> list[Path]:
    """The same and what is not yet added, so that a slip is found before it is committed."""
    return list_files("--cached", "--others", "--exclude-standard")
