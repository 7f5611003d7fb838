"""Text of strangers made fit to be shown: short, without control characters, without what turns a line around. Pure.

The page escapes everything besides. This keeps one device's name from looking like another's words.
"""

import unicodedata
from typing import Final

NAME_MAX: Final = 64
REASON_MAX: Final = 400
ROOT: Final = "the root key"  # of the mesh, which is nobody's device
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})  # of Unicode's categories
_MARKS_MAX: Final = 2  # combining marks in a row: more of them run over the lines above and below


def shown(text: str, most: int = NAME_MAX) -> str:
    """Return a text as it may be shown: at most so many characters, whatever it is made of."""
    kept, marks = list[str](), 0
    for character in text[: 4 * most]:
        kind = unicodedata.category(character)
        marks = marks + 1 if kind in {"Mn", "Me"} else 0
        if marks <= _MARKS_MAX:
            unseen = kind in _UNSEEN and not character.isspace()  # spaces of all kinds become one
            kept.append("\N{REPLACEMENT CHARACTER}" if unseen else character)
    said = " ".join("".join(kept).split())
    return said if len(said) <= most and len(text) <= 4 * most else f"{said[: most - 1]}…"


def name(text: str, instead: str) -> str:
    """Return a name as it may be shown; ``instead`` where nothing of it is left."""
    return shown(text) or instead
