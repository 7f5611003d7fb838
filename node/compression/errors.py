"""Why a compressed form is refused: it must be worth it, in figures."""

from ...mesh.errors import UsageError


class NotWorthIt(UsageError):
    """A compressed form gains nothing; the model stays as it is."""


class NotSmaller(NotWorthIt):
    """The compressed form takes as much as before, or more."""

    def __init__(self, before: int, after: int, how: str) -> None:
        super().__init__(
            f"With {how} this model would take {after:,} bytes, and it takes {before:,} now: it stays as it is."
        )
        self.size_bytes_before, self.size_bytes = before, after


class NotFaster(NotWorthIt):
    """The compressed form answers no sooner than before."""

    def __init__(self, before: float, after: float, how: str) -> None:
        super().__init__(
            f"With {how} this model would take {after * 1000:.2f} ms on these data, and it takes "
            f"{before * 1000:.2f} ms now: it stays as it is. Ask for what is smaller alone, if the size is worth that."
        )
        self.taken_s_before, self.taken_s = before, after
