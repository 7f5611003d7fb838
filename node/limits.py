"""What a model and its data may measure, whoever describes them; apart from `models`, for those who need no torch."""

from typing import Final

WIDTH_MAX: Final = 4096  # hidden units, channels, classes
SEED_MAX: Final = 2**63 - 1  # what msgpack, torch and numpy all take
