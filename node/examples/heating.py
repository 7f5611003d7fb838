"""The rule of the home, as a service of the mesh: heat less while everybody is out or asleep.

It is shipped by itself, as a folder with this file, so it imports what an author of services would. It keeps nothing
between calls: any device may answer the next one.
"""

from typing import Final

from lepton.node.services import method, service

COMFORT: Final = "comfort"
SAVING: Final = "saving"

QUIET: Final = frozenset({"Leaving", "Sleeping"})
_QUIET_MIN: Final = 15  # minutes without a break before it turns down: a short nap is not worth it
_AWAKE_MIN: Final = 3  # minutes that somebody is up and about before it turns up again: one wrong minute is nothing


@service("heating", version="1.0", memory="256MB", cores=0.1)
class Heating:
    """Says how to heat."""

    @method(timeout_s=10, idempotent=True)
    def decide(self, minutes: list[str], heating: str) -> str:
        """Return "comfort" or "saving", from the activities of the last minutes, oldest first, and what it is now."""
        quiet = [activity in QUIET for activity in minutes]
        if heating == COMFORT and len(quiet) >= _QUIET_MIN and all(quiet[-_QUIET_MIN:]):
            return SAVING
        if heating == SAVING and len(quiet) >= _AWAKE_MIN and not any(quiet[-_AWAKE_MIN:]):
            return COMFORT
        return heating
