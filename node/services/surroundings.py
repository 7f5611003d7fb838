"""What programs that run for services see of the node's environment: what finds and runs programs, and no secrets."""

import os
from typing import Final

_KEPT: Final = frozenset(
    {
        *("PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "XDG_CACHE_HOME", "HF_HOME", "CUDA_VISIBLE_DEVICES", "CUDA_HOME"),
    }
)
# What pip needs besides, to reach an index: a proxy or an index may be named with a password, without which it fails.
_FOR_PIP: Final = frozenset(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "NETRC"))


def for_instances() -> dict[str, str]:
    """Return what an instance sees."""
    return {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("LC_")}


def for_pip() -> dict[str, str]:
    """Return what pip sees, and with it the code that builds packages."""
    more = {name: value for name, value in os.environ.items() if name.upper() in _FOR_PIP or name.startswith("PIP_")}
    return for_instances() | more
