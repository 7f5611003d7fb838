"""What a command leaves behind: the page, the rounds as CSV, and pictures where they can be drawn."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ..outcome import Outcome
from . import archive, page, pictures

REPORT: Final = "report.html"
ROUNDS: Final = "rounds.csv"


def show(outcomes: Mapping[str, Outcome], title: str, folder: Path, *, caption: str = "") -> list[str]:
    """Write what people look at, and return lines that say where it is. Raises UsageError."""
    archive.write(folder / REPORT, page.page(outcomes, title, caption=caption))
    archive.write(folder / ROUNDS, archive.rounds_csv(outcomes))
    lines = [f"Report: {folder / REPORT}", f"Rounds: {folder / ROUNDS}"]
    if not pictures.possible():
        return [*lines, "No pictures: they are drawn by matplotlib; install it with: pip install 'lepton-node[plot]'"]
    return [*lines, f"Pictures: {', '.join(str(file) for file in pictures.draw(outcomes, title, folder))}"]
