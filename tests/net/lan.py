"""A network of real devices on this machine: a namespace and a TAP interface each, and one thread that is their switch.

A namespace lives as long as a file descriptor or a process holds it, so nothing is left behind however the test ends:
there are no names to delete. TAP interfaces have no checksum offload and no segments larger than a frame: what a device
sends is what the switch sees. What a frame meets on its way is decided in ``switch.py``.
"""

import ctypes
import fcntl
import heapq
import os
import select
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from .nat import Nat
from .switch import Delivery, Line, Switch

T = TypeVar("T")

INTERFACE: Final = "eth0"
_CLONE_NEWNET: Final = 0x40000000  # linux/sched.h
_TUNSETIFF: Final = 0x400454CA  # linux/if_tun.h
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_FRAME_BYTES_MAX: Final = 65536


class NoNetwork(Exception):
    """A machine that gives no namespaces or TAP interfaces; the message says why."""


def require_network() -> None:
    """Raise NoNetwork unless a device can be made here."""
    with Lan() as lan:
        lan.add("probe")


@dataclass(frozen=True, slots=True)
class Device:
    """A place to run programs with a network interface of their own."""

    name: str
    number: int  # its addresses end with it: 10.0.0.N and fe80::N
    namespace: int  # file descriptor
    tap: int  # file descriptor: the switch's end of the interface

    @property
    def ipv4(self) -> str:
        return f"10.0.0.{self.number}"

    @property
    def link_local(self) -> str:
        return f"fe80::{self.number:x}"

    def command(self, *words: str) -> list[str]:
        """The command line that runs these words here, in a process that ends with this one."""
        inside = f"--net=/proc/{os.getpid()}/fd/{self.namespace}"
        return ["nsenter", inside, "setpriv", "--pdeathsig", "KILL", *words]

    def run(self, *words: str) -> str:
        """Run a short program here to its end; returns what it printed."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True, check=False, timeout=20)
        if done.returncode:
            raise NoNetwork(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def move_behind(self, gateway: str) -> None:
        """Take an address of the network that this router is the gateway of, and leave through it."""
        self.ip(f"address flush dev {INTERFACE}")
        self.ip(f"address add {gateway.rpartition('.')[0]}.{self.number}/24 dev {INTERFACE}")
        self.ip(f"route add default via {gateway}")

    def ip(self, words: str) -> None:
        """Change the interface's settings as `ip` says it, as in ``address add 10.0.0.9/24 dev eth0``."""
        self.run("ip", *words.split())


class Lan:
    """Devices and the switch between them. Everything of it ends with the ``with`` block."""

    def __init__(self, seed: int = 0, line: Line | None = None) -> None:
        self.devices: dict[str, Device] = {}
        self._switch = Switch(seed, line or Line())
        self._lock = threading.Lock()
        self._waiting: list[Delivery] = []
        self._poll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._poll.register(self._wake, select.EPOLLIN)
        self._taps: dict[int, str] = {}
        self._nats: dict[str, Nat] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._forward, name="switch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, t: TracebackType | None) -> None:
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._poll.close()
        for fd in (self._wake, *(fd for one in self.devices.values() for fd in (one.tap, one.namespace))):
            os.close(fd)

    def add(self, name: str, *, ipv4: bool = True, ipv6: bool = True) -> Device:
        """Make a device that has an address of each kind wanted, IPv6 of the link alone. Raises NoNetwork."""
        namespace, tap = _in_thread(_new_namespace)
        device = Device(name, len(self.devices) + 1, namespace, tap)
        self.devices[name] = device
        device.ip("link set lo up")
        device.ip(f"link set {INTERFACE} address 02:00:00:00:00:{device.number:02x} addrgenmode none")
        device.ip(f"link set {INTERFACE} up")
        if ipv4:
            device.ip(f"address add {device.ipv4}/24 dev {INTERFACE}")
        if ipv6:
            device.ip(f"address add {device.link_local}/64 dev {INTERFACE} nodad")
        with self._lock:
            self._taps[tap] = name
            self._switch.ports.add(name)
        self._poll.register(tap, select.EPOLLIN)
        return device

    def add_nat(self, nat: Nat) -> None:
        """Let a router take part; `segments` says what lies on which side of it."""
        with self._lock:
            for port in (nat.inside_port, nat.outside_port):
                self._nats[port] = nat
                self._switch.ports.add(port)

    def segments(self, *groups: Collection[str]) -> None:
        """Lay the cables: frames pass within these groups only, whatever splits and heals."""
        with self._lock:
            self._switch.segments = tuple(frozenset(group) for group in groups)

    # -- the weather; each may be called at any time ------------------------------------------------------------------

    def change(self, source: str, to: str, **conditions: Any) -> None:
        """Change the line between two devices, this direction alone: see Line."""
        with self._lock:
            self._switch.change(source, to, **conditions)

    def change_all(self, **conditions: Any) -> None:
        """Change every line."""
        with self._lock:
            self._switch.change_all(**conditions)

    def split(self, *groups: Collection[str]) -> None:
        """Let frames pass within these groups only."""
        with self._lock:
            self._switch.split(*groups)

    def drop_mdns(self) -> None:
        """Let no announcement pass from now on; all else does."""
        with self._lock:
            self._switch.drops_mdns = True

    def heal(self) -> None:
        """Take back every split and cut."""
        with self._lock:
            self._switch.heal()

    @property
    def counted(self) -> dict[str, int]:
        """How many frames were carried, lost and cut so far."""
        with self._lock:
            return dict(self._switch.counted)

    def carried(self, source: str, to: str) -> int:
        """Return how many frames went from one device to another so far."""
        with self._lock:
            return self._switch.carried(source, to)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _forward(self) -> None:
        while not self._closing:
            wait_s = max(0.0, self._waiting[0].at - time.monotonic()) if self._waiting else None
            for fd, _ in self._poll.poll(wait_s):
                if fd in self._taps:
                    self._take(fd)
            while self._waiting and self._waiting[0].at <= time.monotonic():
                self._deliver(heapq.heappop(self._waiting))

    def _take(self, tap: int) -> None:
        while True:
            try:
                frame = os.read(tap, _FRAME_BYTES_MAX)
            except OSError:  # nothing more, or the interface is down
                return
            self._send(self._taps[tap], frame)

    def _send(self, port: str, frame: bytes) -> None:
        with self._lock:
            out = self._switch.forward(port, frame, time.monotonic())
        for one in out:
            heapq.heappush(self._waiting, one)

    def _deliver(self, one: Delivery) -> None:
        if (nat := self._nats.get(one.port)) is not None:
            for port, frame in nat.receive(one.port, one.frame):
                self._send(port, frame)
            return
        with suppress(OSError):  # the interface is down or full: a frame like any other that is lost
            os.write(self.devices[one.port].tap, one.frame)


def _new_namespace() -> tuple[int, int]:
    """Move this thread to a namespace of its own; returns descriptors of it and of its interface's other end."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    except (OSError, AttributeError) as error:
        raise NoNetwork(f"no network namespace: {error}; it takes Linux and root, or `unshare -Ur`") from error
    try:
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", INTERFACE.encode(), _IFF_TAP | _IFF_NO_PI))
    except OSError as error:
        raise NoNetwork(f"no TAP interface: {error}") from error
    return namespace, tap


def _in_thread(work: Callable[[], T]) -> T:
    """Run something that changes the thread it runs in."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()
