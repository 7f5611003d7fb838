"""One data set as it was found: samples, a test, whose each one was, and how its answers are measured."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ....mesh.errors import UsageError

Floats = npt.NDArray[np.float32]
Whole = npt.NDArray[np.int64]

TEST_SEED = 0  # which samples are held out where a data set has no test of its own: the same in every run

# A model's raw outputs (t, K), the labels that belong to them and the marks (t, M), to figures.
Score = Callable[[Floats, npt.NDArray[Any], Floats], Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """S samples to train on, T to test on; the silos, where there are any, are numbered in the order of ``names``."""

    inputs: Floats | Whole  # (S, ...): numbers, or what the model embeds
    labels: Floats | Whole  # (S,) classes, or (S, K) values
    test_inputs: Floats | Whole  # (T, ...)
    test_labels: Floats | Whole  # (T,) or (T, K)
    classes: int  # outputs of a model: classes, or K
    names: tuple[str, ...] = ()  # of the silos
    silos: Whole | None = None  # (S,)
    test_silos: Whole | None = None  # (T,)
    marks: Floats | None = None  # (T, M): what else `score` has to know of the test samples
    score: Score | None = None

    def cut(self, samples: int, test: int) -> "Source":
        """Keep the first so many, of each silo in proportion; 0: all. Raises UsageError where there are fewer."""
        kept, tested = (
            _first(len(self.labels), samples, self.silos),
            _first(len(self.test_labels), test, self.test_silos),
        )
        return dataclasses.replace(
            self,
            inputs=self.inputs[kept],
            labels=self.labels[kept],
            silos=None if self.silos is None else self.silos[kept],
            test_inputs=self.test_inputs[tested],
            test_labels=self.test_labels[tested],
            test_silos=None if self.test_silos is None else self.test_silos[tested],
            marks=None if self.marks is None else self.marks[tested],
        )


def _first(there: int, wanted: int, silos: Whole | None) -> Whole:
    if wanted > there:
        raise UsageError(f"data: {wanted:,} samples are asked for, and these data have {there:,}.")
    if not wanted or silos is None:
        return np.arange(wanted or there)
    order = np.argsort(silos, kind="stable")
    counts = np.bincount(silos)
    place = np.empty(there)
    place[order] = (np.arange(there) - np.repeat(np.cumsum(counts) - counts, counts) + 0.5) / np.repeat(counts, counts)
    return np.sort(np.argsort(place, kind="stable")[:wanted])


def held_out(samples: int, share: float = 0.2) -> npt.NDArray[np.bool_]:
    """Draw which samples are the test: the same ones every time. (S,)."""
    picked = np.zeros(samples, dtype=np.bool_)
    picked[np.random.default_rng(TEST_SEED).permutation(samples)[: round(share * samples)]] = True
    return picked


def standardised(values: npt.NDArray[np.float64], training: npt.NDArray[np.bool_]) -> Floats:
    """Subtract the training samples' mean and divide by their deviation, column by column; constants become 0."""
    mean, deviation = values[training].mean(0), values[training].std(0)
    scaled: Floats = ((values - mean) / np.where(deviation > 0, deviation, 1)).astype(np.float32)
    return scaled


def file_in(folder: Path | None, *parts: str) -> Path:
    """Return the file below the folder of real data. Raises UsageError that says how to name the folder."""
    if folder is None:
        raise UsageError(
            f"The data of {parts[0]!r} do not come with Lepton: give their folder with --data FOLDER, "
            "or as `folder` in the scenario's [data]."
        )
    path = folder.joinpath(*parts)
    if not path.is_file():
        raise UsageError(f"There is no {path}: the folder that --data or data.folder names holds {'/'.join(parts)}.")
    return path


def arrays_in(path: Path, *names: str) -> tuple[npt.NDArray[np.generic], ...]:
    """Read arrays of an .npz. Raises UsageError where it is none or lacks one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return tuple(file[name] for name in names)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{path}: is not an .npz with {', '.join(names)}: {error}.") from error
