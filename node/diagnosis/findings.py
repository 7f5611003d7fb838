"""What a diagnosis says: each finding is data that people and programs can read. Pure."""

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

Severity = Literal["ok", "note", "warn", "bad"]
SEVERITIES: Final[tuple[Severity, ...]] = ("ok", "note", "warn", "bad")


class Finding(msgspec.Struct, frozen=True):
    """What was found, why it is so, and what to do about it; the last two may be empty."""

    id: str  # for programs; never changes its meaning
    severity: Severity
    what: str
    why: str = ""
    do: str = ""


def worst_last(findings: Iterable[Finding]) -> list[Finding]:
    """Sort for a terminal, whose last lines are the ones that are seen."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
