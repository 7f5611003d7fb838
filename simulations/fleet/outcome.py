"""What a learning run shows for itself: one row a round, as plain data that reports, comparisons and sweeps read."""

from typing import Annotated

import msgspec

from .scenario import Scenario


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One round in which the fleet was evaluated. Quality is accuracy, or R2 where values are predicted."""

    round: int  # 1 after the first
    mean: float  # quality, over the nodes that were looked at and no attackers
    worst: float
    best: float
    loss: float  # mean of the objective on the test set
    consensus: float  # root mean square distance of the models from their mean, as a part of the mean's norm
    megabytes_sent: float  # by the mean node, from the start
    megabytes_sent_max: float  # by the node that sent most
    seconds: float  # simulated, from the start
    here: int  # nodes that took part
    extra: dict[str, float] = {}  # `Population.measure`, mean over the nodes that were looked at


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One run, whole: what was played, what came of it. The same for the same scenario and torch, to the bit."""

    name: str
    scenario: Scenario
    rows: tuple[Row, ...]
    parameters: int  # of one model
    final: tuple[float, ...]  # quality by node at the end, attackers left out
    names: tuple[str, ...] = ()  # of those nodes, where they have names
    format: Annotated[int, msgspec.Meta(ge=1)] = 1
