"""What can go wrong with services, beside what can with any call."""

from ...mesh.errors import LeptonError, LinkError


class ServiceError(LeptonError):
    """A service's own code raised an error; the message has its type and text. Asking again would run it again."""

    told = True


class NotHere(LinkError):
    """A node has no instance that takes the call: it did not run, and another replica may take it."""


class InstanceLost(LinkError):
    """An instance ended while it worked on a call: whether the work was done is not known."""


class TooLate(LinkError):
    """No answer came within the time that there was; whether the call ran is not known."""


class DoesNotStart(LeptonError):
    """An instance could not be started; the message has the reason and the last lines of its log."""
