"""The arithmetic of a language model's stage: products with weights at a precision, the same bits in any batch.

from lepton.node.kernels import pack
"""

from .native import Capabilities, arithmetic, available
from .packed import Matrix, Packed, Precision
from .packing import pack
from .rounded import Rounded

__all__ = ["Capabilities", "Matrix", "Packed", "Precision", "Rounded", "arithmetic", "available", "pack"]
