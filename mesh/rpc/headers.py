"""What the frames of calls say: one small msgpack array each, told apart by its first element.

They are decoded by msgspec straight into these types, and not by ``messages.unpack``: arrays have no keys to repeat,
no field holds anything of a free type, so nothing is built that the schema does not name, and a header costs 2 us
instead of 20. What a *method* takes and gives is a payload, which goes through ``messages.unpack`` after authorisation.

A stream of ``/lepton/call/1`` begins with one frame that says what it is: ``Control`` (calls of whoever opened it, many
at once) or ``Attach`` (large buffers of one call, raw, in the order in which the control stream announces them).
"""

from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec

from .. import limits
from ..errors import Busy, LeptonError, LinkError, PeerError, Refused, Uncertain, UsageError
from ..frames import PREFIX
from ..messages import Message, Name, Natural
from ..tensors import TensorSpec, size_bytes

CallId = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]  # 0 is no call: an error of the whole stream
Items = Annotated[int, msgspec.Meta(ge=0, le=limits.CREDIT_MAX)]
Tensors = Annotated[tuple[TensorSpec, ...], msgspec.Meta(max_length=limits.BUFFERS_MAX)]
Scope = Annotated[str, msgspec.Meta(pattern=r"^([a-z0-9][a-z0-9._-]{0,63})?$")]
Kind = Literal["unary", "server_stream", "client_stream"]
ErrorKind = Literal["usage", "peer", "link", "refused", "busy", "internal", "cancelled", "uncertain"]
KEY_BYTES: Final = 16  # random: nobody guesses another's
EPOCH_BYTES: Final = 8
Epoch = Annotated[bytes, msgspec.Meta(min_length=EPOCH_BYTES, max_length=EPOCH_BYTES)]


class Header(Message, frozen=True, array_like=True):
    """Base of all headers."""

    call: CallId


class Content(Header, frozen=True, kw_only=True):
    """What comes with a request, an item or an answer: a payload in the frame's body, then the tensors' buffers.

    With ``aside`` the buffers, and behind them ``bulk_bytes`` raw bytes, come on the call's attached stream instead.
    """

    payload_bytes: Natural = 0
    tensors: Tensors = ()
    aside: bool = False
    bulk_bytes: Natural = 0


KeyBytes = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]


class Once(Message, frozen=True, kw_only=True, array_like=True):
    """An idempotency key, and the life of the callee to which it was first shown.

    A ``brief`` one is repeated only until its caller has its last word or gives it up: then it may be forgotten.
    """

    key: KeyBytes
    epoch: Epoch
    brief: bool = False


class RequestHeader(Content, frozen=True, kw_only=True, tag=1):
    """A new call: what may be known of it before it is authorised. ``credit``: items that the caller takes at first."""

    method: Name
    scope: Scope = ""  # which model, task or service
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=limits.CALL_TIMEOUT_S_MAX)]  # what is left of the caller's time
    kind: Kind = "unary"
    credit: Items = 0
    once: Once | None = None
    # Brief keys of earlier calls whose last word has come: they are not repeated any more.
    settled: Annotated[tuple[KeyBytes, ...], msgspec.Meta(max_length=limits.KEYS_SETTLED_MAX)] = ()


class ItemHeader(Content, frozen=True, kw_only=True, tag=2):
    """One item of a streaming call, from whichever side streams."""


class EndHeader(Header, frozen=True, tag=3):
    """The caller has sent its last item."""


class CancelHeader(Header, frozen=True, tag=4):
    """The caller no longer wants the answer. The callee confirms with its last word, whatever that is."""


class CreditHeader(Header, frozen=True, kw_only=True, tag=5):
    """So many more items may be sent."""

    items: Items


class AnswerHeader(Content, frozen=True, kw_only=True, tag=6):
    """The callee's last word: the call succeeded. Of a server stream it is the end, and empty."""


class ErrorHeader(Header, frozen=True, kw_only=True, tag=7):
    """The callee's last word: the call failed, and how."""

    error: ErrorKind
    reason: Annotated[str, msgspec.Meta(max_length=limits.REASON_CHARACTERS_MAX)] = ""
    retry_after_s: Annotated[float, msgspec.Meta(ge=0, le=limits.CALL_TIMEOUT_S_MAX)] = 0.0


class WelcomeHeader(Header, frozen=True, kw_only=True, tag=10):
    """The callee's first word, of no call: which of its lives this is. It has another after each start."""

    epoch: Epoch


class Control(Message, frozen=True, array_like=True, tag=8):
    """First frame of a control stream."""


class Attach(Message, frozen=True, kw_only=True, array_like=True, tag=9):
    """First frame of a stream for the large buffers of one call, to its callee or to its caller."""

    call: CallId
    to_caller: bool


ToCallee = RequestHeader | ItemHeader | EndHeader | CancelHeader | CreditHeader
ToCaller = AnswerHeader | ItemHeader | ErrorHeader | CreditHeader | WelcomeHeader
First = Control | Attach

_encode = msgspec.msgpack.Encoder().encode
_to_callee: Final[msgspec.msgpack.Decoder[ToCallee]] = msgspec.msgpack.Decoder(ToCallee)
_to_caller: Final[msgspec.msgpack.Decoder[ToCaller]] = msgspec.msgpack.Decoder(ToCaller)
_first: Final[msgspec.msgpack.Decoder[First]] = msgspec.msgpack.Decoder(First)


def frame(header: Header | First, body: Sequence[bytes | memoryview] = ()) -> bytes:
    """One frame as one run of bytes. Its buffers are small (large ones go aside), so a copy is cheaper than pieces."""
    head = _encode(header)
    size = sum(map(len, body))
    return b"".join((PREFIX.pack(len(head), size), head, *body))


def to_callee(data: bytes) -> ToCallee:
    """Read a header that a caller sent. Raises PeerError."""
    try:
        return _to_callee.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _invalid(error) from error


def to_caller(data: bytes) -> ToCaller:
    """Read a header that a callee sent. Raises PeerError."""
    try:
        return _to_caller.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _invalid(error) from error


def first(data: bytes) -> First:
    """Read the header that a stream begins with. Raises PeerError."""
    try:
        return _first.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _invalid(error) from error


def _invalid(error: Exception) -> PeerError:
    return PeerError(f"A call's header is not valid: {str(error)[:200]}.")


def check_body(header: Header, body_bytes: int) -> None:
    """Check that a frame carries what its header announces. Raises PeerError."""
    if not isinstance(header, Content):
        expected = 0
    elif header.aside:
        expected = header.payload_bytes
    elif header.bulk_bytes:
        msg = "A transfer is announced in a frame; it belongs on a stream of its own."
        raise PeerError(msg)
    elif header.tensors:
        expected = header.payload_bytes + sum(map(size_bytes, header.tensors))
    else:
        expected = header.payload_bytes
    if body_bytes != expected:
        msg = f"A frame with {expected} B is announced, but {body_bytes} B came."
        raise PeerError(msg)


def aside_bytes(header: Content) -> int:
    """The memory that tensors on the attached stream take. Raises PeerError for a tensor that cannot be."""
    return sum(map(size_bytes, header.tensors)) if header.aside else 0


class InternalError(LeptonError):
    """A handler failed for a reason that is no business of its caller; travels as ``internal``."""


_KINDS: Final[tuple[tuple[ErrorKind, type[LeptonError]], ...]] = (
    ("usage", UsageError),
    ("refused", Refused),
    ("busy", Busy),
    ("peer", PeerError),
    ("uncertain", Uncertain),
    ("link", LinkError),
    ("internal", InternalError),
)


def error_header(call: int, error: LeptonError) -> ErrorHeader:
    """Put an exception into words."""
    kind: ErrorKind = next((name for name, cls in _KINDS if isinstance(error, cls)), "cancelled")
    retry = min(max(error.retry_after_s, 0.0), limits.CALL_TIMEOUT_S_MAX) if isinstance(error, Busy) else 0.0
    return ErrorHeader(call=call, error=kind, reason=reason_of(error), retry_after_s=retry)


def reason_of(error: Exception) -> str:
    """Return an error's text as it may travel: of bounded length, without lone surrogates."""
    return str(error)[: limits.REASON_CHARACTERS_MAX].encode(errors="replace").decode()


def exception(header: ErrorHeader, who: str, method: str) -> LeptonError:
    """Make the callee's words an exception of the caller."""
    error = _exception(header, who, method)
    error.told = True
    return error


def _exception(header: ErrorHeader, who: str, method: str) -> LeptonError:
    match header.error:
        case "busy":
            return Busy(header.reason, header.retry_after_s)
        case "peer":  # what we sent was malformed in its eyes: our bug or a release apart, not its offence
            return LinkError(f"{who} could not read our {method!r}: {header.reason}")
        case "internal" | "cancelled":
            return LinkError(f"{method!r} failed on {who}: {header.reason or 'it was cancelled there'}")
        case kind:
            return dict(_KINDS)[kind](header.reason)
