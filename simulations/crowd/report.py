"""What a crowd's run shows for itself: figures, the same to the letter whenever the seed is."""

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from .crowd import Crowd


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is counted in a run. Times are virtual seconds."""

    seed: int
    nodes: int
    virtual_s: float
    events: int
    probe_messages: int
    record_calls: int
    dials: int
    records_said: int
    began: int
    ended: int
    noticed_s_median: float
    """From the end of a process until a member held it for dead, over all members and ends."""

    noticed_s_max: float
    mistaken: int
    """How often a member was held for dead by another although it was here."""

    unseen_max: int
    """Members of whom one that began late has not heard yet that they are here."""

    connections_median: float
    connections_max: int

    @classmethod
    def of(cls, crowd: "Crowd") -> Self:
        """Count."""
        ledger, traffic = crowd.ledger, crowd.traffic
        noticed = [seconds for gone in ledger.gone for seconds in gone.noticed_s]
        degrees = [len(member.members.connected) for member in crowd.members.values()]
        return cls(
            seed=crowd.clock.seed,
            nodes=crowd.scenario.nodes,
            virtual_s=crowd.clock.now,
            events=crowd.clock.events,
            probe_messages=traffic.probes,
            record_calls=traffic.calls,
            dials=traffic.dials,
            records_said=len(ledger.published),
            began=sum(disk.incarnation for disk in crowd.disks.values()),
            ended=len(ledger.gone),
            noticed_s_median=statistics.median(noticed) if noticed else 0.0,
            noticed_s_max=max(noticed, default=0.0),
            mistaken=len(ledger.mistaken),
            unseen_max=max(len(crowd.members) - 1 - len(member.members.present) for member in crowd.members.values()),
            connections_median=statistics.median(degrees),
            connections_max=max(degrees),
        )
