"""A home whose device is unplugged, shortened; its rule, tried as the class that it is; its data."""

from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from lepton.node.examples.activities import DAY_MIN, TRAINING_DAYS, read_home, shared_out
from lepton.node.examples.heating import COMFORT, SAVING, Heating
from lepton.node.examples.home import home
from lepton.node.examples.telling import Tale, play
from rich.console import Console


@pytest.mark.parametrize(
    ("minutes", "now", "then"),
    [
        (["Sleeping"] * 15, COMFORT, SAVING),
        (["Leaving"] * 10 + ["Sleeping"] * 5, COMFORT, SAVING),
        (["Sleeping"] * 14, COMFORT, COMFORT),
        (["Lunch"] + ["Sleeping"] * 14, COMFORT, COMFORT),
        (["Sleeping"] * 14 + ["Toileting"], SAVING, SAVING),
        (["Sleeping"] * 12 + ["Grooming"] * 3, SAVING, COMFORT),
        ([], SAVING, SAVING),
    ],
)
def test_the_rule_turns_down_after_a_while_and_up_soon(minutes: list[str], now: str, then: str) -> None:
    assert Heating().decide(minutes, now) == then


def test_each_device_has_days_of_its_own(real: Path) -> None:
    found = read_home(real)
    assert (len(found.names), found.x.shape[1]) == (9, 50)
    assert found.minute[~found.is_test].max() < TRAINING_DAYS * DAY_MIN <= found.minute[found.is_test].min()
    parts = shared_out(found, 5)
    assert sum(len(part.y) for part in parts) == np.count_nonzero(~found.is_test)
    assert all(2000 < len(part.y) <= 2 * DAY_MIN for part in parts)


def test_predictions_the_rule_and_training_go_on_when_a_device_is_unplugged(real: Path) -> None:
    text = StringIO()
    tale = play(home, real, quick=True, tale=Tale(Console(file=text, width=110)))
    assert tale.held, text.getvalue()
    assert len(tale.claims) == 4
    assert tale.figures["after"] > 100
    assert "was killed after 20 questions" in text.getvalue()
    assert "heating goes to saving" in text.getvalue()
