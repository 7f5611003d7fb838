"""What members answer each other for a diagnosis: the time, the release, a dial back, and a short bulk of bytes.

Any member may ask, so all of it is bounded. A dial back goes only to the address from which the asker's own connection
comes, so that nobody is made to dial a third; bytes are counted for each asker and for all together.
"""

import ipaddress
import time
from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
import numpy as np
import trio

from ...mesh import limits
from ...mesh.calls import Answer, Empty, Incoming, Method
from ...mesh.errors import Busy, LinkError, PeerError
from ...mesh.identity import PeerId
from ...mesh.mesh import Mesh
from ...mesh.messages import Message, Text
from ...mesh.tcp import Address, connect, parse_address
from ..release import release
from .allowance import Allowance
from .facts import Outcome, Try

CHECKUP: Final = "node.checkup"
SAMPLE: Final = "node.sample"
SAMPLE_BYTES_MAX: Final = 4 * 2**20  # of one call: a third of a second at 100 Mbit/s
SAMPLED_BYTES_MAX: Final = 24 * 2**20  # for one asker in a minute: two measurements both ways
SAMPLED_BYTES_ALL_MAX: Final = 96 * 2**20  # for all of them in a minute: 13 Mbit/s on average
SAMPLE_BODY_BYTES_MAX: Final = SAMPLE_BYTES_MAX + limits.HEADER_BYTES_MAX  # with the message itself
_WINDOW_S: Final = 60.0
CHECKUPS_MAX: Final = 20  # of one asker in a minute
_CHECKUPS_ALL_MAX: Final = 200  # of all of them
_DIAL_S: Final = 2.0  # a LAN answers in milliseconds, Wi-Fi that sleeps in half a second
PORTS_MAX: Final = 2  # that are dialled back: IPv4's and IPv6's

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Ask(Message, frozen=True, kw_only=True):
    """Say what you see of me, and dial these ports of mine at the address from which I come."""

    ports: Annotated[tuple[Port, ...], msgspec.Meta(max_length=PORTS_MAX)] = ()


class Seen(Message, frozen=True, kw_only=True):
    """The time here, our release, where you come from, and what came of the dials, in their order."""

    unix_s: Annotated[float, msgspec.Meta(ge=0)]
    release: Text
    seen_at: Text
    outcomes: Annotated[tuple[Outcome, ...], msgspec.Meta(max_length=PORTS_MAX)] = ()


class Sample(Message, frozen=True, kw_only=True):
    """Send me so many bytes; what is beside this only takes the way here."""

    wanted_bytes: Annotated[int, msgspec.Meta(ge=0, le=SAMPLE_BYTES_MAX)] = 0


class Checkup:
    """Answers members' questions of this kind."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._sampled = Allowance(SAMPLED_BYTES_MAX, SAMPLED_BYTES_ALL_MAX, _WINDOW_S)
        self._asked = Allowance(CHECKUPS_MAX, _CHECKUPS_ALL_MAX, _WINDOW_S)
        mesh.calls.serve(
            Method(name=CHECKUP, needs="mesh", takes=Ask, handler=self._answer),
            Method(
                name=SAMPLE,
                needs="mesh",
                takes=Sample,
                handler=self._sample,
                body_bytes_max=SAMPLE_BODY_BYTES_MAX,
            ),
        )

    async def _answer(self, call: Incoming[Ask]) -> Answer[Seen]:
        _require(self._asked, call.caller, 1)
        connection = self._mesh.connection(call.caller)
        at = "" if connection is None else str(connection.remote_address)
        back = [_with_port(at, port) for port in call.message.ports if at]
        outcomes = [(await try_address(address, _DIAL_S)).outcome for address in back]
        return Answer(Seen(unix_s=time.time(), release=release(), seen_at=at, outcomes=tuple(outcomes)))

    async def _sample(self, call: Incoming[Sample]) -> Answer[Empty]:
        given = sum(array.nbytes for array in call.arrays)
        _require(self._sampled, call.caller, call.message.wanted_bytes + given)
        if not call.message.wanted_bytes:
            return Answer(Empty())
        return Answer(Empty(), [np.zeros(call.message.wanted_bytes, np.uint8)])


def _require(allowance: Allowance, caller: PeerId, amount: int) -> None:
    if wait_s := allowance.take(caller, amount, trio.current_time()):
        raise Busy(f"This device was asked enough of this kind; ask again in {wait_s:.0f} s.", wait_s)


def _with_port(at: str, port: int) -> str:
    """Return a multiaddr with another port."""
    head, _, _ = at.rpartition("/")
    return f"{head}/{port}"


async def try_address(address: str, timeout_s: float) -> Try:
    """Open a TCP connection to a multiaddr and close it. Says what came of it; raises UsageError for no multiaddr."""
    place, _ = parse_address(address)
    return await _try(address, place, timeout_s)


async def _try(address: str, place: Address, timeout_s: float) -> Try:
    try:
        with trio.fail_after(timeout_s):
            (await connect(place)).close()
    except trio.TooSlowError:
        return Try(address=address, outcome="timed out")
    except (LinkError, PeerError) as error:
        return Try(address=address, outcome=outcome_of(str(error)), detail=str(error))
    return Try(address=address, outcome="open")


_FRAGMENTS: Final[Mapping[str, Outcome]] = {
    "refused": "refused", "timed out": "timed out", "unreachable": "no route", "no route": "no route",
}  # fmt: skip


def outcome_of(reason: str) -> Outcome:
    """Return what a system's reason for no connection means."""
    return next((outcome for fragment, outcome in _FRAGMENTS.items() if fragment in reason), "failed")


def ports_at(listening: tuple[str, ...], host: str) -> tuple[int, ...]:
    """Return the ports on which this device listens at the kind of address by which it is seen."""
    try:
        version = ipaddress.ip_address(host.partition("%")[0]).version
    except ValueError:
        return ()
    places = [parse_address(text)[0] for text in listening]
    fits = [place.port for place in places if ipaddress.ip_address(place.host.partition("%")[0]).version == version]
    return tuple(dict.fromkeys(fits))[:PORTS_MAX]
