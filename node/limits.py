"""What a model and its data may measure, whoever describes them; apart from `models`, for those who need no torch."""

from typing import Final

WIDTH_MAX: Final = 4096  # hidden units, channels, classes
SEED_MAX: Final = 2**63 - 1  # what msgpack, torch and numpy all take
# A function of an owner's own that makes a model, as in "clinic.models:unet".
FACTORY_PATTERN: Final = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$"
FACTORY_CHARS_MAX: Final = 256
