"""Models that fit the devices: rounded, so that they take less memory, less time to send, and less time to answer.

from lepton.node.compression import quantise_folder
"""

from .errors import NotFaster, NotSmaller, NotWorthIt
from .folder import quantise_folder
from .manifest import Manifest, read_manifest

__all__ = ["Manifest", "NotFaster", "NotSmaller", "NotWorthIt", "quantise_folder", "read_manifest"]
