"""Services: small programs that the mesh hosts, calls by name, scales, updates and keeps alive.

from lepton.node.services import service, method
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .writing.api import Mesh, method, service

__all__ = ["Mesh", "method", "service"]


def __getattr__(name: str) -> object:
    """Import on first use (PEP 562): whoever reads records of services needs no numpy."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(".writing.api", __name__), name)
