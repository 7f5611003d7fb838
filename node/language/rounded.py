"""Matrices of a folder that were rounded before: each is stored as integers under its own name, with scales beside it.

``model.layers.0.mlp.up_proj.weight`` then has ``model.layers.0.mlp.up_proj.weight_scale`` with it, as
``kernels/rounded.py`` says. Such a folder is served at its own precision without another rounding.
"""

from collections.abc import Mapping

from ...mesh.errors import UsageError
from ..kernels import Matrix, Rounded
from .config import LanguageConfig
from .layout import SCALE, layer_shapes


def rounded_tensors(tensors: Mapping[str, Matrix], config: LanguageConfig, layer: int) -> dict[str, Matrix]:
    """Put integers and scales together; other tensors stay as they are. Raises UsageError for what does not fit."""
    shapes = layer_shapes(config, layer)
    found = {name: tensor for name, tensor in tensors.items() if not name.endswith(SCALE)}
    for name in tensors.keys() - found.keys():
        matrix = name.removesuffix(SCALE)
        if matrix not in found or len(shapes.get(matrix, ())) != 2:
            raise UsageError(
                f"{name[:128]!r} is there without a matrix that it belongs to: are the files of one model?"
            )
        found[matrix] = Rounded(found[matrix], tensors[name], shapes[matrix][1])
    return found
