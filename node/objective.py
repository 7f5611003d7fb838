"""What a model is to learn: classes, yes-or-no answers, or values. Free of torch, as the command line reads it too.

`cross_entropy`: one of k classes; labels are whole numbers, answers k probabilities that sum to 1.
`binary_cross_entropy`: yes or no, once or k times for each sample; labels are numbers from 0 to 1, answers k
probabilities, each on its own. `mse`, `mae`, `huber`: k values; labels are any finite numbers, answers likewise.
"""

from typing import Final, Literal, get_args

Objective = Literal["cross_entropy", "binary_cross_entropy", "mse", "mae", "huber"]
OBJECTIVES: Final[tuple[Objective, ...]] = get_args(Objective)


def is_of_classes(objective: Objective) -> bool:
    """Whether labels are the numbers of classes, of which a sample has one."""
    return objective == "cross_entropy"


def is_of_values(objective: Objective) -> bool:
    """Whether values are predicted: then there is no right and wrong, and R2 is shown in place of accuracy."""
    return objective in {"mse", "mae", "huber"}
