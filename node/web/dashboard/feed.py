"""The page's live feed: server-sent events, each a section that has changed; it ends when the client goes.

All clients look at one picture, which is made at most once a second and only while somebody looks.
"""

import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Final

import msgspec
import trio

EVERY_S: Final = 1.0  # at most so often is a picture made
STILL_S: Final = 3.0  # and at least so often: rates of links change with no record
SHARE: Final = 0.05  # of the time at most goes into pictures: of 1,000 devices one takes a while
SILENCE_S: Final = 15.0  # after so long without news a comment shows whether the client is still there
CLIENTS_MAX: Final = 8  # a person has a laptop and a phone

log = logging.getLogger(__name__)

Sections = Mapping[str, Any]


class Feed:
    """Makes pictures, and tells each client what is new in them."""

    def __init__(self, picture: Callable[[float], Sections], changed: Callable[[], trio.Event]) -> None:
        self._picture = picture
        self._changed = changed
        self._made: dict[str, bytes] = {}
        self._again_at = -math.inf

    def sections(self) -> dict[str, bytes]:
        """Return all sections as JSON, made now or less than a second ago; longer where that takes long."""
        now, began = trio.current_time(), time.perf_counter()
        if now >= self._again_at:
            made = self._picture(now)
            self._made = {name: msgspec.json.encode(value) for name, value in made.items()}
            self._again_at = now + max(EVERY_S, (time.perf_counter() - began) / SHARE)
        return self._made

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Give what a client is sent, for as long as it wants more."""
        told: dict[str, bytes] = {}
        silent_since = trio.current_time()
        while True:
            changed, sections = self._changed(), self.sections()
            news = [event_of(name, said) for name, said in sections.items() if told.get(name) != said]
            now = trio.current_time()
            if news:
                told, silent_since = sections, now
                yield b"".join(news)
            elif now - silent_since >= SILENCE_S:
                silent_since = now
                yield b": still here\n\n"
            await trio.sleep(EVERY_S)
            with trio.move_on_after(STILL_S - EVERY_S):
                await changed.wait()


def event_of(section: str, said: bytes) -> bytes:
    """Return one server-sent event. JSON has no bare line ends, so its data are one line."""
    return b"event: " + section.encode() + b"\ndata: " + said + b"\n\n"
