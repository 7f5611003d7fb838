"""What a model and its data may measure, whoever describes them; apart from `models`, for those who need no torch."""

from typing import Final

WIDTH_MAX: Final = 4096  # hidden units, channels, classes
