"""Large buffers on a stream of their own: sent as views, received straight into their place, with a bound on stalls."""

from collections.abc import Sequence
from typing import BinaryIO, Final, NamedTuple, Protocol

import numpy as np
import trio

from .. import limits
from ..errors import LinkError, PeerError, UsageError
from ..tensors import DTYPES, Array, TensorSpec, buffer_of
from ..transport import Stream

_PART_BYTES: Final = limits.MIB  # of a file, moved by a worker thread at once


class Sink(Protocol):
    """Takes bytes in order, as an open file does. It is called in a worker thread, because disks wait."""

    def write(self, data: bytes, /) -> object: ...


class FilePart(NamedTuple):
    """The next ``size_bytes`` of an open file, as something to send."""

    file: BinaryIO
    size_bytes: int


Source = bytes | bytearray | memoryview | Array | FilePart
Destination = bytearray | memoryview | Array | Sink


def size_of(source: Source) -> int:
    """How many bytes a source has."""
    match source:
        case FilePart():
            return source.size_bytes
        case np.ndarray() | memoryview():
            return source.nbytes
        case _:
            return len(source)


async def send_buffers(stream: Stream, buffers: Sequence[memoryview]) -> None:
    """Send views of bytes, without a copy; they may change when this returns. Raises LinkError."""
    batch: list[memoryview] = []
    room = _PART_BYTES  # in parts, so that a stall is told from a slow link
    for view in buffers:
        for start in range(0, view.nbytes, _PART_BYTES):
            part = view[start : start + _PART_BYTES]
            if part.nbytes > room:
                await _send(stream, batch)
                batch, room = [], _PART_BYTES
            batch.append(part)
            room -= part.nbytes
    if batch:
        await _send(stream, batch)


async def send_source(stream: Stream, source: Source) -> None:
    """Send all of a source. Raises LinkError, UsageError when a file is shorter than was said."""
    if not isinstance(source, FilePart):
        view = buffer_of(source) if isinstance(source, np.ndarray) else memoryview(source).cast("B")
        await send_buffers(stream, [view])
        return
    left = source.size_bytes
    while left:
        data = await trio.to_thread.run_sync(source.file.read, min(left, _PART_BYTES))
        if not data:
            msg = f"A file ended {left} B before the {source.size_bytes} B that were to be sent of it."
            raise UsageError(msg)
        left -= len(data)
        await _send(stream, [memoryview(data)])


async def _send(stream: Stream, views: Sequence[memoryview]) -> None:
    try:
        with trio.fail_after(limits.TRANSFER_STALL_S):
            await stream.send_parts(views)
    except trio.TooSlowError as error:
        msg = f"A transfer to {stream.peer_id} made no progress for {limits.TRANSFER_STALL_S:g} s."
        raise LinkError(msg) from error
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        msg = f"A transfer to {stream.peer_id} broke: {error}."
        raise LinkError(msg) from error


async def receive_exactly(stream: Stream, into: memoryview) -> None:
    """Fill a buffer. Raises LinkError when it breaks or is too slow, PeerError when it ends early.

    Each ``limits.PART_BYTES`` have ``limits.TRANSFER_STALL_S``: a byte now and then does not hold the memory.
    """
    for start in range(0, into.nbytes, limits.PART_BYTES):
        await _receive_part(stream, into[start : start + limits.PART_BYTES], into.nbytes - start)


async def _receive_part(stream: Stream, into: memoryview, left: int) -> None:
    at = 0
    deadline = trio.current_time() + limits.TRANSFER_STALL_S
    while at < into.nbytes:
        try:
            with trio.fail_at(deadline):
                size = await stream.receive_into(into[at:])
        except trio.TooSlowError as error:
            msg = f"A transfer from {stream.peer_id} brought {at} B in {limits.TRANSFER_STALL_S:g} s: too slow."
            raise LinkError(msg) from error
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            msg = f"A transfer from {stream.peer_id} broke: {error}."
            raise LinkError(msg) from error
        if not size:
            msg = f"A transfer ended {left - at} B before its announced end."
            raise PeerError(msg)
        at += size


async def receive_arrays(stream: Stream, specs: Sequence[TensorSpec]) -> list[Array]:
    """Receive tensors into memory of their own; whoever calls has checked their sizes. Raises as above."""
    arrays: list[Array] = []
    for spec in specs:
        array: Array = np.empty(spec.shape, dtype=DTYPES[spec.dtype])
        if array.nbytes:
            await receive_exactly(stream, array.reshape(-1).view(np.uint8).data)
        arrays.append(array)
    return arrays


class Bulk:
    """A transfer that has been announced and not yet received. Take it once, before the call ends."""

    def __init__(self, stream: Stream, size_bytes: int) -> None:
        self._stream = stream
        self.size_bytes = size_bytes
        self.taken = False

    async def to(self, destination: Destination) -> int:
        """Receive it into a buffer of exactly its size, or write it to a sink; returns the size.

        Raises UsageError for a buffer of another size, LinkError when it breaks, PeerError when it is cut short.
        """
        if self.taken:
            msg = "This transfer was taken already."
            raise UsageError(msg)
        self.taken = True
        if isinstance(destination, bytearray | memoryview | np.ndarray):
            await receive_exactly(self._stream, _exact(destination, self.size_bytes))
        else:
            await self._pour(destination)
        return self.size_bytes

    async def _pour(self, sink: Sink) -> None:
        left = self.size_bytes
        while left:
            part = bytearray(min(left, _PART_BYTES))
            await receive_exactly(self._stream, memoryview(part))
            await trio.to_thread.run_sync(sink.write, part)  # type: ignore[arg-type]  # files take any buffer
            left -= len(part)


def _exact(destination: bytearray | memoryview | Array, size_bytes: int) -> memoryview:
    if isinstance(destination, np.ndarray) and not destination.flags.c_contiguous:
        msg = "A transfer can only go straight into a contiguous array."
        raise UsageError(msg)
    flat = destination.reshape(-1).view(np.uint8).data if isinstance(destination, np.ndarray) else destination
    view = memoryview(flat).cast("B")
    if view.nbytes != size_bytes or view.readonly:
        msg = f"{size_bytes} B come, which do not fit the {view.nbytes} B that were prepared (or may not be written)."
        raise UsageError(msg)
    return view
