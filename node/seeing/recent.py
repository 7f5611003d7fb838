"""The last lines of a node's log, kept for its owner's eyes: bounded, and gone when the node ends."""

import logging
import re
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

LINES_MAX: Final = 100
_CHARACTERS_MAX: Final = 300  # of one line: peers' own words are in some
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # nothing that a stranger said may move a cursor


class RecentLog(logging.Handler):
    """Keeps what is logged at INFO or above."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: deque[str] = deque(maxlen=LINES_MAX)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line; may be called from any thread."""
        try:
            said = _CONTROL.sub(" ", record.getMessage())[:_CHARACTERS_MAX]
        except (TypeError, ValueError):  # its own mistake in the call; logging's other handlers say so
            return
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        self.lines.append(f"{at} {level}{said}")


@contextmanager
def kept() -> Iterator[RecentLog]:
    """Keep what Lepton logs until the block ends."""
    handler, log = RecentLog(), logging.getLogger(__name__.partition(".")[0])
    log.addHandler(handler)
    try:
        yield handler
    finally:
        log.removeHandler(handler)
