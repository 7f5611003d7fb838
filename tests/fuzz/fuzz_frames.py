"""Fuzz the frame decoder and the headers of calls: any bytes, cut anywhere, give the same frames or PeerError."""

from .fuzzing import Data, main, watched

with watched("lepton.mesh.frames", "lepton.mesh.rpc.headers"):
    from lepton.mesh.errors import PeerError
    from lepton.mesh.frames import Frame, FrameDecoder
    from lepton.mesh.rpc import headers

BODY_BYTES_MAX = 2000
HEADER_BYTES_MAX = 500


def decoded(pieces: list[bytes]) -> list[Frame]:
    decoder = FrameDecoder(body_bytes_max=BODY_BYTES_MAX, header_bytes_max=HEADER_BYTES_MAX)
    frames: list[Frame] = []
    for piece in pieces:
        frames += decoder.receive(piece)
        held = len(decoder._header) + len(decoder._prefix) + len(decoder._body or b"")
        assert held <= HEADER_BYTES_MAX + BODY_BYTES_MAX + 8
    decoder.end()
    return frames


def one(raw: bytes) -> bool:
    data = Data(raw)
    cuts = Data(data.take(data.integer(0, 20)))
    stream = data.rest()
    try:
        whole = decoded([stream])
    except PeerError:
        whole = None
    try:
        cut = decoded(list(cuts.pieces(stream)))
    except PeerError:
        cut = None
    assert cut == whole, "how a stream is cut changes what it says"
    read = [_is_read(frame) for frame in whole or ()]
    return bool(read) and all(read)


def _is_read(frame: Frame) -> bool:
    read = 0
    for kind in (headers.to_callee, headers.to_caller, headers.first):
        try:
            header = kind(frame.header)
            read += 1
            if isinstance(header, headers.Header):
                headers.check_body(header, frame.body.nbytes)
        except PeerError:
            continue
    return bool(read)


SEEDS = [
    b"\x00" + headers.frame(headers.Control()),
    b"\x02\x01\x09"
    + headers.frame(headers.RequestHeader(call=1, method="m", timeout_s=1.0, payload_bytes=3), (b"abc",)),
    b"\x01\x03" + headers.frame(headers.AnswerHeader(call=1)) + headers.frame(headers.CancelHeader(call=2)),
    b"\x00" + headers.frame(headers.ErrorHeader(call=1, error="busy", reason="later", retry_after_s=0.1)),
    b"\x00" + headers.frame(headers.Attach(call=3, to_caller=True)),
    b"\x00" + headers.frame(headers.CreditHeader(call=3, items=16)) + headers.frame(headers.ItemHeader(call=3)),
]

if __name__ == "__main__":
    main(one, SEEDS)
