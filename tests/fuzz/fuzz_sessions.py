"""Fuzz what comes into sessions: any frame is read or refused, and a stage bears any events and keeps its bounds."""

import numpy as np

from .fuzzing import Data as Raw
from .fuzzing import main, watched

with watched("lepton.node.generation.messages", "lepton.node.generation.stage", "lepton.node.generation.kept"):
    from lepton.mesh.errors import PeerError
    from lepton.mesh.identity import PeerId
    from lepton.node.generation import messages
    from lepton.node.generation.events import Came, Expired, Lost, Ran
    from lepton.node.generation.messages import Ack, Close, Data, Need, Open, Probe, Said, Token
    from lepton.node.generation.stage import Stage, StageConfig
    from lepton.node.generation.steps import Result, Step

PEERS = [PeerId(name) for name in ("me", "ann", "ben", "eve")]
SESSIONS = [bytes([number]) * 16 for number in range(4)]
BYTES = 4
RUNS = ((0, 2), (2, 4), (4, 6))
POSITIONS = 300
CACHE_BYTES = 4 * 320 * BYTES


def one(raw: bytes) -> bool:
    data = Raw(raw)
    return _frames(data.rest()) if data.flag() else _stage(data)


def _frames(stream: bytes) -> bool:
    try:
        read = [messages.decode(frame) for frame in messages.decoder().receive(stream)]
    except PeerError:
        return False
    for said in read:
        (again,) = messages.decoder().receive(messages.encode(said))
        assert repr(messages.decode(again)) == repr(said)
    return bool(read)


def _said(data: Raw) -> Said:
    session, epoch, position = data.pick(SESSIONS), data.integer(0, 5), data.integer(0, POSITIONS)
    match data.integer(0, 6):
        case 0 | 1:
            index = data.integer(0, 2)
            route = [*PEERS[1:3], *PEERS[3:]]
            route[index] = PEERS[0]
            return Open(
                session=session, epoch=epoch, name="m", version=1, asker=data.pick(PEERS), route=tuple(route),
                runs=RUNS, index=index, known=1 + position // 2, positions=1 + position,
            )  # fmt: skip
        case 2 | 3:
            count = data.integer(1, 100)
            x = np.zeros((count, data.pick([BYTES, BYTES, 1])), dtype=np.uint8) if data.flag() else None
            return Data(session, epoch, position, (7,) * count, x)
        case 4:
            return Need(session=session, epoch=epoch, position=data.pick([0, position, 2**32 - 1]))
        case 5:
            return Ack(session=session, epoch=epoch, position=data.pick([position, 2**32 - 1]))
        case _:
            kind = Probe if data.flag() else Close
            return kind(session=session, epoch=epoch)


def _stage(data: Raw) -> bool:
    index = data.integer(0, 1)
    config = StageConfig(cache_bytes_max=CACHE_BYTES, kept_bytes_max=1000, chunk=8, window=32, waiting_max=3)
    stage = Stage(PEERS[0], config, position_bytes=BYTES, input_bytes=BYTES if index else None)
    lengths: dict[int, int] = {}  # of caches, as an engine would have them
    step: Step | None = None
    now, ran = 0.0, 0
    while data.left():
        event: Came | Ran | Lost | Expired = Came(data.pick(PEERS), _said(data))
        match data.integer(0, 7):
            case 0 | 1 | 2 if step is not None:
                event, ran = Ran(tuple(_result(work.draw is not None, len(work.ids)) for work in step.work)), ran + 1
                step = None
            case 3:
                event = Lost(data.pick(PEERS), "lost", data.flag())
            case 4:
                now += data.integer(0, 40)
                event = Expired()
        for effect in stage.handle(event, now):
            if isinstance(effect, Step):
                assert step is None, "one step at a time"
                step = effect
                _carry_out(effect, lengths)
            else:
                messages.encode(effect.said)
        assert stage.promised_bytes <= CACHE_BYTES
        assert stage.waiting <= config.waiting_max
    return ran > 0


def _result(draws: bool, count: int) -> Result:
    return Result(token=3) if draws else Result(x=np.zeros((count, BYTES), dtype=np.uint8))


def _carry_out(step: Step, lengths: dict[int, int]) -> None:
    """As the worker does, and it asserts what an engine's caches do."""
    for op in step.ops:
        match type(op).__name__, *op:
            case "New", key:
                lengths[key] = 0
            case "Fork", key, of, length:
                assert length <= lengths[of]
                lengths[key] = length
            case "Truncate", key, length:
                assert length <= lengths[key]
                lengths[key] = length
            case "Drop", key:
                del lengths[key]
    for work in step.work:
        lengths[work.key] += len(work.ids)


def _seed() -> bytes:
    session, peer = 0, 1
    opening = bytes([peer, session, 1, 0, 100, 0, 0, peer, 7])  # by its asker, on the first stage
    return b"\x00\x00" + opening * 2


_OPEN = Open(
    session=SESSIONS[0], epoch=1, name="m", version=1, asker=PEERS[1], route=tuple(PEERS[:3]), runs=RUNS, known=3,
    positions=9,
)  # fmt: skip
SEEDS = [
    *(
        b"\x01" + messages.encode(said)
        for said in (
            _OPEN,
            Data(SESSIONS[0], 1, 3, (1, 2), np.zeros((2, 4), dtype=np.uint8)),
            Token(SESSIONS[0], 1, 3, 5),
            Need(session=SESSIONS[0], epoch=1, position=3, loads=(0.5,)),
        )
    ),
    _seed(),
    b"\x00" + bytes(range(256)) * 4,
    b"\x00" + bytes(range(255, -1, -1)) * 4,
    b"\x00\x01" + b"\x01\x00\x01\x00\x60\x00\x01\x00" * 60,
]

if __name__ == "__main__":
    main(one, SEEDS)
