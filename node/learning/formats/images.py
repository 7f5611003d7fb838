"""A folder of images: one folder a class, all images brought to one size and to grey.

The classes' numbers must be the same on all nodes, so they are never taken from what one node happens to hold: folders
are called 0, 1, 2 ..., or the target lists their names in order.
"""

import re
from pathlib import Path
from typing import Final

import numpy as np

from ....mesh.errors import UsageError
from .checks import Dataset, Floats, Wanted, dataset_of

_TARGET: Final = re.compile(r"(\d{1,4})x(\d{1,4})(?::(.+))?")
_ENDINGS: Final = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}
SIDE_MAX: Final = 1024  # of what a model here could take in
PIXELS_MAX: Final = 64 * 1024 * 1024  # of one file: a small file may claim to be a very large image


def from_images(folder: Path, target: str | None, wanted: Wanted) -> Dataset:
    """Read ``folder/CLASS/*.png`` and so on: float32 (n, H, W) in [0, 1]. ``target``: ``HxW`` or ``HxW:name,name``."""
    height, width, names = _read_target(folder, target)
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise UsageError(f"{folder}: holds no folders; put the images of each class into a folder of its own")
    images: list[Floats] = []
    labels: list[int] = []
    for path in found:
        label = _label(path, names)
        for file in sorted(file for file in path.iterdir() if file.suffix.lower() in _ENDINGS):
            images.append(_read(file, height, width))
            labels.append(label)
    if not images:
        raise UsageError(f"{folder}: holds no images ({', '.join(sorted(_ENDINGS))}) in its folders")
    if wanted.classes is None and names:
        wanted = wanted._replace(classes=len(names))
    return dataset_of(folder, np.stack(images), wanted.targets(folder, "classes", np.array(labels)), wanted)


def _read_target(folder: Path, target: str | None) -> tuple[int, int, list[str] | None]:
    match = _TARGET.fullmatch(target or "")
    if match is None or not all(1 <= int(side) <= SIDE_MAX for side in match.group(1, 2)):
        raise UsageError(
            f"{folder}: say how large its images shall be, and the classes in order unless their folders are called "
            f"0, 1, 2 ...: `{folder}@28x28:cat,dog`; got {target!r}"
        )
    names = match[3].split(",") if match[3] else None
    if names is not None and len(set(names)) != len(names):
        raise UsageError(f"{folder}: the target {target!r} names a class twice")
    return int(match[1]), int(match[2]), names


def _label(path: Path, names: list[str] | None) -> int:
    if names is None:
        if not path.name.isdecimal():
            raise UsageError(
                f"{path}: the folder is called {path.name!r}, and other nodes would not know its number: call folders "
                "0, 1, 2 ..., or list the names in order behind the size, `@28x28:cat,dog`"
            )
        return int(path.name)
    if path.name not in names:
        raise UsageError(f"{path}: {path.name!r} is not among the classes {', '.join(names)}")
    return names.index(path.name)


def _read(file: Path, height: int, width: int) -> Floats:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            if image.width * image.height > PIXELS_MAX:
                raise UsageError(f"{file}: {image.width} x {image.height} pixels are too many; scale it down")
            grey = image.convert("L").resize((width, height), Image.Resampling.BILINEAR)
    except (UnidentifiedImageError, SyntaxError, ValueError, OSError) as error:
        raise UsageError(f"{file}: is not an image that can be read: {error}") from error
    pixels: Floats = np.asarray(grey, dtype=np.float32) / np.float32(255)
    return pixels
