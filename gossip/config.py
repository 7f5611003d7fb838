"""Every number that averaging is tuned by, with the reason for its value."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How long to wait, what to refuse and how much to keep. Start from `lan()`."""

    wait_s_initial: float = 20.0
    """How long to wait for a phase before there is experience: the first round includes everybody's slow start."""

    wait_s_min: float = 1.0
    """The least slack above the median, and the least wait: a Wi-Fi retry or a busy CPU costs as much. A guess."""

    wait_s_max: float = 60.0
    """The longest wait that experience may ask for, so that peers that are late on purpose gain nothing more."""

    wait_ratio_max: float = 3.0
    """A wait is at most this many medians: one slow round must not make all later ones slow."""

    wait_history: int = 16
    """Rounds that the wait is learned from: few enough to follow a changing network. A guess."""

    weight_max: float = 1e9
    """A larger weight is refused: weights count samples or steps, and nobody has a billion of either."""

    weight_ratio_max: float = 10.0
    """Weights above this many times the (lower) median weight count as that: nobody buys the mean with one number."""

    norm_ratio_max: float = 4.0
    """A contribution with a norm above this many times the running median is refused (design of `trusted`)."""

    norm_history: int = 64
    """Norms that the running median is over: about eight rounds of a group of eight."""

    rounds_ahead_max: int = 2
    """Messages of this many rounds ahead are kept until this node gets there; beyond, it is behind and should adopt."""

    buffered_count_max: int = 128
    """Early messages kept, which are small: three rounds and a group of eight need 21."""

    window_chunks: int = 4
    """Chunks on their way to one owner whose means have not come back: 2 MB, more than a gigabit link's round trip."""

    nudge_s: float = 0.5
    """So long nothing has moved: say where one stands, and ask again. Little is sent for that."""

    resend_s: float = 10.0
    """What was sent so long ago and has not arrived is sent again to whoever asks. TCP loses nothing, but connections
    break; sooner, one that is only slow would be made slower."""

    @classmethod
    def lan(cls) -> Self:
        """Every peer within a few milliseconds, connected to every other."""
        return cls()

    @classmethod
    def test(cls) -> Self:
        """Virtual time with delays of some milliseconds."""
        return cls(wait_s_initial=1.0, wait_s_min=0.1, wait_s_max=5.0, nudge_s=0.05, resend_s=0.05)
