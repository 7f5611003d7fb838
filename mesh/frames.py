"""Frames: bytes in, frames out. A frame is two lengths, a msgpack header, and a raw body.

    u32 header length | u32 body length | header | body          (big-endian)

Lengths are checked before anything is allocated. A stream that ends inside a frame is an error: stock libp2p reports
a reset as a clean end, so only a complete frame counts as received.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from . import limits
from .errors import PeerError

PREFIX = struct.Struct(">II")


@dataclass(frozen=True, slots=True)
class Frame:
    """One received frame. ``body`` is writable memory that belongs to the receiver alone."""

    header: bytes
    body: memoryview


def encode(
    header: bytes, buffers: Sequence[bytes | bytearray | memoryview] = ()
) -> list[bytes | bytearray | memoryview]:
    """Return the pieces of one frame in order, so that large buffers can be sent without joining them."""
    views = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
    size = sum(view.nbytes for view in views)
    if size > limits.BODY_BYTES_MAX:
        msg = f"A frame body of {size} B is over the limit of {limits.BODY_BYTES_MAX} B; send it in parts."
        raise ValueError(msg)
    return [PREFIX.pack(len(header), size) + header, *views]


class FrameDecoder:
    """Takes bytes in pieces of any size and returns the frames that they complete.

    Memory held never exceeds one header and one body of the given limits, plus the piece being read.
    """

    def __init__(
        self, *, body_bytes_max: int = limits.BODY_BYTES_MAX, header_bytes_max: int = limits.HEADER_BYTES_MAX
    ) -> None:
        self._body_bytes_max = body_bytes_max
        self._header_bytes_max = header_bytes_max
        self._prefix = bytearray()
        self._header: bytearray | None = None
        self._body = bytearray()
        self._filled = 0

    @property
    def mid_frame(self) -> bool:
        """Whether a frame has begun and is not complete."""
        return bool(self._prefix)

    @property
    def bytes_wanted(self) -> int:
        """How many bytes complete the current part: read no more than this to stay inside one frame."""
        if self._header is None:
            return PREFIX.size - len(self._prefix)
        return len(self._header) + len(self._body) - self._filled

    def receive(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """Add bytes. Raises PeerError when a frame announces more than the limits allow."""
        frames: list[Frame] = []
        view = memoryview(data)
        if not self._prefix:
            view = self._take_whole(view, frames)
        while view.nbytes:
            view = self._take(view)
            if self._header is not None and self.bytes_wanted == 0:
                frames.append(Frame(bytes(self._header), memoryview(self._body)))
                self._prefix, self._header, self._body, self._filled = bytearray(), None, bytearray(), 0
        return frames

    def end(self) -> None:
        """Note the end of the stream. Raises PeerError when it comes inside a frame."""
        if self.mid_frame:
            msg = f"The stream ended inside a frame, {self.bytes_wanted} B short; nothing of that frame was used."
            raise PeerError(msg)

    def _take_whole(self, view: memoryview, frames: list[Frame]) -> memoryview:
        """Cut off the frames that lie here whole, as those of calls do: the same as below in a fifth of the steps."""
        size, start = view.nbytes, 0
        while size - start >= PREFIX.size:
            header_bytes, body_bytes = PREFIX.unpack_from(view, start)
            body = start + PREFIX.size + header_bytes
            if header_bytes > self._header_bytes_max or body_bytes > self._body_bytes_max or body + body_bytes > size:
                break
            frames.append(
                Frame(bytes(view[start + PREFIX.size : body]), memoryview(bytearray(view[body : body + body_bytes])))
            )
            start = body + body_bytes
        return view[start:]

    def _take(self, view: memoryview) -> memoryview:
        if self._header is None:
            n = min(self.bytes_wanted, view.nbytes)
            self._prefix += view[:n]
            if len(self._prefix) == PREFIX.size:
                self._begin()
            return view[n:]
        n = min(self.bytes_wanted, view.nbytes)
        self._fill(view[:n], self._header)
        return view[n:]

    def _begin(self) -> None:
        header_bytes, body_bytes = PREFIX.unpack(self._prefix)
        for part, size, most in (
            ("header", header_bytes, self._header_bytes_max),
            ("body", body_bytes, self._body_bytes_max),
        ):
            if size > most:
                msg = f"A frame announces a {part} of {size} B; at most {most} B are accepted here."
                raise PeerError(msg)
        self._header, self._body, self._filled = bytearray(header_bytes), bytearray(body_bytes), 0

    def _fill(self, view: memoryview, header: bytearray) -> None:
        in_header = min(max(len(header) - self._filled, 0), view.nbytes)
        if in_header:
            header[self._filled : self._filled + in_header] = view[:in_header]
        rest = view[in_header:]
        if rest.nbytes:
            start = self._filled + in_header - len(header)
            self._body[start : start + rest.nbytes] = rest
        self._filled += view.nbytes
