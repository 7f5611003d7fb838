"""mDNS speaks on every interface, over IPv4 and IPv6; `--interface` narrows it to the one with that address."""

import json
import sys
from pathlib import Path

import pytest

from .lan import Device, Lan

pytestmark = pytest.mark.net

SEEN = Path(__file__).with_name("interfaces_seen.py")


def with_two_networks(lan: Lan) -> Device:
    device = lan.add("laptop", ipv4=False, ipv6=False)
    for n, name in enumerate("ab"):
        device.ip(f"link add {name}0 type veth peer name {name}1")
        for end in "01":
            device.ip(f"link set {name}{end} up")
        device.ip(f"address add 10.{n}.0.1/24 dev {name}0")
        device.ip(f"address add fd00:{n}::1/64 dev {name}0 nodad")
    return device


@pytest.mark.parametrize(
    ("interfaces", "there"),
    [
        ((), {"a1": ["ipv4", "ipv6"], "b1": ["ipv4", "ipv6"]}),
        (("10.0.0.1",), {"a1": ["ipv4"], "b1": []}),
        (("fd00:1::1",), {"a1": [], "b1": ["ipv6"]}),
        (("10.0.0.1", "fd00:1::1"), {"a1": ["ipv4"], "b1": ["ipv6"]}),
    ],
)
def test_announcements_are_seen_where_they_should_be_and_nowhere_else(
    lan: Lan, interfaces: tuple[str, ...], there: dict[str, list[str]]
) -> None:
    said = with_two_networks(lan).run(sys.executable, str(SEEN), *interfaces)
    assert json.loads(said) == there
