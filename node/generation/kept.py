"""What a stage sent on, kept so that a replica of the next stage can be given all of it again. Pure."""

from bisect import bisect_right

import numpy as np

from .messages import Data


class Kept:
    """Outputs of one session for the positions from ``first`` up to ``end``, without a gap."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.end = first
        self.size_bytes = 0
        self._pieces: list[Data] = []

    def add(self, piece: Data) -> None:
        """Keep what comes next."""
        assert piece.position == self.end, "outputs are kept in order"
        self._pieces.append(piece)
        self.end = piece.end
        self.size_bytes += _size(piece)

    def truncate(self, end: int) -> None:
        """Forget the positions from ``end`` on."""
        while self._pieces and self._pieces[-1].end > end:
            last = self._pieces.pop()
            self.size_bytes -= _size(last)
            if last.position < end:
                part = last.part(last.position, end)
                self._pieces.append(part)
                self.size_bytes += _size(part)
        self.end = min(self.end, end)
        self.first = min(self.first, end)

    def forget_before(self, position: int) -> int:
        """Forget pieces that end at or before ``position``; returns how many bytes that gave."""
        count = sum(piece.end <= position for piece in self._pieces)
        freed = sum(map(_size, self._pieces[:count]))
        del self._pieces[:count]
        self.size_bytes -= freed
        self.first = self._pieces[0].position if self._pieces else self.end
        return freed

    def read(self, begin: int, count_max: int, epoch: int) -> Data:
        """Return at most so many positions from ``begin`` on, as one piece for this epoch."""
        index = bisect_right(self._pieces, begin, key=lambda piece: piece.position) - 1
        parts, end = list[Data](), min(begin + count_max, self.end)
        for piece in self._pieces[index:]:
            if piece.position >= end:
                break
            parts.append(piece.part(begin, end))
        if len(parts) == 1:
            return parts[0]._replace(epoch=epoch)
        ids = tuple(id_ for part in parts for id_ in part.ids)
        x = np.concatenate([part.x for part in parts if part.x is not None])
        return Data(parts[0].session, epoch, begin, ids, x)


def _size(piece: Data) -> int:
    return 0 if piece.x is None else piece.x.nbytes
