"""A socket between a node and an instance on the same machine: pumps bytes between it and a machine of calls.

What is said goes out at once where the other side reads; what it does not read waits here, and then nothing more of its
is read: that bounds both queues.
"""

import socket
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

import trio

from ....mesh import limits
from ....mesh.errors import LeptonError, LinkError, PeerError

BODY_BYTES_MAX: Final = limits.BODY_BYTES_MAX + limits.MIB  # a value's arrays, and the message that they belong to
UNSENT_BYTES_MAX: Final = limits.MIB  # that wait for the other side: then it is not read either
_READ_BYTES: Final = 256 * limits.KIB


class Wire:
    """One socket. ``end`` is called once, with what the other side did; ``run`` returns then."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        receive: Callable[[bytes], Iterable[Any]],
        take: Callable[[], list[bytes]],
        handle: Callable[[Any], None],
        finish: Callable[[], None],
        end: Callable[[LeptonError], None],
    ) -> None:
        sock.setblocking(False)  # noqa: FBT003 - the standard library's
        self._socket = sock
        self._receive = receive
        self._take = take
        self._handle = handle
        self._finish = finish
        self._end = end
        self._out: deque[memoryview] = deque()
        self._blocked = trio.Event()
        self._drained = trio.Event()
        self.unsent_bytes = 0
        self.over = False

    async def run(self) -> None:
        """Pump until the other side ends, or breaks the protocol."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                await self._read()
                nursery.cancel_scope.cancel()
        finally:
            self.close(LinkError("The socket was closed."))

    def close(self, error: LeptonError) -> None:
        """End it from here."""
        if not self.over:
            self.over = True
            self._out.clear()
            self._drained.set()
            self._end(error)
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    def flush(self) -> None:
        """Send what the machine has to say."""
        for data in self._take():
            self._out.append(memoryview(data))
            self.unsent_bytes += len(data)
        if not self._blocked.is_set():
            self._send()

    async def room(self) -> None:
        """Wait until the other side has read enough of what was sent."""
        while self.unsent_bytes > UNSENT_BYTES_MAX and not self.over:
            self._drained = trio.Event()
            await self._drained.wait()

    def _send(self) -> None:
        """Hand the system what it takes now; the rest waits for the writer."""
        while self._out and not self.over:
            try:
                sent = self._socket.send(self._out[0])
            except BlockingIOError:
                self._blocked.set()
                return
            except OSError as error:
                self.close(LinkError(f"The socket broke: {error.strerror or error}."))
                return
            self.unsent_bytes -= sent
            rest = self._out.popleft()[sent:]
            if rest:
                self._out.appendleft(rest)
        if self.unsent_bytes <= UNSENT_BYTES_MAX:
            self._drained.set()

    async def _write(self) -> None:
        while True:
            await self._blocked.wait()
            try:
                await trio.lowlevel.wait_writable(self._socket)
            except trio.ClosedResourceError:
                return
            self._blocked = trio.Event()
            self._send()

    async def _read(self) -> None:
        while not self.over:
            try:
                await trio.lowlevel.wait_readable(self._socket)
                data = self._socket.recv(_READ_BYTES)
            except BlockingIOError:
                continue
            except trio.ClosedResourceError:
                return
            except OSError as error:
                self.close(LinkError(f"The socket broke: {error.strerror or error}."))
                return
            try:
                self._heard(data)
            except LeptonError as error:
                self.close(error)
            await self.room()

    def _heard(self, data: bytes) -> None:
        if not data:
            self._finish()
            raise LinkError("The other side closed the socket.")
        for event in self._receive(data):
            self._handle(event)
        self.flush()


def undecodable(what: str, error: Exception) -> PeerError:
    return PeerError(f"A {what} is not valid: {str(error)[:200]}.")
