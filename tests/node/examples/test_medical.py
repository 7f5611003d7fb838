"""Hospitals that learn in private, shortened: on real eyes, and on what scikit-learn carries."""

from io import StringIO
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from lepton.node.examples.medical import main, medical, patients, shared_out
from lepton.node.examples.telling import Tale, play
from rich.console import Console


def test_hospitals_see_other_patients_and_are_tested_on_the_same(real: Path) -> None:
    found = patients(real)
    parts, whole = shared_out(found)
    assert sum(len(part.y) for part in parts.values()) == len(whole.y) == 691
    ill = [part.y.mean() for part in parts.values()]
    assert max(ill) - min(ill) > 0.2
    for part in parts.values():
        assert part.x_test is not None
        assert whole.x_test is not None
        np.testing.assert_array_equal(part.x_test, whole.x_test)
        assert len(whole.y) + len(part.x_test) == len(found.y)


def test_in_private_they_are_better_than_any_alone(real: Path) -> None:
    text = StringIO()
    tale = play(medical, real, quick=True, tale=Tale(Console(file=text, width=110)))
    assert tale.held, text.getvalue()
    assert tale.figures["mesh"] > tale.figures["best_alone"] + 0.02
    assert "no patient" in text.getvalue()


def test_without_the_real_data_it_takes_tumours() -> None:
    found = patients(Path("/nowhere"))
    parts, _ = shared_out(found)
    assert "scikit-learn" in found.subject
    assert found.x.shape == (569, 30)
    assert [name for name, part in parts.items() if part.y.mean() > 0.5] == ["largest"]


def test_it_is_one_command() -> None:
    said = CliRunner().invoke(main, ["--help"])
    assert said.exit_code == 0
    assert "better than any alone" in said.output.replace("\n", " ")
    assert "--quick" in said.output
