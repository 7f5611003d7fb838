"""Which instance a session stays on, and which release: rendezvous hashing, the same at callers and hosts. Pure.

Everybody ranks all by a hash of session and name (Thaler & Ravishankar 1998). When one goes, only its own sessions
move, each to its next; when one comes, it takes an equal part of all. With weights: Schindelhauer & Schomaker 2005.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping


def ranked(session: str, names: Iterable[str]) -> list[str]:
    """Return all names, the one that the session belongs to first."""
    return sorted(names, key=lambda name: (-_number(session, name), name))


def favourite(session: str, shares: Mapping[str, float]) -> str:
    """Return the release that a session belongs to: each has its share of all sessions."""
    return max(sorted(shares), key=lambda name: shares[name] / -math.log(_number(session, name)))


def _number(session: str, name: str) -> float:
    """Return what the two give, evenly spread in (0, 1)."""
    digest = hashlib.blake2b(f"{session}\0{name}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") + 1) / (2**64 + 2)
