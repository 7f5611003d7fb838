"""One digest over several fields, from which no two different lists of fields can be told the same."""

from hashlib import blake2b

DIGEST_SIZE_BYTES = 16  # 128 bits: collisions by accident are out of reach, and members are authenticated elsewhere


def digest(purpose: str, *fields: bytes) -> bytes:
    """Return BLAKE2b (RFC 7693) over length-prefixed `fields`; `purpose` keeps the uses of it apart.

    `purpose` has at most 16 ASCII characters.
    """
    state = blake2b(digest_size=DIGEST_SIZE_BYTES, person=purpose.encode("ascii"))
    for field in fields:
        state.update(len(field).to_bytes(8, "big"))  # without it, ("ab", "c") and ("a", "bc") would be one
        state.update(field)
    return state.digest()
