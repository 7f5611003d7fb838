"""Tokens become text as they come: never half a character, and nothing of a stop string before it is decided.

The pieces of text add up to what decoding all tokens at once gives (up to a stop string), spaces included: a token's
text depends on the tokens before it, so a few of those are decoded again each time.
"""

from collections.abc import Sequence
from typing import Final

from .tokenizer import LanguageTokenizer

_UNFINISHED: Final = "\ufffd"  # what a decoder makes of a part of a character
_HELD_TOKENS_MAX: Final = 16  # a character has at most 4 bytes: after so many tokens these bytes will never be one


class TextStream:
    """Tokens in, text out."""

    def __init__(self, tokenizer: LanguageTokenizer, context: Sequence[int] = ()) -> None:
        """Begin behind ``context``, the last tokens of the prompt; without it as at the start of a text."""
        self._tokenizer = tokenizer
        self._tokens = list(context)  # those given last, to be decoded again, and those that are held
        self._read = len(self._tokens)  # the text of so many of them has been given

    def push(self, token: int) -> str:
        """Take a token and return what text is certain now; empty while a character is not whole."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        if text.endswith(_UNFINISHED) and len(self._tokens) - self._read < _HELD_TOKENS_MAX:
            return ""
        return self._given(text)

    def finish(self) -> str:
        """Return what was held back, broken characters as U+FFFD."""
        return self._given(self._tokenizer.decode(self._tokens))

    def _given(self, text: str) -> str:
        before, held = self._tokenizer.decode(self._tokens[: self._read]), self._tokens[self._read :]
        if text == before:  # a special token, or none: the next one still needs those before it
            return ""
        self._tokens, self._read = held, len(held)
        # Where broken bytes follow whole characters in one run, some decoders break all of them: then the held alone.
        return text[len(before) :] if text.startswith(before) else self._tokenizer.decode(held)


class Stops:
    """Looks for stop strings in text that comes in pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Take text and return what of it cannot belong to a stop string; nothing behind one that was found."""
        if self.found is not None:
            return ""
        self._held += text
        places = [(at, -len(stop), stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if places:
            at, _, self.found = min(places)
            given, self._held = self._held[:at], ""
            return given
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        given, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return given

    def finish(self) -> str:
        """Return what was held back: no stop string came of it."""
        given, self._held = self._held, ""
        return given


class Transcript:
    """The text of an answer while its tokens come: `TextStream`, then `Stops`."""

    def __init__(self, tokenizer: LanguageTokenizer, stops: Sequence[str] = (), context: Sequence[int] = ()) -> None:
        self._stream = TextStream(tokenizer, context)
        self._stops = Stops(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found: the answer ends before it."""
        return self._stops.found is not None

    def push(self, token: int) -> str:
        """Take a token that is not one of the end, and return the text that is certain now."""
        return self._stops.push(self._stream.push(token))

    def finish(self) -> str:
        """Return what was held back until the answer ended; a stop string may still be found in it."""
        return self._stops.push(self._stream.finish()) + self._stops.finish()


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` may begin ``stop``."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)
