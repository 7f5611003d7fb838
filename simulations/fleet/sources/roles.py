"""Who speaks in Shakespeare's plays: every role a silo, and the next character to be guessed (McMahan et al. 2017)."""

import json
from pathlib import Path

import numpy as np

from ....mesh.errors import UsageError
from .source import Source, Whole, file_in

WINDOW = 32  # characters that are seen before the one that is guessed
STRIDE = 4  # from one sample to the next: 10^5 samples of 4 x 10^5 characters
TRAINING = 0.8  # of what a role says, in the play's order


def shakespeare(folder: Path | None) -> Source:
    """Inputs int64 (32,), for a model that embeds them; labels one of the text's 64 characters."""
    path = file_in(folder, "shakespeare", "roles.json")
    try:
        roles = {name: "\n".join(speeches) for name, speeches in json.loads(path.read_text("utf-8")).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: is not a table of roles and what they say: {error}.") from error
    alphabet = np.array(sorted({ord(letter) for text in roles.values() for letter in text}))
    texts = [np.searchsorted(alphabet, np.array([ord(letter) for letter in text])) for text in roles.values()]
    cuts = [int(TRAINING * len(text)) for text in texts]
    train = [_windows(text[:cut]) for text, cut in zip(texts, cuts, strict=True)]
    test = [_windows(text[cut:]) for text, cut in zip(texts, cuts, strict=True)]
    silos, test_silos = (np.repeat(np.arange(len(texts)), [len(part) for part in parts]) for parts in (train, test))
    whole, whole_test = np.concatenate(train), np.concatenate(test)
    return Source(
        inputs=whole[:, :-1],
        labels=whole[:, -1].copy(),
        test_inputs=whole_test[:, :-1],
        test_labels=whole_test[:, -1].copy(),
        classes=len(alphabet),
        names=tuple(roles),
        silos=silos,
        test_silos=test_silos,
    )


def _windows(text: Whole) -> Whole:
    """Every so many characters, (n, 33): what is seen and what comes."""
    return np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(text, WINDOW + 1)[::STRIDE])
