"""What a run shows for itself: figures, as a table that is the same to the letter whenever its seed is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from .run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is counted in a run. Times are virtual seconds."""

    seed: int
    nodes: int
    virtual_s: float
    events: int
    messages_sent: int
    messages_lost: int
    messages_duplicated: int
    bytes_sent: int
    dials: int
    dials_failed: int
    refusals: int
    lies: int
    crashes: int
    crash_noticed_s: float
    """From a crash until the last of its peers had noticed, the longest."""

    rounds: int
    """Of all nodes together."""

    rounds_complete: int
    """Those in which every part was the mean of all members."""

    training_error_mean: float
    training_error_worst: float
    """A node's distance to the known optimum, as a part of the mean distance of the nodes' own optima to it."""

    requests: int
    requests_answered: int
    requests_failed: int
    requests_abandoned: int
    """Whose asker crashed."""

    requests_rerouted: int
    request_s_median: float
    request_s_max: float
    sessions: int
    """With the language model."""

    sessions_answered: int
    sessions_failed: int
    sessions_abandoned: int
    sessions_mended: int
    """That went along another route, or the same anew."""

    session_tokens: int
    session_pause_s_max: float
    """From when a trouble was noticed to the next token."""

    @classmethod
    def of(cls, run: "Run", errors: Sequence[float]) -> Self:
        """Count."""
        traffic, requests = run.network.traffic, list(run.requests.all.values())
        waits = sorted(request.waited_s for request in requests if request.answered)
        noticed = [seconds for crash in run.crashes.all for seconds in crash.noticed_s]
        devices = [member.device for member in run.members.values()]
        answers = list(run.answers.all.values())
        tallies = [answer.tally for answer in answers if answer.tally is not None]
        return cls(
            seed=run.world.seed,
            nodes=run.scenario.nodes,
            virtual_s=run.world.now,
            events=run.world.events,
            messages_sent=traffic.sent,
            messages_lost=traffic.lost,
            messages_duplicated=traffic.duplicated,
            bytes_sent=traffic.bytes_sent,
            dials=traffic.dials,
            dials_failed=traffic.dials_failed,
            refusals=sum(device.refusals for device in devices),
            lies=sum(getattr(device, "lies", 0) for device in run.strangers),
            crashes=len(run.crashes.all),
            crash_noticed_s=max(noticed, default=0.0),
            rounds=run.rounds.finished_count,
            rounds_complete=run.rounds.complete_count,
            training_error_mean=sum(errors) / len(errors),
            training_error_worst=max(errors),
            requests=len(requests),
            requests_answered=len(waits),
            requests_failed=sum(any(request.outcomes) for request in requests),
            requests_abandoned=sum(request.abandoned for request in requests),
            requests_rerouted=sum(request.attempts > 1 for request in requests),
            request_s_median=waits[len(waits) // 2] if waits else 0.0,
            request_s_max=waits[-1] if waits else 0.0,
            sessions=len(answers),
            sessions_answered=sum(answer.answered for answer in answers),
            sessions_failed=sum(any(answer.outcomes) for answer in answers),
            sessions_abandoned=sum(answer.abandoned for answer in answers),
            sessions_mended=sum(tally.attempts > 1 for tally in tallies),
            session_tokens=sum(answer.tokens for answer in answers),
            session_pause_s_max=max((pause for tally in tallies for pause in tally.pauses), default=0.0),
        )


def table(name: str, about: str, figures: Mapping[str, float]) -> str:
    """Return figures, of a mesh or of a crowd, as a table of two columns."""
    rows = [(label.replace("_", " "), _written(value)) for label, value in figures.items()]
    left = max(len(label) for label, _ in rows)
    right = max(len(value) for _, value in rows)
    lines = [f"{name}: {about}", "", *(f"  {label:<{left}}  {value:>{right}}" for label, value in rows)]
    return "\n".join([*lines, "", "Every invariant held."])


def transcript(lines: Sequence[str]) -> str:
    """Return the story of a run: a line for each thing that happened, with its virtual second."""
    return "\n".join(lines) + "\n"


def _written(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
