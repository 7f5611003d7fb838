"""Run on a device with two pairs of interfaces, a0-a1 and b0-b1: announces a node as told, and prints what came out.

One line of JSON: for a1 and b1 the kinds of addresses by which an announcement was seen there.
"""

import json
import socket
import sys
import threading

import trio
from lepton.mesh.discovery import Announcement, open_discovery
from lepton.mesh.identity import Identity

ALL = ("/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001")
_KINDS = {0x0800: "ipv4", 0x86DD: "ipv6"}
_PROTOCOLS_ALL = 3  # ETH_P_ALL


def watch(name: str, seen: set[str], done: threading.Event) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_PROTOCOLS_ALL)) as raw:
        raw.bind((name, 0))
        raw.settimeout(0.2)
        while not done.is_set():
            try:
                frame = raw.recv(65535)
            except TimeoutError:
                continue
            if b"_lepton" in frame:
                seen.add(_KINDS[int.from_bytes(frame[12:14])])


async def announce(interfaces: tuple[str, ...]) -> None:
    said = Announcement(Identity.generate().peer_id, ALL)
    async with open_discovery(Identity.generate().peer_id, interfaces=interfaces, announce=said):
        await trio.sleep(1.5)  # the three times that an announcement is repeated take 1 s


def main() -> None:
    seen: dict[str, set[str]] = {"a1": set(), "b1": set()}
    done = threading.Event()
    threads = [threading.Thread(target=watch, args=(name, kinds, done)) for name, kinds in seen.items()]
    for thread in threads:
        thread.start()
    trio.run(announce, tuple(sys.argv[1:]))
    done.set()
    for thread in threads:
        thread.join()
    print(json.dumps({name: sorted(kinds) for name, kinds in seen.items()}))  # noqa: T201


if __name__ == "__main__":
    main()
