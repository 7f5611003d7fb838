"""Keys and values of one session, in pages that sessions with the same beginning share.

A page holds 64 positions of all blocks of a stage, its keys with the position last: so the scores of a page's
positions are worked out side by side. A shared page is never written: who appends into one takes a copy first. Memory
goes back when the last holder lets go.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from ...mesh.errors import UsageError

Float = npt.NDArray[np.float32]
PAGE_POSITIONS: Final = 64  # the last page is half empty on average: 32 positions a session are a small loss


class Page:
    """64 positions, and the caches that hold them; the first of those is charged for it."""

    __slots__ = ("holders", "keys", "numbers", "values")

    def __init__(self, numbers: Float, holder: "PagedCache") -> None:
        blocks, _, heads, width, positions = numbers.shape
        self.numbers = numbers  # (blocks, 2, key/value heads, head width, 64): keys, then values as below
        self.keys = numbers[:, 0]  # (blocks, key/value heads, head width, 64)
        self.values = numbers[:, 1].reshape(blocks, heads, positions, width)  # a view: of each block it is contiguous
        self.holders = [holder]


class PagedCache:
    """The cache of one session on one stage; see `generation/engine.py`. One thread uses all caches of an engine."""

    def __init__(self, owner: object, page_shape: tuple[int, int, int, int, int]) -> None:
        self.owner = owner  # the engine: no other can read it
        self.length = 0
        self.pages: list[Page] = []
        self.closed = False
        self.page_shape = page_shape

    @property
    def size_bytes(self) -> int:
        """What it takes now. A shared page is charged to its maker, and to the next holder when that one closes."""
        return sum(page.numbers.nbytes for page in self.pages if page.holders[0] is self)

    def truncate(self, length: int) -> None:
        """Forget the positions from ``length`` on. Raises UsageError where it holds fewer."""
        self._check(length)
        self.length = length
        self._drop_pages(-(-length // PAGE_POSITIONS))

    def fork(self, length: int) -> "PagedCache":
        """Make a cache that begins with the first ``length`` positions of this one; whole pages are shared."""
        self._check(length)
        child = PagedCache(self.owner, self.page_shape)
        whole, rest = divmod(length, PAGE_POSITIONS)
        for page in self.pages[:whole]:
            page.holders.append(child)
            child.pages.append(page)
        if rest:
            child.pages.append(Page(self.pages[whole].numbers.copy(), child))
        child.length = length
        return child

    def close(self) -> None:
        """Give its memory back; twice is not an error."""
        self.closed = True
        self.length = 0
        self._drop_pages(0)

    def reserve(self, count: int) -> None:
        """Make room for ``count`` more positions, in pages that nobody shares. The length stays."""
        for index in range(self.length // PAGE_POSITIONS, -(-(self.length + count) // PAGE_POSITIONS)):
            if index == len(self.pages):
                self.pages.append(Page(np.zeros(self.page_shape, dtype=np.float32), self))
            elif len((page := self.pages[index]).holders) > 1:
                page.holders.remove(self)
                self.pages[index] = Page(page.numbers.copy(), self)

    def store(self, block: int, keys: Float, values: Float) -> None:
        """Write (T, key/value heads, head width) each behind the length, where room is reserved."""
        first, end = self.length, self.length + len(keys)
        for index in range(first // PAGE_POSITIONS, -(-end // PAGE_POSITIONS)):
            start = index * PAGE_POSITIONS
            low, high = max(first, start), min(end, start + PAGE_POSITIONS)
            page = self.pages[index]
            page.keys[block, ..., low - start : high - start] = keys[low - first : high - first].transpose(1, 2, 0)
            page.values[block, :, low - start : high - start] = values[low - first : high - first].transpose(1, 0, 2)

    def _drop_pages(self, keep: int) -> None:
        for page in self.pages[keep:]:
            page.holders.remove(self)
        del self.pages[keep:]

    def _check(self, length: int) -> None:
        if self.closed:
            raise UsageError("This cache is closed.")
        if not 0 <= length <= self.length:
            raise UsageError(f"This cache holds {self.length} positions, not {length}.")
