"""The examples of a property test follow from the test alone, so that a change elsewhere cannot make it fail."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def drawn() -> list[int]:
    values: list[int] = []

    @settings(max_examples=200)
    @given(st.integers(0, 1_000_000))
    def draw(value: int) -> None:
        values.append(value)

    draw()
    return values


def test_a_loaded_module_changes_no_examples(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if request.config.getoption("--hypothesis-profile") != "ci":
        pytest.skip("the profile in use draws anew in each run")
    before = drawn()
    (tmp_path / "constants.py").write_text(f"KNOWN = {list(range(1000, 1200))}")
    spec = spec_from_file_location("constants", tmp_path / "constants.py")
    assert spec is not None
    monkeypatch.setitem(sys.modules, "constants", module_from_spec(spec))
    assert drawn() == before
