"""Pruning: numbers, and whole channels, that a model can do without.

from lepton.node.compression import Fit, prune, prune_folder
"""

from .folder import prune_folder
from .pruned import as_before, prune

__all__ = ["as_before", "prune", "prune_folder"]
