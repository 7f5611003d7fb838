"""One process on one machine: whether it runs, how fast, and what its clocks say.

Invariant: what comes to a process is done in the order in which it came, whatever its pace; a dead one does nothing.
"""

from .world import Action, World

# What handling one message or one timer takes of a device that is slow; on others it takes no time at all.
# About what a laptop needs for a small call, with its checks of bytes and signatures.
_HANDLING_S = 0.001
_ROUNDING_S = 1e-9  # a clock that runs at another rate rounds: better a nanosecond late than early


class Process:
    """Time as one process has it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.alive = True
        self.times = 1.0  # as long as others it takes for what it does
        self._held: list[Action] | None = None  # while it is stopped: what it does first when it goes on
        self._busy_until = 0.0
        self._rate, self._offset_s = 1.0, 0.0  # of its clocks
        self._set_at, self._set_to = 0.0, 0.0  # when the rate changed, and what the monotonic clock said then

    # -- clocks -------------------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """What its monotonic clock says: deadlines are set by it."""
        return self._set_to + (self.world.now - self._set_at) * self._rate

    @property
    def unix_s(self) -> float:
        """What its calendar says: grants expire by it."""
        return self.world.unix_s + self._offset_s + (self.now - self.world.now)

    def skew(self, offset_s: float, drift: float) -> None:
        """Set its calendar wrong, and let its clocks run fast by so much of each second."""
        self._set_to, self._set_at = self.now, self.world.now
        self._offset_s, self._rate = offset_s, 1.0 + drift

    def after(self, delay_s: float, action: Action) -> None:
        """Do something later by its own clock, unless it is dead by then."""
        if self._rate != 1.0:
            delay_s = max(delay_s, 0.0) / self._rate + _ROUNDING_S
        self.world.after(delay_s, lambda: self.awake(action))

    # -- pace ---------------------------------------------------------------------------------------------------------

    def work(self, takes_s: float, action: Action) -> None:
        """Compute for a while, then do something."""
        self.after(takes_s * self.times, action)

    def awake(self, action: Action) -> None:
        """Do something as soon as it can: at once, or when it goes on, or when it has done what came before."""
        if self._held is not None:
            self._held.append(action)
        elif self.times > 1.0 or self._busy_until > self.world.now:
            self._queue(action)
        elif self.alive:
            action()

    def _queue(self, action: Action) -> None:
        self._busy_until = max(self._busy_until, self.world.now) + self.times * _HANDLING_S
        self.world.after(self._busy_until - self.world.now, lambda: self._do(action))

    def _do(self, action: Action) -> None:
        if self._held is not None:
            self._held.append(action)
        elif self.alive:
            action()

    @property
    def frozen(self) -> bool:
        return self._held is not None

    def freeze(self) -> None:
        """Stop: it hears and does nothing, and its connections stay open. What comes waits in the kernel."""
        self._held = []

    def thaw(self) -> None:
        """Go on, with all that has come and all timers that have run out meanwhile."""
        held, self._held = self._held or [], None
        for action in held:
            self.awake(action)
