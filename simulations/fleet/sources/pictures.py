"""Pictures and sounds as pictures: each number a known range, so no node has to know what the others hold.

Digits, MNIST and Fashion-MNIST are divided by their darkest value. Spoken digits are log-mel spectrograms; they are
standardised by one mean and deviation over all speakers' training clips, which a mesh would have to agree on first.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from .source import Floats, Source, Whole, arrays_in, file_in, held_out

SPOKEN_TESTS = 5  # the data set's own split: recordings 0 to 4 of every speaker and digit are the test


def digits(_folder: Path | None) -> Source:
    """scikit-learn's 1,797 digits, (64,) in [0, 1]; a fifth is held out."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return _parted((pixels / 16).astype(np.float32), labels.astype(np.int64), held_out(len(labels)))


def mnist(folder: Path | None) -> Source:
    """Handwritten digits, (28, 28) in [0, 1]: 30,000 in the official order, and 5,000 of the official test."""
    path = file_in(folder, "mnist", "mnist_30k.npz")
    x, y, x_test, y_test = arrays_in(path, "x_train", "y_train", "x_test", "y_test")
    inputs, test_inputs = (_shades(part) for part in (x, x_test))
    labels, test_labels = (np.asarray(part, np.int64) for part in (y, y_test))
    return Source(inputs=inputs, labels=labels, test_inputs=test_inputs, test_labels=test_labels, classes=10)


def fashion_mnist(folder: Path | None) -> Source:
    """Clothes, (28, 28) in [0, 1]: 900 pictures, of which a fifth is held out."""
    x, y = arrays_in(file_in(folder, "fashion_mnist", "fashion_mnist_900.npz"), "x", "y")
    return _parted(_shades(x), np.asarray(y, np.int64), held_out(len(y)))


def speech(folder: Path | None) -> Source:
    """Spoken digits, (32, 32); every speaker is a silo."""
    path = file_in(folder, "fsdd", "fsdd_logmel32x32_4speakers.npz")
    x, y, speaker, index = arrays_in(path, "x", "y", "speaker", "index")
    x, test = np.asarray(x, np.float32), np.asarray(index, np.int64) < SPOKEN_TESTS
    names, silos = np.unique(speaker, return_inverse=True)
    x = (x - x[~test].mean()) / x[~test].std()
    return _parted(x, np.asarray(y, np.int64), test, silos.astype(np.int64), tuple(map(str, names)))


def _shades(pixels: npt.NDArray[np.generic]) -> Floats:
    return (np.asarray(pixels, np.float32) / 255).astype(np.float32)


def _parted(
    x: Floats, y: Whole, test: npt.NDArray[np.bool_], silos: Whole | None = None, names: tuple[str, ...] = ()
) -> Source:
    return Source(
        inputs=x[~test],
        labels=y[~test],
        test_inputs=x[test],
        test_labels=y[test],
        classes=10,
        names=names,
        silos=None if silos is None else silos[~test],
        test_silos=None if silos is None else silos[test],
    )
