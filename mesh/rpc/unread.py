"""Items of one stream that are on their way: sent, and not yet confirmed. A machine without I/O, alike on both sides.

Invariants: a sender begins no item while ``limits.STREAM_BYTES_MAX`` bytes are unconfirmed, so no more than that and
one item wait at the receiver; a receiver confirms before half of what may wait was consumed without a word, in items or
in bytes, so neither waits for the other.
"""

from collections import deque

from .. import limits


class Unread:
    """Sizes of the frames' bodies, in the order in which they were sent."""

    __slots__ = ("_consumed", "_consumed_bytes", "_sizes", "size_bytes")

    def __init__(self) -> None:
        self._sizes = deque[int]()
        self._consumed = 0
        self._consumed_bytes = 0
        self.size_bytes = 0

    @property
    def is_full(self) -> bool:
        return self.size_bytes >= limits.STREAM_BYTES_MAX

    def add(self, size_bytes: int) -> None:
        """An item was sent, or came."""
        self._sizes.append(size_bytes)
        self.size_bytes += size_bytes

    def confirmed(self, items: int) -> None:
        """The first items are unread no more; a credit for more than there are is no confirmation."""
        for _ in range(min(items, len(self._sizes))):
            self.size_bytes -= self._sizes.popleft()

    def consume(self) -> int:
        """The next item was taken. Returns how many are to be confirmed now, most often 0."""
        if self._consumed < len(self._sizes):
            self._consumed_bytes += self._sizes[self._consumed]
        self._consumed += 1
        if 2 * self._consumed < limits.STREAM_ITEMS_MAX and 2 * self._consumed_bytes < limits.STREAM_BYTES_MAX:
            return 0
        items, self._consumed, self._consumed_bytes = self._consumed, 0, 0
        self.confirmed(items)
        return items
