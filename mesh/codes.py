"""The short code of an invite: twelve characters that one person reads out and another types in. A machine without I/O.

``7MQK-2XWD-9F3Y``: three characters name the invite (its nameplate, which anybody may see), eight are the password (40
bits), the last is the check. The letters are Crockford's base 32: capitals and small ones are the same, an O is read as
0, an I or an L as 1, and what is not a letter or digit is passed over.

The check makes of the twelve symbols a codeword of a Reed-Solomon code over GF(32) (Reed and Solomon 1960): any one
wrong character and any two exchanged ones are noticed before anything is sent, and 31 of 32 other mistakes.
"""

from dataclasses import dataclass, field
from typing import Final

from .errors import UsageError

ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # https://www.crockford.com/base32.html
NAMEPLATES: Final = 32**3  # two of the 256 invites on a network seldom have the same name
ENTROPY_BYTES: Final = 7  # 15 bits for the nameplate and 40 for the password
_NAMEPLATE, _PASSWORD, _GROUP = 3, 8, 4
_LENGTH: Final = _NAMEPLATE + _PASSWORD + 1
_TYPED_MAX: Final = 64  # characters of a code with whatever stands between them
_FIELD: Final = 0b100101  # x^5 + x^2 + 1, primitive over GF(2): x has the order 31 > 12
_ALIKE: Final = str.maketrans("OIL", "011")


@dataclass(frozen=True, slots=True)
class Code:
    """One code. ``nameplate`` is public, ``password`` is for its giver and its user alone."""

    nameplate: str
    password: str = field(repr=False)

    def __str__(self) -> str:
        """Write it for people."""
        symbols = self.nameplate + self.password
        symbols += ALPHABET[_times_x(_remainder(symbols))]
        return "-".join(symbols[at : at + _GROUP] for at in range(0, _LENGTH, _GROUP))


def code_of(nameplate: int, password: int) -> Code:
    """Write two numbers, below ``NAMEPLATES`` and 2^40, as a code."""
    return Code(_symbols(nameplate, _NAMEPLATE), _symbols(password, _PASSWORD))


def read_code(text: str) -> Code:
    """Read what somebody typed. Raises UsageError when it is no code or a character of it is wrong."""
    symbols = "".join(letter for letter in text[: _TYPED_MAX + 1].upper() if letter.isalnum()).translate(_ALIKE)
    good = len(text) <= _TYPED_MAX and len(symbols) == _LENGTH and set(symbols) <= set(ALPHABET)
    if not good or _remainder(symbols):
        msg = (
            "This is not an invite code, or a character of it is wrong: it has twelve letters and digits, as "
            "`lepton-node invite` shows them. Copy it again; nothing was sent."
        )
        raise UsageError(msg)
    return Code(symbols[:_NAMEPLATE], symbols[_NAMEPLATE:-1])


def _symbols(number: int, count: int) -> str:
    return "".join(ALPHABET[number >> 5 * at & 31] for at in reversed(range(count)))


def _remainder(symbols: str) -> int:
    """Evaluate the polynomial with these coefficients at x (Horner); 0 for a whole code."""
    value = 0
    for symbol in symbols:
        value = _times_x(value) ^ ALPHABET.index(symbol)
    return value


def _times_x(value: int) -> int:
    return value << 1 ^ (_FIELD if value & 16 else 0)
