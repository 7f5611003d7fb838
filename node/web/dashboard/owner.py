"""Who may change things from the page: whoever has the key that this node's own command line gives out. Pure.

The guard lets in whoever may look: on loopback every program of this device, of whatever user. To revoke a device or
to invite one is for the node's owner, as on the control socket. So what changes anything needs a key that is made at
each start and that `lepton-node dashboard` prints as part of the page's address, behind a `#`, where no browser sends
it to anybody. A page of another site does not have it either: it is the protection against cross-site requests too.
"""

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from ....mesh.errors import Refused

HEADER: Final = "x-lepton-owner"
_KEY_BYTES: Final = 24
_LOCKED: Final = "This page may only look. To change things, open it with `lepton-node dashboard`."


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner's key of one run of a node."""

    key: str = field(default_factory=lambda: secrets.token_urlsafe(_KEY_BYTES), repr=False)

    def check(self, headers: Mapping[str, str]) -> None:
        """Raise Refused unless the request shows the key and, if a browser sent it, comes from this page."""
        site = headers.get("sec-fetch-site", "same-origin")
        if site != "same-origin":
            raise Refused("Pages of other sites may change nothing here.")
        if not hmac.compare_digest(headers.get(HEADER, "").encode(), self.key.encode()):
            raise Refused(_LOCKED)

    def link(self, page: str) -> str:
        """Return the page's address with the key in it."""
        return f"{page}#key={self.key}"
