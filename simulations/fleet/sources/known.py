"""The data sets by name."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Final

from ....mesh.errors import UsageError
from ....node.config import did_you_mean
from .cameras import video
from .homes import adl, occupancy
from .pictures import digits, fashion_mnist, mnist, speech
from .roles import shakespeare
from .series import nab, traffic
from .source import Source
from .tables import breast_cancer, diabetes, hospitals, retinopathy

SOURCES: Final[dict[str, Callable[[Path | None], Source]]] = {
    "digits": digits,
    "breast_cancer": breast_cancer,
    "diabetes": diabetes,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "speech": speech,
    "retinopathy": retinopathy,
    "hospitals": hospitals,
    "shakespeare": shakespeare,
    "traffic": traffic,
    "nab": nab,
    "video": video,
    "occupancy": occupancy,
    "adl": adl,
}


@lru_cache(maxsize=1)  # the variants of a scenario are of the same data mostly, and `Source.cut` copies
def source_of(name: str, folder: Path | None = None) -> Source:
    """Read a data set; ``folder`` is where those lie that Lepton does not carry. Raises UsageError."""
    if name not in SOURCES:
        raise UsageError(f"data.name: there are no data called {name!r}.{did_you_mean(name, list(SOURCES))}")
    return SOURCES[name](folder)
