"""Which private round of a task this node has begun last: on disk before the first message of that round.

A node that stopped in the middle of a private round may have signed who is in its sum. Were it to take part in the
round once more it could sign another set, and the difference of the two sums would be somebody's model. So it never
does: it goes on with the round after. Not with the checkpoints, which an owner may move away to start anew. A folder
brought back from a backup is the one thing that this cannot see.
"""

from pathlib import Path

from ...mesh.errors import LeptonError
from ..files import write_whole


class Begun:
    """The last round begun of one version of one task; -1 before there is any."""

    def __init__(self, path: Path) -> None:
        """Raises LeptonError for a file that cannot be read: to guess would be to risk a second signature."""
        self._path = path
        self.last = -1
        try:
            if path.exists():
                self.last = _number(path.read_bytes())
        except (OSError, ValueError) as error:
            raise LeptonError(
                f"{path}: it should say which private round this node has begun, and cannot be read ({error});"
                " start the task again, as a new version"
            ) from error

    def mark(self, round_: int) -> None:
        """Note for good that this round begins. Raises LeptonError if it had, or if the disk will not take it."""
        if round_ <= self.last:
            raise LeptonError(f"private round {round_} had begun before, as {self._path} says: it cannot begin again")
        write_whole(self._path, str(round_).encode())
        self.last = round_


def _number(data: bytes) -> int:
    if not data.isdigit() or len(data) > len(str(2**63)):
        raise ValueError(f"{data[:32]!r} is no round")
    return int(data)
