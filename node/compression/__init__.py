"""Models that fit the devices: rounded, so that they take less memory, less time to send, and less time to answer.

from lepton.node.compression import quantise, quantise_folder
"""

from .errors import NotFaster, NotSmaller, NotWorthIt
from .folder import quantise_folder
from .manifest import Manifest, read_manifest
from .modules import Compressed, quantise
from .stored import load, save

__all__ = [
    "Compressed", "Manifest", "NotFaster", "NotSmaller", "NotWorthIt", "load", "quantise", "quantise_folder",
    "read_manifest", "save",
]  # fmt: skip
