"""Which group a round has where members see each other differently: the first of those who are there gathers the rest.

As a round opens, everybody takes the group that its own view gives it. Mostly all of its members do the same, and
nothing here is said. When one of them turns out to see another group, or is gone, they tell each other whom they hear.
The first in the round's rank leads: it gathers those who hear it and each other, as many as a group holds, and they go
on under its terms. Whoever it leaves out does the same with who else is left. So three in a line, of whom the ends
never hear each other, are a pair and one alone, and in another round the other pair.

Invariants: a member enters one group a round, and leaves it only before its exchange and only at its leader's word; who
finds that others have begun in the group that all had seen follows them there; after little more than twice the wait
nobody is left waiting, if need be in a group of one.
Nothing here has to hold for a round to be true: each group agrees for itself on what it comes to.
"""

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import Enum, auto

from .events import Absence, Send
from .hashing import digest
from .messages import Invite, Status, View
from .round import Head

HEARS_BYTES = 8  # of a name's digest: two of a mesh's names are alike once in 10^15 meshes
WAITS_MAX = 2  # a leader may begin this late after those who wait for it, and then waits as long as they did
LAST_NUDGES = 3  # time for the one who is next to gather those whose leader said nothing more


class Standing(Enum):
    """Where a member is on its way into a group."""

    SEEN = auto()  # in the group of its own view, as long as nobody says otherwise
    CONTESTED = auto()
    GATHERED = auto()  # in another one, where its leader may still do without those who turn out to be elsewhere
    SETTLED = auto()


@dataclass(frozen=True, slots=True)
class Formed:
    """The group to go on with. `leader` gathered it; it is '' for the group that all had seen to begin with."""

    members: tuple[str, ...]
    leader: str


class Forming:
    """One member's way into the group of one round. `formed` is its group once that is another than the one seen."""

    def __init__(
        self,
        me: str,
        group: tuple[str, ...],
        view: Iterable[str],
        *,
        size: int,
        rank: Callable[[str], tuple[bytes, str]],
        head: Callable[[Formed | None], Head],
        wait_s: float,
        nudge_s: float,
    ) -> None:
        """``group`` is that of ``view``; ``size`` the most that a group holds; ``rank`` orders names for this round.

        ``head`` gives what all messages begin with in a group; None stands for the one that was seen.
        """
        self.standing = Standing.SEEN
        self.formed: Formed | None = None
        self.seen = group
        self.started_s = 0.0
        self.others: dict[str, Status] = {}  # the last word of those who see another group than mine
        self._me, self._view, self._size = me, set(view), size
        self._rank, self._head = rank, head
        self._wait_s, self._nudge_s = wait_s, nudge_s
        self._said: dict[str, View] = {}
        self._gone: dict[str, str] = {}
        self._nudged_s = self._last_s = 0.0
        self._overdue = ""
        self._led: set[bytes] = set()  # the contexts of groups that I gathered
        self._sends: list[Send] = []

    @property
    def contested(self) -> bool:
        return self.standing is Standing.CONTESTED

    @property
    def deadline(self) -> float:
        """When `advance` is due."""
        if not self.contested:
            return math.inf
        return min([self._nudged_s + self._nudge_s, *(time for time in self._times() if time > self._last_s)])

    def _times(self) -> tuple[float, ...]:
        ends_s = self.started_s + WAITS_MAX * self._wait_s
        return self.started_s + self._wait_s, ends_s, ends_s + LAST_NUDGES * self._nudge_s

    # What happens

    def settle(self) -> None:
        """Stay in this group: its exchange has begun."""
        self.standing = Standing.SETTLED

    def receive(self, peer: str, message: Status | View | Invite, now: float) -> list[Send]:
        """Take in what is about groups: a view, an invitation, or a status from another group than mine."""
        match message:
            case Status():
                self._see_another(peer, message)
            case View():
                self._hear(peer, message)
            case Invite():
                self._enter(peer, message)
        return self.advance(now)

    def leave(self, peer: str, why: str, now: float, *, down: bool) -> list[Send]:
        """Do without a peer. One that is down would leave its part of the model without a mean: gather anew."""
        self._gone.setdefault(peer, why)
        if down and self.standing is Standing.SEEN and peer in self.seen:
            self._contest()
        return self.advance(now)

    def _see_another(self, peer: str, status: Status) -> None:
        self._gone.pop(peer, None)
        self.others[peer] = status
        if self.standing is Standing.SEEN and peer in self.seen:
            self._contest()
        elif not self._invite_again(peer):
            self._tell(peer)

    def _hear(self, peer: str, view: View) -> None:
        self._gone.pop(peer, None)
        self._said[peer] = view
        if self.standing is Standing.SEEN and peer in self.seen:
            self._contest()
        elif self.contested and not view.free and view.context == self._head(None)["context"]:
            self.settle()  # it has begun with those whom I saw too
        elif self.standing is Standing.GATHERED and not view.free:
            self._do_without(peer)
        if not (view.free and self._invite_again(peer)) and view.asks:
            self._tell(peer)

    def _do_without(self, peer: str) -> None:
        """Gather those whom I lead anew without one who is elsewhere; if that was all of them, whoever is left."""
        formed = self.formed
        if formed is None or formed.leader != self._me or peer not in formed.members:
            return
        if self._said[peer].context in self._led:  # of the last change, if there was any, it may not have heard yet
            if self._said[peer].context != self._head(formed)["context"]:
                self._invite([peer])
            return
        rest = tuple(member for member in formed.members if member != peer)
        self._lead(rest if len(rest) > 1 else self._gathered())

    def _enter(self, peer: str, invite: Invite) -> None:
        formed, now_in = Formed(invite.members, peer), self.formed
        known = {self._me, peer} <= set(invite.members) and list(invite.members) == sorted(set(invite.members))
        if self.standing is Standing.SEEN and peer in self.seen:
            self._contest()
        fewer = now_in is not None and now_in.leader == peer and set(invite.members) < set(now_in.members)
        may_go = self.contested or (self.standing is Standing.GATHERED and fewer)
        if may_go and known and len(invite.members) <= self._size:
            self._form(formed)
        elif self.formed != formed:
            self._tell(peer)

    def _contest(self) -> None:
        self.standing = Standing.CONTESTED
        self._ask(self._concerned() - set(self._gone))

    def advance(self, now: float) -> list[Send]:
        """Do what is due."""
        self._last_s, self._nudged_s = now, self._nudged_s or now
        if self.contested:
            self._decide(now)
        if self.contested and now >= self._nudged_s + self._nudge_s:
            self._nudged_s = now
            self._ask({*self._unheard(), self._leader()} - {self._me})
        sends, self._sends = self._sends, []
        return sends

    # Who is with whom

    def _decide(self, now: float) -> None:
        waited_s, ends_s, last_s = self._times()
        if now >= ends_s and not self._overdue and self._leader() != self._me:
            self._overdue = self._leader()  # who is next gathers the rest
            self._gone[self._overdue] = "it gathered nobody in time"
        if now >= last_s:
            self._form(Formed((self._me,), self._me))
        elif self._leader() == self._me and (not self._unheard() or now >= waited_s):
            self._lead(self._gathered())

    def _lead(self, members: tuple[str, ...]) -> None:
        self._form(Formed(members, self._me))
        self._led.add(self._head(self.formed)["context"])
        self._invite(members)

    def _gathered(self) -> tuple[str, ...]:
        """Take those who hear me and all whom I took before, by rank: the first clique that there is."""
        gathered: dict[str, bytes] = {self._me: self._hears()}
        for peer in self._free():
            hears = self._said[peer].hears
            mutual = all(_is_in(other, hears) and _is_in(peer, heard) for other, heard in gathered.items())
            if mutual and len(gathered) < self._size:
                gathered[peer] = hears
        return tuple(sorted(gathered))

    def _free(self) -> list[str]:
        free = (peer for peer, view in self._said.items() if view.free and peer not in self._gone)
        return sorted(free, key=self._rank)

    def _leader(self) -> str:
        return min([self._me, *self._free()[:1]], key=self._rank)

    def _unheard(self) -> set[str]:
        return {peer for peer in self._concerned() if peer not in self._said and peer not in self._gone}

    def _concerned(self) -> set[str]:
        return {*self.seen, *self.others, *self._said} - {self._me}

    def _form(self, formed: Formed) -> None:
        self.formed, self.standing = formed, Standing.GATHERED
        for peer in sorted(self._concerned() - set(formed.members) - set(self._gone)):
            self._tell(peer)

    # What is said

    def _hears(self) -> bytes:
        return pack_names({*self._view, *self.others, *self._said} - set(self._gone))

    def _tell(self, peer: str, *, asks: bool = False) -> None:
        said = View(**self._head(self.formed), hears=self._hears(), free=self.contested, asks=asks)
        self._sends.append(Send(peer, said))

    def _ask(self, peers: Iterable[str]) -> None:
        for peer in sorted(peers):
            self._tell(peer, asks=True)

    def _invite(self, peers: Iterable[str]) -> None:
        assert self.formed is not None
        invite = Invite(**self._head(self.formed), members=self.formed.members)
        self._sends += [Send(peer, invite) for peer in peers if peer != self._me]

    def _invite_again(self, peer: str) -> bool:
        """Invite somebody whom I have gathered and who does not know it."""
        formed = self.formed
        if formed is None or formed.leader != self._me or peer not in formed.members:
            return False
        self._invite([peer])
        return True

    def absences(self) -> tuple[Absence, ...]:
        """Say of those whom I saw and am not with why that is."""
        if self.formed is None:
            return ()
        left_out = set(self.seen) - set(self.formed.members)
        return tuple(Absence(peer, "contribution", self._why(peer)) for peer in sorted(left_out))

    def _why(self, peer: str) -> str:
        if peer in self._gone:
            return self._gone[peer]
        return "it is in another group" if peer in self._said else "it did not come by the deadline"


def pack_names(names: Collection[str]) -> bytes:
    """Write names so short that a view of hundreds is a few kilobytes."""
    return b"".join(sorted(map(_short, names)))


def _short(name: str) -> bytes:
    return digest("lepton-hears", name.encode())[:HEARS_BYTES]


def _is_in(name: str, packed: bytes) -> bool:
    short = _short(name)
    return any(packed[start : start + HEARS_BYTES] == short for start in range(0, len(packed), HEARS_BYTES))
