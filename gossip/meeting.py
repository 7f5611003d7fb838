"""One round of one member: first its group, which is mostly there at once, and then the exchange within it.

Invariant: values are exchanged in one group only, and no earlier than it is settled which one (`forming.py`).
"""

from collections.abc import Callable
from dataclasses import replace

from .events import Expired, Finished, PeerDown, Ready, Received, Report, Send
from .forming import Formed, Forming
from .groups import group_of, rank
from .messages import Invite, Message, Status, View
from .round import Head, Round
from .terms import Terms

Event = Received | PeerDown | Expired
Effect = Send | Finished


class Meeting:
    """`start` once, then `handle` each event and each `deadline`. Answers the late when it is over, until `release`."""

    def __init__(
        self,
        me: str,
        ready: Ready,
        *,
        size: int,
        terms: Callable[[Formed], Terms],
        new_round: Callable[[Terms], Round],
        wait_s: float,
        nudge_s: float,
        instance: int,
    ) -> None:
        """``terms`` are those of a group, of at most ``size``; ``new_round`` makes the exchange under them."""
        task = terms(Formed((me,), ""))
        self._terms, self._instance = terms, instance
        self._new_round: Callable[[Terms], Round] | None = new_round  # it holds the vector: no longer than needed
        group = group_of(task.mesh, task.task, ready.round, me, ready.members, size)
        self._round = new_round(terms(Formed(group, "")))
        self._forming = Forming(
            me, group, ready.members,
            size=size, rank=lambda peer: rank(task.mesh, task.task, ready.round, peer), head=self._head,
            wait_s=wait_s, nudge_s=nudge_s,
        )  # fmt: skip
        self._released = False

    @property
    def deadline(self) -> float:
        """When `handle(Expired(), ...)` is due."""
        return min(self._round.deadline, self._forming.deadline)

    def start(self, now: float) -> list[Effect]:
        """Tell the others of the group that I see that I am here."""
        self._forming.started_s = now
        return self._after(self._round.start(now))

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event."""
        match event:
            case _ if self._released:
                return []
            case Received(peer, message):
                return self._receive(peer, message, now)
            case PeerDown(peer):
                effects = self._gather(self._forming.leave(peer, "the peer went down", now, down=True), now)
                return effects + self._after(self._round.handle(event, now))
            case _:
                return self._after(self._round.handle(event, now)) + self._gather(self._forming.advance(now), now)

    def wait_no_more(self, peer: str, now: float) -> list[Effect]:
        """Do without what ``peer`` has not sent: it is in a later round."""
        effects = self._after(self._round.wait_no_more(peer, now))
        return effects + self._gather(self._forming.leave(peer, "the peer is in a later round", now, down=False), now)

    def is_late(self, peer: str, message: Message) -> bool:
        """Whether one that I saw comes when nobody waits for it any more."""
        formed = self._forming.formed
        if formed is None:
            return self._round.is_late(peer, message)
        return isinstance(message, Status) and peer in self._forming.seen and peer not in formed.members

    @property
    def started_s(self) -> float:
        return self._forming.started_s

    def release(self) -> None:
        """Hold no models any more, and answer nobody."""
        self._round.release()
        self._released = True

    def _head(self, formed: Formed | None) -> Head:
        terms = self._round.terms if formed is None else self._terms(formed)
        return {"task": terms.task, "round": terms.round, "context": terms.context, "instance": self._instance}

    def _receive(self, peer: str, message: Message, now: float) -> list[Effect]:
        elsewhere = isinstance(message, Status) and message.context != self._round.context
        if not elsewhere and not isinstance(message, View | Invite):
            return self._after(self._round.handle(Received(peer, message), now))
        effects = self._gather(self._forming.receive(peer, message, now), now)  # type: ignore[arg-type]
        if isinstance(message, View) and not message.free and not self._round.opening:
            effects += self._after(self._round.handle(Received(peer, message), now))
        return effects

    def _gather(self, sends: list[Send], now: float) -> list[Effect]:
        """Hold the round open while its group is looked for, and go on with the group that is found."""
        formed, effects = self._forming.formed, list[Effect](sends)
        terms = self._round.terms if formed is None else self._terms(formed)
        if terms != self._round.terms and self._new_round is not None:
            self._round.release()
            self._round = self._new_round(terms)
            effects += self._after(self._round.start(now))
            opened = {p: said for p, said in self._forming.others.items() if said.context == self._round.context}
            for peer, status in opened.items():  # they knew sooner
                effects += self._after(self._round.handle(Received(peer, status), now))
        elif self._round.opening:
            effects += self._after(self._round.hold_open(now, held=self._forming.contested))
        return effects

    def _after(self, effects: list[Effect]) -> list[Effect]:
        if not self._round.opening:
            self._forming.settle()
            self._new_round = None
        return [self._told(effect) if isinstance(effect, Finished) else effect for effect in effects]

    def _told(self, finished: Finished) -> Finished:
        """Add to the report what gathering the group took, and who is not in it."""
        report: Report = finished.report
        took_s = self._round.started_s - self._forming.started_s
        missing = report.missing + self._forming.absences()
        return replace(finished, report=replace(report, missing=missing, opening_s=report.opening_s + took_s))
