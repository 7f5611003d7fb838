"""What a diagnosis rests on, as plain data: rules read nothing else. Pure.

Times are Unix seconds of this device's clock, or seconds; sizes are bytes.
"""

from typing import Literal

import msgspec

Outcome = Literal["open", "refused", "timed out", "no route", "failed"]
Kind = Literal["cable", "wifi", "mobile", "vpn", "container", "virtual", "loopback"]


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """The ground of all that follows."""


class Interface(Fact, frozen=True, kw_only=True):
    """One network interface of this machine."""

    name: str
    addresses: tuple[str, ...] = ()  # with the length of their network: 192.168.1.20/24
    kind: Kind = "cable"
    mtu: int = 1500
    up: bool = True
    can_multicast: bool = True


class Ear(Fact, frozen=True, kw_only=True):
    """An interface on which was listened for announcements."""

    interface: str
    echoed: bool = True  # whether the own question came back: nothing on this machine drops multicast there
    trouble: str = ""


class Voice(Fact, frozen=True, kw_only=True):
    """An announcement that was heard. An empty ``peer`` is somebody of another mesh."""

    interface: str
    source: str
    peer: str = ""
    addresses: tuple[str, ...] = ()


class Hearing(Fact, frozen=True, kw_only=True):
    """What came of listening for some seconds."""

    seconds: float = 0.0  # 0: nobody listened
    ears: tuple[Ear, ...] = ()
    voices: tuple[Voice, ...] = ()


class Try(Fact, frozen=True, kw_only=True):
    """One TCP connection that was tried."""

    address: str
    outcome: Outcome
    detail: str = ""


class Peer(Fact, frozen=True, kw_only=True):
    """One other device, as far as it is known here."""

    id: str
    device: str = "?"
    here: bool = False
    connected: bool = False
    at: str = ""  # the other end of the connection
    addresses: tuple[str, ...] = ()  # where it says, or somebody says, that it is
    expires: int | None = None  # of its grant
    revoked: str = ""  # why it was thrown out
    trouble: str = ""  # what came of the last dial
    refusal: str = ""  # why it refused this node, or this node it
    tries: tuple[Try, ...] = ()  # of its addresses, now
    round_trip_ms: float | None = None
    skew_s: float | None = None  # its clock less this one's
    skew_error_s: float = 0.0
    release: str = ""
    answer_trouble: str = ""  # why it did not answer the questions of a diagnosis
    dial_back: tuple[Try, ...] = ()  # what came of its dials to where this device listens
    segments_sent: int | None = None  # over the connection's life
    segments_repeated: int = 0
    down_bytes_s: float | None = None
    up_bytes_s: float | None = None
    measure_trouble: str = ""


class Place(Fact, frozen=True, kw_only=True):
    """An address that the owner named (`--bootstrap`, or `--at` of the doctor), and what came of it."""

    address: str
    peer: str = ""
    trouble: str = ""
    tries: tuple[Try, ...] = ()


class Port(Fact, frozen=True, kw_only=True):
    """A port that this device's configuration names."""

    wanted: str
    what: str  # it is for
    taken_by: str = ""
    trouble: str = ""


class Wall(Fact, frozen=True, kw_only=True):
    """A firewall program on this machine, as far as can be seen without root."""

    name: str
    on: bool | None = None  # None: cannot be known
    look: str = ""  # the command that shows its rules
    allow: str = ""  # the command that lets Lepton through


class Speed(Fact, frozen=True, kw_only=True):
    """What is known of the arithmetic here."""

    kernel: bool = True
    kernel_reason: str = ""
    measured_at_s: int | None = None
    int8_mib_ns: int | None = None  # a step through a MiB of weights
    threads: str = ""  # OMP_NUM_THREADS


class Machine(Fact, frozen=True, kw_only=True):
    """The machine and what a node may use of it."""

    system: str = ""
    cores: int = 1
    load: float | None = None  # over the last minute
    memory_bytes: int = 0
    memory_free_bytes: int | None = None
    disk_free_bytes: int | None = None
    disk: str = ""
    files_most: int | None = None
    newest_file_s: float = 0.0  # of the node's folder: no clock that is right is behind it
    release: str = ""
    in_container: bool = False
    speed: Speed = Speed()


class Member(Fact, frozen=True, kw_only=True):
    """What this device is in which mesh."""

    mesh: str = ""
    me: str = ""
    role: str = ""
    expires: int = 0
    grant_life_s: float = 0.0
    root_key_here: bool = False
    out: str = ""  # why it is no member any more
    trouble: str = ""  # what is wrong with the folder


class Running(Fact, frozen=True, kw_only=True):
    """The node that runs with this folder."""

    device: str = "?"
    listening: tuple[str, ...] = ()
    interfaces: tuple[str, ...] = ()  # addresses of those on which it announces itself; empty: all
    web: str = ""


class Facts(Fact, frozen=True, kw_only=True):
    """All that was collected."""

    taken_at_s: float
    home: str = ""
    member: Member = Member()
    running: Running | None = None
    machine: Machine = Machine()
    interfaces: tuple[Interface, ...] = ()
    chosen: tuple[str, ...] = ()  # addresses of the interfaces that the configuration names
    hearing: Hearing = Hearing()
    walls: tuple[Wall, ...] = ()
    ports: tuple[Port, ...] = ()
    places: tuple[Place, ...] = ()
    peers: tuple[Peer, ...] = ()
