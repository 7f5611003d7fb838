"""What lies between devices, as both ends see it: coarse, so that what is published seldom changes. Pure.

A node knows round trips to its neighbours from the probes of liveness. It says only those that are longer than usual:
in a house with one switch or access point nothing is said, and all links are equal.
"""

from collections.abc import Mapping
from typing import Annotated, Final

import msgspec

from ..mesh.identity import PeerId
from ..mesh.messages import Message
from .placement import Link, Links

LINKS: Final = "links"
NEIGHBOURS_MAX: Final = 64  # said in one record: 64 x 60 B is a quarter of what a record may hold
# A round trip up to this is usual: a wired switch takes under 1 ms, two busy Pythons at its ends some more.
USUAL_S: Final = 0.004
# The coarse steps above it: Wi-Fi, Wi-Fi that saves power, a phone network, the other side of the world.
STEPS_S: Final = (0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512)
_FALL: Final = 0.7  # of the step's lower end: so far a round trip must fall before a lower step is said

Steps = Annotated[int, msgspec.Meta(ge=1, le=len(STEPS_S))]
Peer = Annotated[str, msgspec.Meta(max_length=64)]


class LinksRecord(Message, frozen=True, kw_only=True):
    """To whom a node's round trips are long, and which of the steps they are (record name: 'self')."""

    far: Annotated[dict[Peer, Steps], msgspec.Meta(max_length=NEIGHBOURS_MAX)] = msgspec.field(default_factory=dict)


def step_of(round_trip_s: float, said: int = 0) -> int:
    """Return the step of a round trip, 0 when it is usual. From what was ``said`` it falls only when well below."""
    bounds = (USUAL_S, *STEPS_S)
    step = next((step for step, bound in enumerate(bounds) if round_trip_s <= bound), len(STEPS_S))
    return said if step < said and round_trip_s > _FALL * bounds[said - 1] else step


def coarse_links(round_trips_s: Mapping[PeerId, float], said: Mapping[str, int]) -> LinksRecord:
    """Return what a node says of its neighbours; ``said`` is what it said before."""
    steps = {peer: step_of(round_trip_s, said.get(peer, 0)) for peer, round_trip_s in sorted(round_trips_s.items())}
    far = sorted(((step, peer) for peer, step in steps.items() if step), reverse=True)[:NEIGHBOURS_MAX]
    return LinksRecord(far={peer: step for step, peer in sorted(far)})


def links_of(said: Mapping[PeerId, LinksRecord]) -> Links:
    """Read the links out of all records. Of two ends the longer counts: a busy one hears answers late, never early."""
    usual = Link()
    steps: dict[tuple[str, str], int] = {}
    for owner, record in sorted(said.items()):
        for peer, step in record.far.items():
            for pair in ((owner, peer), (peer, owner)):
                steps[pair] = max(step, steps.get(pair, 0))
    return Links(
        usual=usual,
        others={
            pair: Link(latency_ns=int(STEPS_S[step - 1] * 1e9 / 2), bandwidth_bytes_s=usual.bandwidth_bytes_s)
            for pair, step in sorted(steps.items())
        },
    )
