"""Renewing grants: when it is time, whom to ask, and what the one that is asked may give. A machine without I/O.

A node asks when a third of a grant's life is left: first whoever gave it, so that it stays plain through whom a device
came in, then the other admins that are here. What it gets allows just what the old one allowed; it may not last longer
than its issuer's own, and an expired or revoked issuer has no connection over which it could be asked. A grant that the
root signed is renewed by the root, where that key is; so the device that has it must be up now and then, once in the
last third of a grant's life, or everybody's grants end with those of their admins.

Times are Unix seconds: grants are the one thing that ends by the clock. A clock that is hours wrong moves a renewal
by hours in a month, and a grant that a day's error could end has been renewed long before.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from . import limits
from .errors import Refused
from .grants import GRANT_LIFETIME_S, Authority, Grant, issue, read_grant
from .identity import Identity, PeerId, short

RENEW_BEFORE_S: Final = GRANT_LIFETIME_S / 3  # a month: longer than most devices are switched off at a stretch
NOT_YET_BEFORE_S: Final = GRANT_LIFETIME_S / 2  # whoever asks earlier does not follow the protocol
GAIN_S: Final = 24 * 3600  # less is not worth that everybody hears of it
RETRY_FIRST_S: Final = 10.0  # peers come one by one after a start
RETRY_MOST_S: Final = 3600.0  # there are weeks left


def candidates(
    chain: tuple[Grant, ...], members: Mapping[PeerId, Authority], present: Collection[PeerId]
) -> list[PeerId]:
    """Return who that is here may renew a chain, in the order in which to ask: its issuer, then other admins."""
    last = read_grant(chain[-1])
    able = [
        peer
        for peer in sorted(present)
        if peer in members
        and all(members[peer].allows(wanted) for wanted in (*last.capabilities, "invite"))
        and (peer == last.issuer or members[peer].allows("admin"))
    ]
    return sorted(able, key=lambda peer: (peer != last.issuer, -members[peer].expires, peer))


@dataclass(slots=True)
class Renewal:
    """One node's own grant: when to ask, and whom next."""

    asked: set[PeerId] = field(default_factory=set)
    pause_s: float = RETRY_FIRST_S
    not_before: float = 0.0

    def is_due(self, held: Authority, now: float) -> bool:
        return held.expires - now < RENEW_BEFORE_S

    def whom(self, held: Authority, able: Sequence[PeerId], now: float) -> PeerId | None:
        """Return whom to ask now. Once all have been asked in vain there is a pause, longer each time."""
        if not self.is_due(held, now) or now < self.not_before <= now + RETRY_MOST_S:  # else the clock was set back
            return None
        waiting = [peer for peer in able if peer not in self.asked]
        if not waiting:
            if not self.asked:  # nobody is here who could
                return None
            self.asked.clear()
            self.not_before, self.pause_s = now + self.pause_s, min(2 * self.pause_s, RETRY_MOST_S)
            return None
        self.asked.add(waiting[0])
        return waiting[0]

    def renewed(self) -> None:
        """A newer grant came; should that be due as well, whoever has more to give is asked after a pause."""
        self.asked.clear()
        self.pause_s, self.not_before = RETRY_FIRST_S, 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewer:
    """What a node that is asked has to give."""

    identity: Identity
    chain: tuple[Grant, ...]
    authority: Authority
    root: Identity | None = None  # the mesh's own key, where that is

    def renew(self, held: Authority, chain: tuple[Grant, ...], *, now: float, serial: bytes) -> tuple[Grant, ...]:
        """Return a newer chain for a peer that showed ``chain``, which proves ``held``. Raises Refused with why not."""
        if held.expires - now > NOT_YET_BEFORE_S:
            msg = f"The grant of {short(held.subject)} lasts long enough; it is renewed when a third of it is left."
            raise Refused(msg)
        expires = now + GRANT_LIFETIME_S
        issuer = read_grant(chain[-1]).issuer
        why_not = self._why_not(held, issuer, expires)
        if self.root is not None and (issuer == self.root.peer_id or why_not):
            return (issue(self.root, held.subject, held.capabilities, expires=expires, serial=serial),)
        if why_not:
            raise Refused(why_not)
        return (*self.chain, issue(self.identity, held.subject, held.capabilities, expires=expires, serial=serial))

    def _why_not(self, held: Authority, issuer: PeerId, expires: float) -> str:
        """Say why this node's own grant is not enough to renew another; nothing when it is."""
        mine, me = self.authority, short(self.authority.subject)
        if not mine.allows("invite") or not (issuer == mine.subject or mine.allows("admin")):
            return f"{me} did not give this grant and is no admin; ask another."
        lacking = [wanted for wanted in held.capabilities if not mine.allows(wanted)]
        if lacking:
            return f"{me} may not renew what it has not: {', '.join(lacking)}."
        if len(self.chain) >= limits.GRANT_CHAIN_MAX:
            return f"{me}'s own grant is a chain of {len(self.chain)} links, and longer ones are refused."
        if min(mine.expires, expires) < held.expires + GAIN_S:
            return f"{me}'s own grant does not last longer; it has to be renewed first."
        return ""
