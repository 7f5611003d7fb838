"""How eagerly a node looks after the others: every interval and size of the membership machines, with its reason."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The defaults are for a home or an office: some devices that come and go on one local network."""

    look_interval_s: float = 1.0  # how often a node looks after its connections
    look_calm_s: float = 5.0  # and where there is none to give up: as often as it tries one of those who are away

    redial_first_s: float = 0.2
    redial_most_s: float = 15.0  # someone who unplugs a device plugs it in again within minutes, not seconds
    redial_lost_s: float = 60.0  # a member that has been away for longer than a hint lives; it will dial too
    hint_lifetime_s: float = 300.0  # a hint that never became a connection in five minutes is stale
    late_s: float = 5.0  # a deadline missed by so much is no busy processor: this node was stopped, or it slept

    whole_most: int = 50  # members present up to which everybody connects to everybody (architecture.md, 'Two scales')
    whole_again: int = 40  # and at which they do so again: a mesh of about 50 must not flap between the two
    # Neighbours beyond that: one before and one after on each ring. HyParView keeps log10(n) + 1 of them, Rapid, which
    # also watches over them, 20; ten keep 1,000 nodes in one piece when 30 % crash at once (tests/mesh).
    rings: int = 5
    degree_most: int = 20  # connections kept for others' sake too: twice what a converged mesh needs
    linger_s: float = 30.0  # how long a connection that is nobody's neighbour's may lie idle; dialling costs 10 ms
    reach_interval_s: float = 5.0  # how often a large mesh tries one of those who are away: each has many to try it
