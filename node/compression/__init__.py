"""Models that fit the devices: smaller, so that they take less memory, less time to send, and less time to answer.

from lepton.node.compression import compress, distil, prune, quantise, quantise_folder
"""

from .distilling import Taught, answers_from, distil
from .errors import NotFaster, NotSmaller, NotWorthIt
from .fitting import Fit
from .folder import quantise_folder
from .manifest import Manifest, read_manifest
from .meshed import distil_from_mesh, distil_texts_from_mesh
from .modules import Compressed, quantise
from .pruning import prune, prune_folder
from .search import Found, TargetMissed, compress
from .stored import load, save
from .straight import Aware, quantise_aware

__all__ = [
    "Aware", "Compressed", "Fit", "Found", "Manifest", "NotFaster", "NotSmaller", "NotWorthIt", "TargetMissed",
    "Taught", "answers_from", "compress", "distil", "distil_from_mesh", "distil_texts_from_mesh", "load", "prune",
    "prune_folder",
    "quantise", "quantise_aware", "quantise_folder", "read_manifest", "save",
]  # fmt: skip
