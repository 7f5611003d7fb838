"""What does one device do? Models, shards, learning, the command line and the embedding API.

from lepton.node import Node
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .learning.data import Dataset, digits
    from .learning.optimizer import GossipOptimizer
    from .learning.tasks import TrainResult
    from .node import Node
    from .setup import create_mesh, join_mesh

_HOME = {
    "GossipOptimizer": "learning.optimizer",
    "Node": "node",
    "TrainResult": "learning.tasks",
    "Dataset": "learning.data",
    "digits": "learning.data",
    "create_mesh": "setup",
    "join_mesh": "setup",
}

__all__ = ["Dataset", "GossipOptimizer", "Node", "TrainResult", "create_mesh", "digits", "join_mesh"]


def __getattr__(name: str) -> object:
    """Import on first use (PEP 562): the command line's help and the simulator must not pay for libp2p and torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)
