"""What a program says of itself, for people and for gateways."""

from typing import Annotated, Literal

import msgspec

from ...mesh.errors import UsageError
from ..objective import Objective


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What people and gateways want to know of a program.

    ``positions``: an encoder's longest text, in tokens. ``objective``: what its answers are, where that is known.
    """

    program: Literal["module", "encoder"] = "module"
    source: Annotated[str, msgspec.Meta(max_length=200)] = ""  # what it was traced from
    positions: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    objective: Objective | None = None


def read_description(data: bytes | str) -> Description:
    """Read the configuration of a program. Raises UsageError."""
    try:
        return msgspec.json.decode(data, type=Description)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"This is not the configuration of a program: {str(error)[:200]}.") from error
