"""Whether a node does what it is there for: reasons why not, and what its owner should know besides. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_SOON_S: Final = 7 * 86400  # grants are renewed a month before their end; a week before it something is wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """No reasons: it is well. Warnings are for people, and no reason to restart anything."""

    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        return {
            "status": "failing" if self.reasons else "ok",
            "reasons": list(self.reasons),
            "warnings": list(self.warnings),
        }


def judged(
    *,
    ended: str,
    expires: float,
    now: float,
    trouble: Mapping[str, str],
    away: Mapping[str, str],
    stopping: bool = False,
) -> Health:
    """Judge a node: ``ended`` says why it is a member no more, ``expires`` when its grant ends (Unix seconds).

    ``trouble`` says of models why they are not served as they should be, ``away`` of bootstrap addresses why nobody
    answers there. Neither is this node's fault alone: both are warnings.
    """
    reasons, warnings = [], []
    if stopping:
        reasons.append("The node is stopping.")
    if ended:
        reasons.append(f"This device was thrown out of the mesh: {ended}")
    elif now >= expires:
        reasons.append("This device's grant has expired: no other node lets it in.")
    elif now >= expires - _SOON_S:
        days = max(0, int((expires - now) // 86400))
        warnings.append(f"This device's grant ends in {days} days and was not renewed: no admin was here to do so.")
    warnings += [f"{name}: {why}" for name, why in sorted(trouble.items()) if why]
    warnings += [f"Nobody answers at {address}: {why}" for address, why in sorted(away.items()) if why]
    return Health(reasons=tuple(reasons), warnings=tuple(warnings))
