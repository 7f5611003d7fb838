"""What a mesh answered, as `lepton-node predict` says it: classes, yes or no, or values."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .objective import Objective, is_of_classes, is_of_values


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """Answers (B, k), float32, of a model with this objective."""

    objective: Objective
    answers: npt.NDArray[np.float32]

    @property
    def _decided(self) -> npt.NDArray[Any]:
        """Return classes (B,), or noughts and ones (B, k), or values (B, k)."""
        if is_of_classes(self.objective):
            classes: npt.NDArray[Any] = self.answers.argmax(axis=1)
            return classes
        return self.answers if is_of_values(self.objective) else (self.answers >= 0.5).astype(np.int64)

    def plain(self) -> list[Any]:
        """Return what is decided for each sample: a number, or a list of them where the model answers several."""
        decided = self._decided
        plain: list[Any] = (decided[:, 0] if decided.ndim > 1 and decided.shape[1] == 1 else decided).tolist()
        return plain

    def lines(self) -> Iterator[str]:
        """Give one line a sample: its number, what is decided, and the probability of that where there is one."""
        for index, (decided, answer) in enumerate(zip(self._decided, self.answers, strict=True)):
            if is_of_classes(self.objective):
                cells = [str(decided), f"{answer[decided]:.4f}"]
            elif is_of_values(self.objective):
                cells = [f"{value:.6g}" for value in answer]
            else:
                cells = [f"{yes}\t{value:.4f}" for yes, value in zip(decided, answer, strict=True)]
            yield "\t".join([str(index), *cells])

    def compared(self, y: npt.NDArray[Any]) -> str:
        """Say how well the answers fit what is true: (B,) classes, else (B, k)."""
        if is_of_values(self.objective):
            error = self.answers.astype(np.float64) - y
            spread = float(((y - y.mean(axis=0)) ** 2).sum())
            r2 = f", R2 {1 - float((error**2).sum()) / spread:.3f}" if spread else ""
            return f"{len(y)} samples: mean absolute error {np.abs(error).mean():.4g}{r2}"
        right = self._decided == (y if is_of_classes(self.objective) else y >= 0.5)
        return f"{int(right.sum())} of {right.size} right ({right.mean():.1%})"
