"""Who may use the endpoint: programs on this device, or those with the token; no web page that a browser shows. Pure.

A page from anywhere can make a browser send requests to 127.0.0.1, and by DNS rebinding under a name of its own. So
on loopback the Host header has to name this device, an Origin has to be this endpoint's own, and a body has to be
declared as JSON or raw bytes, for which a browser asks first and is not answered (no CORS). Pictures, scripts and
frames are asked for without an Origin: browsers say of these that another site's page wants them (Fetch Metadata, W3C).
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from ...mesh.errors import Refused, UsageError
from .listen import Listen
from .replies import NoToken

_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_KINDS: Final = frozenset({"application/json", "application/octet-stream"})  # no form of a page can send these
# 16 characters of a password manager have 95 bits; what a person invents is longer or has fewer.
TOKEN_CHARACTERS_MIN: Final = 16


@dataclass(frozen=True, slots=True)
class Guard:
    """Decides by a request's headers; their names are in small letters. ``token`` empty: none is asked for."""

    listen: Listen
    token: str

    def __post_init__(self) -> None:
        """Raise UsageError for a token that can be guessed, or none where other devices can ask."""
        if not (self.token or self.listen.is_loopback):
            raise UsageError(f"An endpoint on {self.listen.host} needs a token.")
        if self.token and len(self.token) < TOKEN_CHARACTERS_MIN:
            raise UsageError(f"web.token has {len(self.token)} characters; use at least {TOKEN_CHARACTERS_MIN}.")

    def check(self, method: str, headers: Mapping[str, str], *, is_open: bool = False) -> None:
        """Raise Refused or NoToken when the request may not be answered, UsageError when its body is not JSON.

        With ``is_open`` no token is asked for: the answer is the same for everybody, as a page's own files are.
        """
        host = headers.get("host", "").lower()
        if self.listen.is_loopback and _name(host) not in {*_LOCAL, self.listen.name}:
            raise Refused(f"This endpoint is called 127.0.0.1 or localhost, not {host[:80]!r}.")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host:
            raise Refused(f"Pages of {origin[:80]!r} may not use this endpoint.")
        if headers.get("sec-fetch-site", "none") not in {"none", "same-origin"} and not _is_link(method, headers):
            raise Refused("Other sites' pages may not use this endpoint.")
        if self.token and not is_open and not hmac.compare_digest(_bearer(headers).encode(), self.token.encode()):
            raise NoToken("This endpoint wants its token as the API key (`Authorization: Bearer TOKEN`).")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method == "POST" and kind not in _KINDS:
            raise UsageError("Send the body as JSON, with the header `Content-Type: application/json`.")


def _is_link(method: str, headers: Mapping[str, str]) -> bool:
    """Whether somebody has followed a link to a page of ours, which then stands by itself."""
    about = headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")
    return method == "GET" and about == ("navigate", "document")


def _name(host: str) -> str:
    """Return a Host header without its port."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def _bearer(headers: Mapping[str, str]) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
