"""Addresses as facts have them: what host one names, and which are in one network. Pure."""

import ipaddress

from .facts import Interface


def host_of(place: str) -> str:
    """Return the host of a multiaddr or of host:port."""
    parts = place.split("/")
    for key in ("ip4", "ip6", "dns", "dns4", "dns6"):
        if key in parts[:-1]:
            return parts[parts.index(key) + 1]
    return place.rpartition(":")[0].strip("[]")


def is_near(place: str, interface: Interface) -> bool:
    """Whether an address, as a multiaddr, is in the network of an interface."""
    host = host_of(place)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(address in ipaddress.ip_interface(own).network for own in interface.addresses)
