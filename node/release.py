"""Which release of Lepton runs here."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def release() -> str:
    """Return it, as in '0.4.1'; 'unknown' where the code was not installed."""
    try:
        return version("lepton-node")
    except PackageNotFoundError:
        return "unknown"
