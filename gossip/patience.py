"""How long to wait for the others, learned from how long the last rounds took."""

from statistics import median

from .config import Config

SAMPLES_MIN = 3  # a spread of fewer says nothing


class Patience:
    """The deadline of one phase: median + 3 MAD of recent durations, with a least slack, at most some medians.

    A duration is that from a phase's start to the last arrival. A phase that ended at its deadline counts with all
    of its wait, and what arrives still later stretches it: a deadline once too short does not stay so.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._durations_s: dict[int, float] = {}  # by round

    def record(self, round_: int, duration_s: float) -> None:
        """Note how long this phase of a round took; of several durations of one round the longest counts."""
        self._durations_s[round_] = max(duration_s, self._durations_s.get(round_, 0.0))
        while len(self._durations_s) > self._config.wait_history:
            del self._durations_s[min(self._durations_s)]

    @property
    def wait_s(self) -> float:
        """How long to wait for the last arrival in the next round."""
        config, durations = self._config, self._durations_s.values()
        if len(durations) < SAMPLES_MIN:
            return config.wait_s_initial
        middle = median(durations)
        spread = median(abs(duration - middle) for duration in durations)
        wait_s = min(middle + max(3 * spread, config.wait_s_min), config.wait_ratio_max * middle)
        return min(max(wait_s, config.wait_s_min), config.wait_s_max)
