"""Facts about this machine, read without root and without changing anything. Linux tells most of them."""

import ctypes
import ipaddress
import os
import platform
import shutil
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import ifaddr

from ..config import Config
from ..release import release
from ..speed import cache_file, kept_speed
from .facts import Interface, Kind, Machine, Port, Speed, Wall

_NET: Final = Path("/sys/class/net")
_CONTAINERS: Final = ("docker", "br-", "veth", "podman", "cni", "lxc", "lxdbr")
_VIRTUAL: Final = ("virbr", "vmnet", "vboxnet", "tap")
_VPNS: Final = ("tun", "wg", "tailscale", "zt", "nebula", "ppp", "utun", "ipsec")
_MOBILE: Final = ("wwan", "wwp", "rmnet")
_MARKS: Final = ("/.dockerenv", "/run/.containerenv")  # that Docker and Podman leave inside
_IFF_UP, _IFF_LOOPBACK, _IFF_MULTICAST = 0x1, 0x8, 0x1000  # linux/if.h
_WIDTHS: Final = (16, 8, 4)  # of the kernel's registers: see kernels/native.py, which loads torch
_SOCKETS_MAX: Final = 4096  # descriptors of this user's programs that are looked through for a port


# -- interfaces --------------------------------------------------------------------------------------------------------


def interfaces() -> tuple[Interface, ...]:
    """Return the interfaces that have addresses."""
    found = []
    for adapter in ifaddr.get_adapters():
        addresses = tuple(f"{ip.ip if isinstance(ip.ip, str) else ip.ip[0]}/{ip.network_prefix}" for ip in adapter.ips)
        flags = _flags(adapter.name, addresses)
        found.append(
            Interface(
                name=adapter.name,
                addresses=addresses,
                kind=_kind(adapter.name, loopback=bool(flags & _IFF_LOOPBACK)),
                mtu=_number(_NET / adapter.name / "mtu", 1500),
                up=bool(flags & _IFF_UP),
                can_multicast=bool(flags & _IFF_MULTICAST),
            )
        )
    return tuple(found)


def _flags(name: str, addresses: tuple[str, ...]) -> int:
    """Read an interface's flags; where the system does not tell them, one that has an address is up."""
    try:
        return int((_NET / name / "flags").read_text("ascii"), 16)
    except (OSError, ValueError):
        loopback = all(ipaddress.ip_interface(address).ip.is_loopback for address in addresses)
        return _IFF_UP | _IFF_MULTICAST | (_IFF_LOOPBACK if loopback else 0)


def _kind(name: str, *, loopback: bool) -> Kind:
    if loopback:
        return "loopback"
    if (_NET / name / "wireless").exists() or name.startswith("wl"):
        return "wifi"
    kinds: tuple[tuple[Kind, tuple[str, ...]], ...] = (
        ("container", _CONTAINERS), ("virtual", _VIRTUAL), ("vpn", _VPNS), ("mobile", _MOBILE),
    )  # fmt: skip
    return next((kind for kind, begins in kinds if name.startswith(begins)), "cable")


def _number(path: Path, otherwise: int) -> int:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return otherwise


# -- the machine -------------------------------------------------------------------------------------------------------


def machine(home: Path) -> Machine:
    """Return what this machine has, and the newest date in the node's folder."""
    disk = next(path for path in (home, *home.parents) if path.exists())
    load = None
    with suppress(OSError, AttributeError):
        load = os.getloadavg()[0]
    return Machine(
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        load=load,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        memory_free_bytes=_memory_free(),
        disk_free_bytes=shutil.disk_usage(disk).free,
        disk=str(home),
        files_most=_files_most(),
        newest_file_s=_newest(home),
        release=release(),
        in_container=any(Path(mark).exists() for mark in _MARKS),
        speed=_speed(),
    )


def _memory_free() -> int | None:
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))
    return None


def _files_most() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def _newest(home: Path) -> float:
    with suppress(OSError):
        return max((path.stat().st_mtime for path in home.iterdir()), default=0.0)
    return 0.0


def _speed() -> Speed:
    kept, (kernel, reason) = kept_speed(cache_file()), _kernel()
    int8 = kept.speeds.get("int8") if kept is not None else None
    return Speed(
        kernel=kernel,
        kernel_reason=reason,
        measured_at_s=kept.measured_at_s if kept is not None and kept.measured_at_s else None,
        int8_mib_ns=int8.mib_ns if int8 is not None else None,
        threads=os.environ.get("OMP_NUM_THREADS", ""),
    )


def _kernel() -> tuple[bool, str]:
    """Whether the compiled kernel runs here, and why not, without the seconds that loading torch takes."""
    built = sorted((Path(__file__).parents[1] / "kernels").glob("_native.*"))
    if not built:
        return False, "It was not built: there was no C compiler at installation."
    try:
        runs = ctypes.CDLL(str(built[0])).lepton_runs
    except (OSError, AttributeError) as error:
        return False, f"It cannot be loaded: {error}."
    if any(runs(width) for width in _WIDTHS):
        return True, ""
    return False, "This processor has neither AVX2 with FMA nor NEON."


# -- ports -------------------------------------------------------------------------------------------------------------


def ports(config: Config) -> tuple[Port, ...]:
    """Try the ports that the configuration names. Only for when no node runs here: then they ought to be free."""
    wanted = [(text, "listen") for text in config.listen]
    if config.web.place is not None and config.web.listen:
        wanted.append((config.web.listen, "web.listen"))
    return tuple(found for text, what in wanted if (found := _port(text, what)) is not None)


def _port(text: str, what: str) -> Port | None:
    host, _, number = text.rpartition(":")
    host = host.strip("[]")
    if not number.isdigit() or int(number) == 0:
        return None  # any free port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind((host, int(number)))
            probe.listen(1)
        except OSError as error:
            taken = _owner(int(number)) if "in use" in str(error) else ""
            return Port(wanted=text, what=what, taken_by=taken, trouble=error.strerror or str(error))
    return Port(wanted=text, what=what)


def _owner(port: int) -> str:
    """Name the program that listens on a TCP port; other users' programs are not shown to us."""
    inodes = set(_listeners(port))
    looked = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                looked += 1
                if looked > _SOCKETS_MAX:
                    break
                if str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]") in inodes:
                    name = (process / "comm").read_text("utf-8", "replace").strip()
                    return f"taken by {name} (process {process.name})"
    return "taken by another program"


def _listeners(port: int) -> Iterator[str]:
    """Read the inodes of sockets that listen on a port (proc(5), /proc/net/tcp)."""
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text("ascii").splitlines()[1:]:
                parts = line.split()
                if parts[3] == "0A" and int(parts[1].rpartition(":")[2], 16) == port:
                    yield parts[9]


# -- firewalls ---------------------------------------------------------------------------------------------------------


def walls() -> tuple[Wall, ...]:
    """Return the firewalls that may be in force here; their rules are for root alone to see."""
    found = []
    if (state := _ufw()) is not None:
        allow = "sudo ufw allow 5353/udp && sudo ufw allow 4001/tcp"
        found.append(Wall(name="ufw", on=state, look="sudo ufw status verbose", allow=allow))
    if shutil.which("firewall-cmd", path="/usr/bin:/usr/sbin:/bin:/sbin"):
        allow = "sudo firewall-cmd --add-service=mdns && sudo firewall-cmd --add-port=4001/tcp"
        running = Path("/run/firewalld.pid").exists() or Path("/run/firewalld").exists()
        found.append(Wall(name="firewalld", on=running, look="sudo firewall-cmd --list-all", allow=allow))
    if not any(wall.on for wall in found):  # these two are made of the tables below
        found += _tables()
    return tuple(found)


def _ufw() -> bool | None:
    try:
        return "enabled=yes" in Path("/etc/ufw/ufw.conf").read_text("utf-8").lower().replace(" ", "")
    except OSError:
        return None


def _tables() -> Iterator[Wall]:
    for module, name, look in (
        ("nf_tables", "nftables", "sudo nft list ruleset"),
        ("ip_tables", "iptables", "sudo iptables -S"),
    ):
        if _number(Path(f"/sys/module/{module}/refcnt"), 0) > 0:
            yield Wall(name=name, look=look)
            return
