"""Keys and values of one session, in pages that sessions with the same beginning share.

A page holds 64 positions of all blocks of a stage: float32 (blocks, 2, key/value heads, 64, head width). A shared
page is never written: who appends into one takes a copy first. Memory goes back when the last holder lets go.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from ...mesh.errors import UsageError

Float = npt.NDArray[np.float32]
PAGE_POSITIONS: Final = 64  # the last page is half empty on average: 32 positions a session are a small loss


class Page:
    """64 positions, and the caches that hold them; the first of those is charged for it."""

    __slots__ = ("holders", "numbers")

    def __init__(self, numbers: Float, holder: "PagedCache") -> None:
        self.numbers = numbers  # (blocks, 2, key/value heads, 64, head width)
        self.holders = [holder]


class PagedCache:
    """The cache of one session on one stage; see `generation/engine.py`. One thread uses all caches of an engine."""

    def __init__(self, owner: object, page_shape: tuple[int, int, int, int, int]) -> None:
        self.owner = owner  # the engine: no other can read it
        self.length = 0
        self.pages: list[Page] = []
        self.closed = False
        self._page_shape = page_shape

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
        child = PagedCache(self.owner, self._page_shape)
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
                self.pages.append(Page(np.zeros(self._page_shape, dtype=np.float32), self))
            elif len((page := self.pages[index]).holders) > 1:
                page.holders.remove(self)
                self.pages[index] = Page(page.numbers.copy(), self)

    def _drop_pages(self, keep: int) -> None:
        for page in self.pages[keep:]:
            page.holders.remove(self)
        del self.pages[keep:]

    def _check(self, length: int) -> None:
        if self.closed:
            raise UsageError("This cache is closed.")
        if not 0 <= length <= self.length:
            raise UsageError(f"This cache holds {self.length} positions, not {length}.")
