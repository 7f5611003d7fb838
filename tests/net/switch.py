"""A switch with bad cables: when, whether and how often each Ethernet frame comes out, from a seed. No socket here.

Every ordered pair of ports has a line of its own with its own stream of chances, so what befalls the frames from one
device to another does not depend on what the others send. Multicast and unknown addresses go to every port, one chance
for each. Invariant: a line delivers in order, except for the frames that it holds back on purpose.
"""

import itertools
import math
import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

Port = str

_HEADER_BYTES = 14  # destination, source, type
_MULTICAST = 0x01  # the lowest bit of a destination's first byte
_MDNS = (bytes.fromhex("01005e0000fb"), bytes.fromhex("3333000000fb"))  # RFC 6762, section 3, over Ethernet


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What happens to frames on their way from one port to another."""

    delay_s: float = 0.0
    jitter_s: float = 0.0  # at most this much more, evenly spread
    loss: float = 0.0  # share of frames that vanish
    copies: float = 0.0  # share of frames that come twice
    held: float = 0.0  # share of frames that are held back, so that later ones overtake them
    held_s: float = 0.01  # for how long
    rate_bytes_s: float = math.inf
    queue_bytes_max: int = 256 * 1024  # at that rate; what does not fit is lost, as in a home router
    cut: bool = False


class Delivery(NamedTuple):
    """When which frame comes out of which port. The number keeps those of one moment in order."""

    at: float
    number: int
    port: Port
    frame: bytes


@dataclass(slots=True)
class _State:
    """Where one line stands."""

    chances: random.Random
    free_at: float = 0.0  # when the sender has put its last frame on the line
    last_at: float = 0.0  # when the latest frame in order arrives
    carried: int = 0  # frames so far


@dataclass(slots=True)
class Switch:
    """Forwards between ports. Lines may be changed at any time; what is on its way stays on its way."""

    seed: int
    line: Line = field(default_factory=Line)  # of every pair that has none of its own
    ports: set[Port] = field(default_factory=set)
    counted: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("carried", "lost", "cut"), 0))
    drops_mdns: bool = False  # as access points do that keep multicast off the air
    _lines: dict[tuple[Port, Port], Line] = field(default_factory=dict)
    _states: dict[tuple[Port, Port], _State] = field(default_factory=dict)
    segments: tuple[frozenset[Port], ...] = ()  # cables: as a split that no healing takes back
    _groups: tuple[frozenset[Port], ...] = ()
    _where: dict[bytes, Port] = field(default_factory=dict)  # hardware address to port, learned
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def change(self, source: Port, to: Port, **conditions: Any) -> None:
        """Change a line, this direction alone."""
        self._lines[source, to] = replace(self._lines.get((source, to), self.line), **conditions)

    def change_all(self, **conditions: Any) -> None:
        """Change every line."""
        self.line = replace(self.line, **conditions)
        self._lines = {pair: replace(line, **conditions) for pair, line in self._lines.items()}

    def split(self, *groups: Collection[Port]) -> None:
        """Let frames pass within these groups of ports only; a port that is in none is alone."""
        self._groups = tuple(frozenset(group) for group in groups)

    def heal(self) -> None:
        """Take back every split and cut."""
        self._groups = ()
        self.change_all(cut=False)

    def carried(self, source: Port, to: Port) -> int:
        """Return how many frames a line has carried so far, this direction alone."""
        state = self._states.get((source, to))
        return 0 if state is None else state.carried

    def forward(self, source: Port, frame: bytes, now: float) -> list[Delivery]:
        """Take a frame that came in at a port; return what comes out, where and when."""
        if len(frame) < _HEADER_BYTES:
            return []
        self._where[frame[6:12]] = source
        return [one for to in self._outlets(source, frame) for one in self._carry(source, to, frame, now)]

    def _outlets(self, source: Port, frame: bytes) -> Iterable[Port]:
        if self.drops_mdns and frame[:6] in _MDNS:
            return ()
        known = None if frame[0] & _MULTICAST else self._where.get(frame[:6])
        if known in self.ports:
            return () if known == source else (known,)
        return sorted(self.ports - {source})

    def _passes(self, source: Port, to: Port) -> bool:
        return all(
            not groups or any(source in group and to in group for group in groups)
            for groups in (self._groups, self.segments)
        )

    def _carry(self, source: Port, to: Port, frame: bytes, now: float) -> list[Delivery]:
        line = self._lines.get((source, to), self.line)
        state = self._states.get((source, to))
        if state is None:
            state = self._states[source, to] = _State(random.Random(f"{self.seed} {source} {to}"))
        # As many chances for every frame, whatever the line is like now: a change leaves later frames their luck.
        lost, copied, held, jitter = (state.chances.random() for _ in range(4))
        if line.cut or not self._passes(source, to):
            self.counted["cut"] += 1
            return []
        begin = max(now, state.free_at) if line.rate_bytes_s < math.inf else now
        if lost < line.loss or (begin > now and (begin - now) * line.rate_bytes_s > line.queue_bytes_max):
            self.counted["lost"] += 1
            return []
        self.counted["carried"] += 1
        state.carried += 1
        state.free_at = begin + len(frame) / line.rate_bytes_s
        at = state.free_at + line.delay_s + line.jitter_s * jitter
        if held < line.held:
            at += line.held_s
        else:
            at = state.last_at = max(at, state.last_at)
        return [Delivery(at, next(self._numbers), to, frame) for _ in range(2 if copied < line.copies else 1)]
