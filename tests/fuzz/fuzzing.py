"""What every target has in common: fuzzed bytes cut into choices, valid inputs to start from, and how it is run.

A target is a file ``fuzz_NAME.py`` with ``SEEDS``, some valid inputs, and ``one(raw) -> bool``, which does everything
with one input and says whether it was taken; what the bytes must never cause, it lets out. ``make fuzz`` runs each with
atheris, guided by coverage and from the seeds. The suite runs each over the seeds and over damaged copies of them,
without atheris (``test_targets.py``).
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

T = TypeVar("T")
INPUT_BYTES_MAX = 8192  # beyond it an input only repeats itself
# libFuzzer ends a target that takes more; nothing that a stranger sends may.
RSS_MB_MAX = 768


class Data:
    """Bytes as a source of choices. When they are used up, it goes on with zeros and empty bytes."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    def left(self) -> int:
        return len(self._raw) - self._at

    def take(self, size_bytes: int) -> bytes:
        self._at, begin = min(self._at + size_bytes, len(self._raw)), self._at
        return self._raw[begin : self._at]

    def integer(self, low: int, high: int) -> int:
        """A number from ``low`` to ``high``, both included."""
        size = ((high - low).bit_length() + 7) // 8
        return low + int.from_bytes(self.take(size), "big") % (high - low + 1)

    def flag(self) -> bool:
        return bool(self.integer(0, 1))

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.integer(0, len(choices) - 1)]

    def rest(self) -> bytes:
        return self.take(self.left())

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """``data``, cut in places of the fuzzer's choice."""
        while data:
            size = self.integer(1, 255) if self.left() else len(data)
            yield data[:size]
            data = data[size:]


def watched(*modules: str) -> AbstractContextManager[object]:
    """What is imported in this block guides the fuzzer; outside of ``make fuzz`` it is imported as ever."""
    if not Path(sys.argv[0]).name.startswith("fuzz_"):
        return nullcontext()
    import atheris

    block: AbstractContextManager[object] = atheris.instrument_imports(include=list(modules))
    return block


def main(one: Callable[[bytes], bool], seeds: Sequence[bytes]) -> None:
    """Run a target until the time that libFuzzer's options name is over."""
    import atheris

    def target(raw: bytes) -> None:
        one(raw)

    with TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds):
            Path(folder, str(number)).write_bytes(seed)
        limits = [f"-rss_limit_mb={RSS_MB_MAX}", f"-max_len={INPUT_BYTES_MAX}"]
        atheris.Setup([*sys.argv, *limits, folder], target)
        atheris.Fuzz()
