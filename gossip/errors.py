"""What can go wrong between equals. The docstring of an error is the sentence that its user reads."""


class GossipError(Exception):
    """Something in an exchange of numbers was not as it has to be."""


class BadContribution(GossipError):
    """What a peer contributed cannot be averaged: it was refused, named and counted, and the round goes on."""

    def __init__(self, problem: str, peer: str | None = None) -> None:
        super().__init__(problem if peer is None else f"{peer}: {problem}")
        self.problem = problem
        self.peer = peer

    def of(self, peer: str) -> "BadContribution":
        """Return the same refusal with the name of the one whose contribution it was."""
        return BadContribution(self.problem, peer)


class UnknownCodec(GossipError):
    """No codec has this name."""


class BadSetup(GossipError):
    """The program that uses this room asked for an exchange that cannot be."""
