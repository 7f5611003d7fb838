"""What somebody asks of a smaller model, as they write it: `size=4MB`, `latency=0.5x`, `accuracy=-0.5`. Pure.

A size or a latency is a bound in bytes or seconds, or a share (x) of what the model has now. Of quality it is said what
may be lost: for models of classes or values points of accuracy (R2 in hundredths where values are predicted), for
language models how many per cent perplexity may rise, `perplexity=+5%`.
"""

import re
from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from ....mesh.errors import UsageError
from ...config import parse_size

Quality = Literal["accuracy", "perplexity"]

_SHARE: Final = re.compile(r"([0-9]{1,4}(?:\.[0-9]{1,6})?)x")
_TIME: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(us|ms|s)")
_SECONDS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_LOST: Final = {
    "accuracy": re.compile(r"-([0-9]{1,3}(?:\.[0-9]{1,6})?)"),
    "perplexity": re.compile(r"\+([0-9]{1,4}(?:\.[0-9]{1,6})?)%"),
}
_WRITTEN: Final = {
    "size": "size=4MB or size=0.25x",
    "latency": "latency=5ms or latency=0.5x",
    "accuracy": "accuracy=-0.5, the points that may be lost",
    "perplexity": "perplexity=+5%, by how much it may rise",
}


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of one search, in figures; None: there is none."""

    size_bytes: float | None = None
    latency_s: float | None = None
    lost: float | None = None  # points of accuracy, or per cent of perplexity


class Targets(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked, before it is known what the model has now. Of each pair one is there at most."""

    size_bytes: int | None = None
    size_share: float | None = None
    latency_s: float | None = None
    latency_share: float | None = None
    quality: Quality | None = None
    lost: float | None = None

    def limits(self, size_bytes: int, latency_s: float) -> Limits:
        """Return the bounds for a model that takes this much now."""
        return Limits(
            size_bytes=self.size_bytes if self.size_share is None else self.size_share * size_bytes,
            latency_s=self.latency_s if self.latency_share is None else self.latency_share * latency_s,
            lost=self.lost,
        )


def parse_targets(texts: str | Iterable[str]) -> Targets:
    """Read targets, several in one text with commas between. Raises UsageError that says how one is written."""
    words = [word.strip() for text in ([texts] if isinstance(texts, str) else texts) for word in text.split(",")]
    found: dict[str, str | float] = {}
    seen: set[str] = set()
    for word in words:
        name, separator, value = word.partition("=")
        if name not in _WRITTEN or not separator:
            raise UsageError(f"{word!r} is no target; write {'; '.join(_WRITTEN.values())}.")
        kind = "quality" if name in _LOST else name
        if kind in seen:
            raise UsageError(f"There are two targets of {kind}; give one.")
        seen.add(kind)
        found |= _parsed(name, value)
    if not found:
        raise UsageError(f"There is no target; write {'; '.join(_WRITTEN.values())}.")
    return msgspec.convert(found, Targets)


def _parsed(name: str, value: str) -> dict[str, str | float]:
    if name in _LOST:
        if match := _LOST[name].fullmatch(value):
            return {"quality": name, "lost": float(match[1])}
        raise _not_so(name, value)
    if match := _SHARE.fullmatch(value):
        if not 0 < float(match[1]) <= 1:
            raise UsageError(f"{name}={value}: a share of what the model has now lies between 0 and 1.")
        return {f"{name}_share": float(match[1])}
    if name == "size":
        try:
            return {"size_bytes": parse_size(value)}
        except UsageError as error:
            raise _not_so(name, value) from error
    match = _TIME.fullmatch(value)
    if match is None or float(match[1]) <= 0:
        raise _not_so(name, value)
    return {"latency_s": float(match[1]) * _SECONDS[match[2]]}


def _not_so(name: str, value: str) -> UsageError:
    return UsageError(f"{name}={value} is no target; write {_WRITTEN[name]}.")
