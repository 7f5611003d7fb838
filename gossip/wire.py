"""How a message of a machine travels: a msgpack header that holds all but the payload, and the raw payload beside it.

A payload may be megabytes: it travels beside its header, so that nobody copies it into a message and out again.
"""

from typing import Any, Generic, TypeVar

import msgspec

from .errors import BadContribution

M = TypeVar("M", bound=msgspec.Struct)


class Wire(Generic[M]):
    """Packs and unpacks one machine's messages: structs with a tag and a field ``payload``, any bytes-like object."""

    def __init__(self, kinds: Any, what: str) -> None:  # noqa: ANN401 - a union of types has no type of its own
        """``kinds`` is the union of the messages, ``what`` says in errors what they are messages of."""
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(kinds)
        self._what = what

    def pack(self, message: M) -> tuple[bytes, bytes]:
        """Return (header, payload): the header is msgpack and holds everything else."""
        payload: bytes = message.payload  # type: ignore[attr-defined]
        return self._encoder.encode(msgspec.structs.replace(message, payload=b"")), payload

    def unpack(self, header: bytes | memoryview, payload: bytes | memoryview) -> M:
        """Return the message of a header and its payload, which is kept as it is and not copied.

        Raises:
            BadContribution: the header is not that of one of these messages.
        """
        try:
            message = self._decoder.decode(header)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadContribution(f"the header of a message of {self._what} is malformed ({error})") from None
        if message.payload:  # type: ignore[attr-defined]
            raise BadContribution(f"the header of a message of {self._what} carries a payload: it belongs beside it")
        return msgspec.structs.replace(message, payload=payload)
