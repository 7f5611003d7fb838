"""Addresses that the user gave, of members whose names nobody knows: dialled until somebody is met, never given up.

Each is tried with pauses that grow. Who was met there is remembered, and while that peer is here (connected, or heard
of in a large mesh) its address is left alone.

Invariant: at most one dial per address is under way.
"""

import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from .identity import PeerId
from .pace import Config


@dataclass(slots=True)
class Place:
    """One address, and what came of it. ``trouble`` says why nobody of the mesh was met there at the last try."""

    address: str
    dial_at: float = 0.0
    pause_s: float = 0.0
    dialling: bool = False
    peer: PeerId | None = None
    trouble: str = ""


@dataclass(slots=True)
class Bootstrap:
    """The places at which one node looks for its mesh."""

    rng: random.Random
    config: Config = field(default_factory=Config)
    places: dict[str, Place] = field(default_factory=dict)
    deadline: float = 0.0

    def add(self, addresses: Iterable[str]) -> None:
        """Try these too, from now on."""
        for address in addresses:
            self.places.setdefault(address, Place(address, pause_s=self.config.redial_first_s))

    def due(self, present: Collection[PeerId], now: float) -> list[str]:
        """Begin the dials that are due, given who is here. Sets ``deadline``, when to ask again."""
        begun = []
        self.deadline = now + self.config.look_interval_s  # to see whether who was met is still here
        for place in self.places.values():
            if place.peer is not None and place.peer in present:
                place.pause_s = self.config.redial_first_s
            elif not place.dialling and now >= place.dial_at:
                place.dialling = True
                begun.append(place.address)
            elif not place.dialling:
                self.deadline = min(self.deadline, place.dial_at)
        return begun

    def met(self, address: str, peer: PeerId) -> None:
        """A dial found a member."""
        place = self.places[address]
        place.dialling, place.peer, place.trouble = False, peer, ""

    def failed(self, address: str, reason: str, now: float) -> None:
        """A dial found nobody, or nobody of this mesh."""
        place = self.places[address]
        place.dialling, place.trouble = False, reason
        place.dial_at = now + place.pause_s * self.rng.uniform(0.5, 1.5)
        place.pause_s = min(2 * place.pause_s, self.config.redial_lost_s)

    def afresh(self, now: float) -> None:
        """Forget all pauses: the network is another, or time has passed that was not noticed."""
        for place in self.places.values():
            place.pause_s, place.dial_at = self.config.redial_first_s, now
