"""A device whose address changes while its node runs, as a laptop's does on another Wi-Fi, is reached again."""

from pathlib import Path

import pytest

from .lan import INTERFACE, Lan
from .nodes import mesh_of, together, until

pytestmark = pytest.mark.net


@pytest.mark.slow
def test_a_device_with_a_new_address_is_reached_again(lan: Lan, tmp_path: Path) -> None:
    with mesh_of(lan, tmp_path, ["laptop", "tower"], ipv6=False) as (laptop, tower):
        until(lambda: together((laptop, tower)), laptop, tower)
        laptop.device.ip(f"address del {laptop.device.ipv4}/24 dev {INTERFACE}")
        until(lambda: not laptop.sees() and not tower.sees(), laptop, tower)
        laptop.device.ip(f"address add 10.0.0.77/24 dev {INTERFACE}")
        until(lambda: together((laptop, tower)), laptop, tower)


@pytest.mark.slow
def test_devices_whose_network_is_renumbered_find_each_other_again(lan: Lan, tmp_path: Path) -> None:
    """Both get new addresses, as from a new router: what either knows of the other is out of date."""
    with mesh_of(lan, tmp_path, ["laptop", "tower"], ipv6=False) as both:
        until(lambda: together(both), *both)
        for member in both:
            member.device.ip(f"address del {member.device.ipv4}/24 dev {INTERFACE}")
            member.device.ip(f"address add 192.168.7.{member.device.number}/24 dev {INTERFACE}")
        until(lambda: all(f"192.168.7.{member.device.number}" in member.said_so_far() for member in both), *both)
        until(lambda: any("over its old connection" in member.said_so_far() for member in both), *both)
        until(lambda: together(both), *both)  # which may be so at once: neither was ever alone for long
