"""Where the endpoint listens, as its owner writes it. Pure, and light: every configuration is read with it."""

import ipaddress
from dataclasses import dataclass
from typing import Final

from ...mesh.errors import UsageError

OFF: Final = "off"
PORT: Final = 7533  # of no well-known service
_NAMED: Final = {"localhost": "127.0.0.1"}


@dataclass(frozen=True, slots=True)
class Listen:
    """An address for the endpoint."""

    host: str  # a literal address
    port: int  # 0: any free one

    @property
    def is_loopback(self) -> bool:
        return ipaddress.ip_address(self.host).is_loopback

    @property
    def name(self) -> str:
        """The host as a Host header has it."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def url(self) -> str:
        """What a client calls its base URL."""
        return f"http://{self.name}:{self.port}/v1"


def parse_listen(text: str) -> Listen:
    """Read "127.0.0.1:7533" or "[::1]:7533". Raises UsageError."""
    host, _, port = text.rpartition(":")
    host = _NAMED.get(host, host.removeprefix("[").removesuffix("]"))
    try:
        number = int(port)
        ipaddress.ip_address(host)
    except ValueError:
        number = -1
    if not (port.isascii() and port.isdigit() and 0 <= number < 2**16):
        raise UsageError(f"web.listen: {text!r} is not ADDRESS:PORT, as in '127.0.0.1:{PORT}', nor 'off'.")
    return Listen(host, number)
