"""What one member of a round knows of another one."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Member:
    """The owner of part `number`: whether it is there, what it was sent, what came from it and when."""

    number: int
    opened: bool = False
    weight: float = 0.0
    reference: bytes = b""
    gone: str = ""  # why it is not waited for; '' while it is
    down: bool = False
    out: str = ""  # why its values are in no further chunk of my part
    refused: str = ""
    turn: int = 0  # the first chunk of its part that I have not sent it
    held: tuple[int, ...] = ()  # the means that it says it has
    sent_s: float = 0.0  # when it last sent me values that I average, or need not have
    mean_s: float = 0.0  # when a mean of its part last came
    given_s: float = 0.0  # when I last sent it values or means
    wanted: dict[int, int] = field(default_factory=dict)  # means that I asked it to relay
    _for_good: bool = False

    def leave(self, why: str, *, down: bool = False, for_good: bool = False) -> None:
        """Do not wait for it any more. The first reason is kept, and what is for good stays so."""
        self.gone = self.gone or why
        self.down |= down
        self._for_good |= for_good

    def come_back(self, now: float) -> None:
        """It speaks: wait for it again, unless it left for good."""
        self.down = False
        if self.gone and not self._for_good:
            self.gone = ""
            self.sent_s = self.mean_s = now
