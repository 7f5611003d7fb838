"""One session on one stage: how far it is, what waits for it, and what of its outputs the next stage has. Pure."""

from collections import deque
from dataclasses import dataclass, field

from ...mesh.identity import PeerId
from .events import Came
from .kept import Kept
from .messages import Data, Open


@dataclass(slots=True, eq=False)
class Held:
    """A session that is open on a stage."""

    opened: Open
    key: int
    used_at: float
    kept: Kept
    ids: list[int] = field(default_factory=list)  # of the positions in the cache
    inbox: deque[Data] = field(default_factory=deque)
    end: int = 0  # of what was run, runs or waits in the inbox
    running: Data | None = None
    deferred: list[Came] = field(default_factory=list)
    asked: bool = False  # the next stage has said what it needs
    sent: int = 0  # the positions before this were sent to the next stage, or it has them
    acked: int = 0  # and these it has run
    shared: bool = False  # its prompt's blocks were kept for others
    mixed: bool = False  # what its cache was made from came along different routes

    @property
    def index(self) -> int:
        return self.opened.index

    @property
    def is_last(self) -> bool:
        return self.index == len(self.opened.route) - 1

    @property
    def before(self) -> PeerId:
        return self.opened.route[self.index - 1] if self.index else self.opened.asker

    @property
    def behind(self) -> PeerId:
        return self.opened.route[self.index + 1]

    def takes_from(self, peer: PeerId) -> bool:
        """Whether steps may come from this peer: the stage before, or the asker and whoever draws the tokens."""
        return peer == self.before or (self.index == 0 and peer == self.opened.route[-1])
