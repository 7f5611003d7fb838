"""Who is on the way in: few at once, and in a flood who came first and said least makes room for who comes.

Whoever refuses the newest instead is shut for everybody as soon as some strangers hold their places in silence. A
member needs its place for a fraction of a second; and once it has proved its key it is not pushed out at all.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from .errors import Busy
from .identity import PeerId


@dataclass(slots=True, eq=False)
class Place:
    """One of few. Work within ``scope``: it is cancelled when the place goes to somebody else."""

    who: PeerId | None = None  # proven, as soon as it is
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Arrivals:
    """The places of those who are on their way in."""

    def __init__(self, most: Callable[[], int], favours: Callable[[PeerId], bool]) -> None:
        """``most`` is how many there may be; ``favours`` says who is never pushed out."""
        self._most = most
        self._favours = favours
        self._places: list[Place] = []  # the oldest first

    def __len__(self) -> int:
        return len(self._places)

    def enter(self, who: PeerId | None = None) -> Place:
        """Take a place, if need be another's; ``leave`` it in any case. Raises Busy when members have them all."""
        if len(self._places) >= self._most():
            spare = [place for place in self._places if place.who is None or not self._favours(place.who)]
            if not spare:
                msg = f"{len(self._places)} members are on their way in already; try again in a moment."
                raise Busy(msg)
            out = min(spare, key=lambda place: place.who is not None)
            self._places.remove(out)
            out.scope.cancel()
        place = Place(who)
        self._places.append(place)
        return place

    def leave(self, place: Place) -> None:
        """Give a place back; nothing when it was taken."""
        if place in self._places:
            self._places.remove(place)
