"""What all commands share: a length of time is written in one way everywhere."""

from typing import Any

import click
import pytest
from click.testing import CliRunner
from lepton.node.__main__ import main
from lepton.node.command import Mistake, Time, time_text


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30.0), ("90", 90.0), ("0.5", 0.5), ("5m", 300.0), ("1.5h", 5400.0), ("2d", 172800.0)]
)
def test_a_time_is_a_number_and_a_unit_or_seconds(text: str, seconds: float) -> None:
    assert Time().convert(text, None, None) == seconds
    assert Time().convert(time_text(seconds), None, None) == seconds


@pytest.mark.parametrize("text", ["soon", "-1", "5 minutes", "", "nan", "1e3"])
def test_what_is_no_time_says_how_one_is_written(text: str) -> None:
    with pytest.raises(Mistake, match="write a number and s, m, h or d, as in 30m"):
        Time().convert(text, None, None)


def test_a_time_out_of_bounds_says_which_these_are() -> None:
    with pytest.raises(Mistake, match=r"'2m' is 120 s; 0.2 s at least and 60 at most"):
        Time(least_s=0.2, most_s=60).convert("2m", None, None)


def options(command: click.Command) -> list[click.Option]:
    inner = command.commands.values() if isinstance(command, click.Group) else ()
    return [each for each in command.params if isinstance(each, click.Option)] + [o for c in inner for o in options(c)]


def test_every_option_that_is_a_time_reads_it_so_unless_its_name_has_the_unit() -> None:
    times = [each for each in options(main) if str(each.name).endswith("_s") and not each.opts[0].endswith("-s")]
    assert len(times) >= 6
    assert [each.opts for each in times if not isinstance(each.type, Time)] == []


def test_help_shows_no_control_characters() -> None:
    def shown(command: click.Command, *path: str) -> list[str]:
        inner: Any = command.commands if isinstance(command, click.Group) else {}
        return [
            CliRunner().invoke(main, [*path, "--help"]).output,
            *(text for name, each in inner.items() for text in shown(each, *path, name)),
        ]

    texts = shown(main)
    assert len(texts) > 20
    assert [text for text in texts if "\b" in text or "\\b" in text] == []
