"""What askers and stages say to each other, and its bytes. Pure.

Steps of a session are frames of a fixed small header and one buffer; all else is rare and a msgpack message. A frame's
header begins with a byte that says what it is.
"""

import struct
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
import numpy as np

from ...mesh import frames, limits
from ...mesh.errors import PeerError
from ...mesh.identity import PeerId
from ...mesh.messages import Message, Name, Natural, Text, pack, unpack
from ...mesh.tensors import Array
from ..deployments import LAYERS_MAX
from .sampling import Sampling

PROTOCOL: Final = "/lepton/session/1"
BLOCK: Final = 64  # positions: of prompts that begin alike, whole blocks are computed once
POSITIONS_MAX: Final = 1_000_000  # of one session: ten times the longest contexts in use
FRAME_POSITIONS_MAX: Final = 1024  # in one frame: a long prompt's tokens come in several
FRAME_BYTES_MAX: Final = 16 * limits.MIB  # 256 positions between the widest layers in use (16,384 float32 numbers)
STOP_IDS_MAX: Final = 64
SESSION_BYTES: Final = 16
_ID_BYTES: Final = 4
_IDS: Final = 2**31  # and up: ids travel as whole numbers of 32 bits with a sign
# Hashes of a prompt's blocks that travel with it: 8,192 positions, and what a header of 64 KiB takes beside the rest.
BLOCKS_MAX: Final = 128
BLOCK_HASH_BYTES: Final = 16

SessionId = Annotated[bytes, msgspec.Meta(min_length=SESSION_BYTES, max_length=SESSION_BYTES)]
BlockHash = Annotated[bytes, msgspec.Meta(min_length=BLOCK_HASH_BYTES, max_length=BLOCK_HASH_BYTES)]
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Layer = Annotated[int, msgspec.Meta(ge=0, le=LAYERS_MAX + 2)]

Why = Literal["busy", "gone", "refused", "usage", "failed"]


class Open(Message, frozen=True, kw_only=True):
    """Take part in this session from now on, and pass this on along the route; what was said of older epochs is void.

    ``known`` is how many of its tokens the asker has; the last stage draws the next one behind them. ``positions`` is
    how many there may ever be, for which every stage sets memory aside.
    """

    session: SessionId
    epoch: Count
    name: Name
    version: Natural
    asker: PeerId
    route: Annotated[tuple[PeerId, ...], msgspec.Meta(min_length=1, max_length=64)]
    runs: Annotated[tuple[tuple[Layer, Layer], ...], msgspec.Meta(min_length=1, max_length=64)]
    index: Annotated[int, msgspec.Meta(ge=0, lt=64)] = 0
    known: Annotated[int, msgspec.Meta(ge=1, le=POSITIONS_MAX)]
    positions: Annotated[int, msgspec.Meta(ge=1, le=POSITIONS_MAX)]
    blocks: Annotated[tuple[BlockHash, ...], msgspec.Meta(max_length=BLOCKS_MAX)] = ()
    stop_ids: Annotated[tuple[TokenId, ...], msgspec.Meta(max_length=STOP_IDS_MAX)] = ()
    sampling: Sampling = Sampling()

    def check(self) -> "Open":
        """Raise PeerError where the fields contradict each other."""
        makes_sense = (
            self.index < len(self.route) == len(self.runs) == len(set(self.route))
            and self.known <= self.positions
            and self.runs[0][0] == 0
            and all(first < end for first, end in self.runs)
            and all(before[1] == after[0] for before, after in zip(self.runs, self.runs[1:], strict=False))
        )
        if not makes_sense:
            msg = "A session was opened along a route that makes no sense."
            raise PeerError(msg)
        return self


class Need(Message, frozen=True, kw_only=True):
    """I take part, and hold what is before ``position``: send me what comes from there on.

    ``loads`` are the seconds that a step takes now, waiting included, on this stage and those behind it.
    """

    session: SessionId
    epoch: Count
    position: Count
    loads: Annotated[tuple[Seconds, ...], msgspec.Meta(max_length=64)] = ()


class Ack(Message, frozen=True, kw_only=True):
    """I have run all before ``position``: more of a long prompt may come."""

    session: SessionId
    epoch: Count
    position: Count


class Broke(Message, frozen=True, kw_only=True):
    """To the asker: I cannot reach this peer of the route."""

    session: SessionId
    epoch: Count
    peer: PeerId
    reason: Text


class Declined(Message, frozen=True, kw_only=True):
    """To the asker: I do not take part (any more)."""

    session: SessionId
    epoch: Count
    why: Why
    reason: Text
    retry_after_s: Seconds = 1.0


class Probe(Message, frozen=True, kw_only=True):
    """From the asker: say whether you are there, and how far."""

    session: SessionId
    epoch: Count


class Alive(Message, frozen=True, kw_only=True):
    """The answer to a probe: how many positions were run, and whether something is to be done here."""

    session: SessionId
    epoch: Count
    state: Literal["unknown", "waiting", "working", "idle"]
    length: Count = 0
    asked: bool = False  # the stage behind it has said what it needs
    load_s: Seconds = 0.0


class Close(Message, frozen=True, kw_only=True):
    """From the asker: forget this session, unless a later epoch than this was opened."""

    session: SessionId
    epoch: Count


class Data(NamedTuple):
    """Consecutive positions: their token ids and, behind the first stage, what its layers made of them.

    ``x`` is uint8 (T, bytes of a position), as it travels; None on the way to the first stage.
    """

    session: bytes
    epoch: int
    position: int
    ids: tuple[int, ...]
    x: Array | None = None

    @property
    def end(self) -> int:
        return self.position + len(self.ids)

    def part(self, begin: int, end: int) -> "Data":
        """Return the positions from ``begin`` up to, not including, ``end``."""
        if begin <= self.position and end >= self.end:
            return self
        cut = slice(max(begin - self.position, 0), end - self.position)
        x = None if self.x is None else self.x[cut]
        return Data(self.session, self.epoch, max(begin, self.position), self.ids[cut], x)


class Token(NamedTuple):
    """To the asker: the token that was drawn for this position."""

    session: bytes
    epoch: int
    position: int
    id: int


Rare = Open | Need | Ack | Broke | Declined | Probe | Alive | Close
Said = Rare | Data | Token

_DATA: Final = struct.Struct("<B16sIIH")
_TOKEN: Final = struct.Struct("<B16sIII")
_DATA_KIND: Final = 1
_TOKEN_KIND: Final = 2
_RARE: Final[dict[int, type[Any]]] = {
    16: Open, 17: Need, 18: Ack, 19: Broke, 20: Declined, 21: Probe, 22: Alive, 23: Close,
}  # fmt: skip
_KINDS: Final = {kind: number for number, kind in _RARE.items()}


def encode(said: Said) -> bytes:
    """Return the bytes of one frame."""
    match said:
        case Data(session, epoch, position, ids, x):
            header = _DATA.pack(_DATA_KIND, session, epoch, position, len(ids))
            body: tuple[bytes | memoryview, ...] = (np.array(ids, dtype="<i4").tobytes(),)
            if x is not None:
                body = (*body, np.ascontiguousarray(x).reshape(-1).data)
            return b"".join(frames.encode(header, body))
        case Token(session, epoch, position, id_):
            return b"".join(frames.encode(_TOKEN.pack(_TOKEN_KIND, session, epoch, position, id_)))
        case _:
            return b"".join(frames.encode(bytes((_KINDS[type(said)],)) + pack(said)))


def decoder() -> frames.FrameDecoder:
    """What cuts a stream of these into frames. It holds no more than one frame."""
    return frames.FrameDecoder(body_bytes_max=FRAME_BYTES_MAX, header_bytes_max=limits.HEADER_BYTES_MAX)


def decode(frame: frames.Frame) -> Said:
    """Read one frame. Raises PeerError for whatever nobody would say."""
    kind = frame.header[0] if frame.header else -1
    if kind == _DATA_KIND and len(frame.header) == _DATA.size:
        return _read_data(frame)
    if frame.body.nbytes:
        msg = f"A frame of a session (kind {kind}) carries {frame.body.nbytes} B that belong to nothing."
        raise PeerError(msg)
    if kind == _TOKEN_KIND and len(frame.header) == _TOKEN.size:
        token = Token(*_TOKEN.unpack(frame.header)[1:])
        if token.id >= _IDS or token.position >= POSITIONS_MAX:
            raise PeerError(f"A token {token.id} at {token.position} is none.")
        return token
    if kind not in _RARE:
        msg = f"A frame of a session is of no known kind ({kind})."
        raise PeerError(msg)
    said: Rare = unpack(memoryview(frame.header)[1:], _RARE[kind])
    return said.check() if isinstance(said, Open) else said


def _read_data(frame: frames.Frame) -> Data:
    _, session, epoch, position, count = _DATA.unpack(frame.header)
    ids_bytes = count * _ID_BYTES
    rest = frame.body.nbytes - ids_bytes
    if not 1 <= count <= FRAME_POSITIONS_MAX or rest < 0 or rest % count or position + count > POSITIONS_MAX:
        msg = f"A step of {count} positions carries {frame.body.nbytes} B."
        raise PeerError(msg)
    ids = np.frombuffer(frame.body[:ids_bytes], dtype="<i4")
    if (ids < 0).any():
        raise PeerError("A step names a negative token.")
    x = np.frombuffer(frame.body[ids_bytes:], dtype=np.uint8).reshape(count, -1) if rest else None
    return Data(session, epoch, position, tuple(ids.tolist()), x)


Send = Callable[[PeerId, Said], None]
