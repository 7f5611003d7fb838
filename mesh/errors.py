"""What can go wrong, named by whose fault it is. Foreign exceptions become one of these where they enter."""

from collections.abc import Iterator


class LeptonError(Exception):
    """Something in Lepton failed; the message says what happened, to what, and what to do next."""

    told = False  # whether a peer answered so: then asking again brings the same
    unsent = False  # whether a call failed before anything of it was sent: then it did not run


class UsageError(LeptonError):
    """The caller asked for something that cannot be: a bad value, a missing file, a name that does not exist."""


class PeerError(LeptonError):
    """The remote broke the protocol. It loses its connection; nothing of what it sent is used."""

    offender: str = ""  # who, where that is not plainly the peer at the other end


class LinkError(LeptonError):
    """The network failed: nobody answered in time, or the connection is gone. Try elsewhere or later."""


class Uncertain(LinkError):
    """It is not known whether the call ran: its callee was restarted, or stopped it midway. It was not run twice."""


class Refused(LeptonError):
    """Access control said no; the message names the capability or the grant that is missing."""


class Busy(LeptonError):
    """The peer has as much work as it accepts. Try again after ``retry_after_s`` seconds."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions inside nested groups; one that is no group by itself."""
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    for inner in error.exceptions:
        yield from leaves(inner)


def single(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one exception inside nested groups, so that callers can catch what they know; else the group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
