"""One id for all that a user's request causes, on whichever nodes.

Nothing new is on the wire for it: sessions of generation and prediction have ids of 16 random bytes, of which the
first 8 are the request's; calls of services carry it. So nodes of older releases take part as ever, they merely do not
log it.
"""

import logging
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from . import traces

ID_BYTES: Final = 8
SESSION_BYTES: Final = 16  # the other half tells the sessions of one request apart
_GIVEN: Final = re.compile(rf"[0-9a-f]{{{2 * ID_BYTES}}}")

_current: Final[ContextVar[str]] = ContextVar("lepton_request", default="")

# What requests do, hop by hop: the command line shows it when it is to say more, or logs JSON.
log: Final = logging.getLogger("lepton.requests")


def current() -> str:
    """Return the id of the request that is being worked on; empty outside of one."""
    return _current.get()


@contextmanager
def entering(what: str, given: str = "") -> Iterator[str]:
    """Begin a request of a user, or go on with the one that is under way; gives its id.

    ``given`` is an id that a client brought along; one of another form is passed over.
    """
    if current():
        yield current()
        return
    id_ = given if _GIVEN.fullmatch(given) else secrets.token_hex(ID_BYTES)
    token = _current.set(id_)
    try:
        with traces.root(what, id_):
            yield id_
    finally:
        _current.reset(token)


@contextmanager
def following(session: bytes | str, what: str = "", **about: str | int) -> Iterator[None]:
    """Work for a session, of whichever node's request; with ``what`` it is a hop of it, logged and traced."""
    id_ = (session if isinstance(session, str) else session.hex())[: 2 * ID_BYTES]
    token = _current.set(id_)
    try:
        if what:
            log.info("%s", what, extra=about)
        with traces.hop(what, id_, about):
            yield
    finally:
        _current.reset(token)


def session_id() -> bytes:
    """Return the random id of a new session of the request that is under way, or of one that begins with it."""
    front = bytes.fromhex(current()) if current() else secrets.token_bytes(ID_BYTES)
    return front + secrets.token_bytes(SESSION_BYTES - len(front))
