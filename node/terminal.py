"""What others said, made fit for a terminal: no escape sequences, no line that turns around or writes over another.

All that the command line is told by its node goes through here once, names of devices, reasons and logs among it.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

# Control characters but tabs and line ends, and Unicode's that change the direction of what follows.
_UNSAFE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    r"""Return a text in which what a terminal would obey stands as it is written in Python, as in ``\x1b``."""
    return _UNSAFE.sub(lambda found: repr(found[0])[1:-1], text)


def all_harmless(value: Any) -> Any:  # noqa: ANN401 - plain data
    """Return plain data with each text in it made harmless."""
    match value:
        case str():
            return harmless(value)
        case list():
            return [all_harmless(each) for each in value]
        case Mapping():
            return {all_harmless(key): all_harmless(each) for key, each in value.items()}
    return value


def harmless_json(text: str) -> str:
    """Return JSON of the same value, in which no character is one that a terminal would obey."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
