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
        self._header = bytearray()
        self._header_bytes: int | None = None  # None until the prefix is complete
        self._body: bytearray | None = None  # made at its first byte, so that its header can be judged before
        self._filled = 0
        self.body_bytes = 0  # what the frame that has begun announces

    @property
    def mid_frame(self) -> bool:
        """Whether a frame has begun and is not complete."""
        return bool(self._prefix)

    @property
    def begun(self) -> object:
        """Stands for the frame that has begun and is not complete, None without one: another frame is another object.

        Whoever sees the same for too long is kept waiting on purpose.
        """
        return self._prefix or None

    @property
    def bytes_wanted(self) -> int:
        """How many bytes complete the current part (prefix, header or body). Who reads no more stays inside a frame."""
        if self._header_bytes is None:
            return PREFIX.size - len(self._prefix)
        return self._header_bytes - len(self._header) or self.body_bytes - self._filled

    @property
    def header(self) -> bytes | None:
        """The header of the frame that has begun, once it is complete, so that it can be judged before the body."""
        return bytes(self._header) if len(self._header) == self._header_bytes else None

    def receive(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """Add bytes. Raises PeerError when a frame announces more than the limits allow."""
        frames: list[Frame] = []
        view = memoryview(data)
        if not self._prefix:
            view = self._take_whole(view, frames)
        while view.nbytes:
            n = min(self.bytes_wanted, view.nbytes)
            self._take(view[:n])
            view = view[n:]
            if self._header_bytes is not None and self.bytes_wanted == 0:
                frames.append(Frame(bytes(self._header), memoryview(self._body or bytearray())))
                self._prefix, self._header, self._body = bytearray(), bytearray(), None
                self._header_bytes, self.body_bytes, self._filled = None, 0, 0
        return frames

    def end(self) -> None:
        """Note the end of the stream. Raises PeerError when it comes inside a frame."""
        if self.mid_frame:
            msg = f"The stream ended inside a frame, at least {self.bytes_wanted} B short; nothing of it was used."
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

    def _take(self, part: memoryview) -> None:
        """Add bytes that are all of the current part."""
        if self._header_bytes is None:
            self._prefix += part
            if len(self._prefix) == PREFIX.size:
                self._begin()
        elif len(self._header) < self._header_bytes:
            self._header += part
        else:
            if self._body is None:
                self._body = bytearray(self.body_bytes)
            self._body[self._filled : self._filled + part.nbytes] = part
            self._filled += part.nbytes

    def _begin(self) -> None:
        header_bytes, body_bytes = PREFIX.unpack(self._prefix)
        for part, size, most in (
            ("header", header_bytes, self._header_bytes_max),
            ("body", body_bytes, self._body_bytes_max),
        ):
            if size > most:
                msg = f"A frame announces a {part} of {size} B; at most {most} B are accepted here."
                raise PeerError(msg)
        self._header_bytes, self.body_bytes = header_bytes, body_bytes
