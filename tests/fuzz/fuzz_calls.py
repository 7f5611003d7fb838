"""Fuzz both machines of calls: any frames, cut anywhere, between any commands, give PeerError (or LinkError for a
stream that the callee gave up) or nothing, and bounded queues.

``python -m tests.fuzz.fuzz_calls -max_total_time=60``. Most frames have a valid header, so that the fuzzer gets past
the decoder.
"""

from typing import Any

from .fuzzing import Data, main, watched

with watched("lepton.mesh.rpc.caller", "lepton.mesh.rpc.callee", "lepton.mesh.rpc.headers"):
    from lepton.mesh import limits
    from lepton.mesh.errors import Busy, LinkError, PeerError, Refused
    from lepton.mesh.frames import encode
    from lepton.mesh.rpc import headers
    from lepton.mesh.rpc.callee import Asked, Callee, ItemCame
    from lepton.mesh.rpc.caller import Caller
    from lepton.mesh.tensors import TensorSpec

KINDS: list[headers.Kind] = ["unary", "server_stream", "client_stream"]


def content(data: Data) -> dict[str, Any]:
    specs = tuple(
        TensorSpec(dtype=data.pick(["int8", "float64", "object"]), shape=(data.integer(0, 9),) * 2)
        for _ in range(data.integer(0, 2))
    )
    return {
        "payload_bytes": data.integer(0, 5),
        "tensors": specs,
        "aside": data.flag(),
        "bulk_bytes": data.integer(0, 1),
    }


def frame(data: Data) -> bytes:
    call = data.integer(0, 12)
    items = data.integer(0, limits.CREDIT_MAX)
    match data.integer(0, 7):
        case 0:
            return b"".join(encode(data.take(data.integer(0, 40))))
        case 1:
            kind = data.pick(KINDS)
            header: headers.Header = headers.RequestHeader(
                call=call,
                method="m",
                timeout_s=1.0,
                kind=kind,
                credit=items if kind == KINDS[1] else 0,
                **content(data),
            )
        case 2:
            header = headers.ItemHeader(call=call, **content(data))
        case 3:
            header = headers.EndHeader(call=call)
        case 4:
            header = headers.CancelHeader(call=call)
        case 5:
            header = headers.CreditHeader(call=call, items=items)
        case 6:
            header = headers.AnswerHeader(call=call, **content(data))
        case _:
            header = headers.ErrorHeader(call=call, error=data.pick(["busy", "usage", "internal"]))
    size = header.payload_bytes if isinstance(header, headers.Content) else 0
    return headers.frame(header, (bytes(size),))


def fuzz_callee(data: Data) -> None:
    callee, now, link = Callee(), 0.0, b""
    working: dict[int, int] = {}  # and the items that wait for each
    while data.left():
        link += frame(data)
        cut = data.integer(0, len(link))
        for event in callee.receive(link[:cut], now):
            if isinstance(event, Asked):
                working[event.call] = 0
                if event.header.kind == "client_stream":
                    callee.invite(event.call)
            elif isinstance(event, ItemCame):
                working[event.call] += 1
        link = link[cut:]
        now += data.integer(0, 1)
        callee.tick(now)
        if working and data.flag():
            call = data.pick(list(working))
            callee.fail(call, Refused("no"))
            del working[call]
        assert callee.in_flight == len(working) <= limits.CALLS_PER_PEER_MAX
        assert max(working.values(), default=0) <= limits.STREAM_ITEMS_MAX
        callee.take()


def fuzz_caller(data: Data) -> None:
    caller, now, link = Caller("them"), 0.0, b""
    while data.left():
        kind = data.pick(KINDS)
        credit = limits.STREAM_ITEMS_MAX if kind == KINDS[1] else 0
        header = headers.RequestHeader(call=caller.next_call, method="m", timeout_s=5.0, kind=kind, credit=credit)
        try:
            caller.start(header, b"", now=now)
        except Busy:
            assert caller.in_flight == limits.CALLS_OUT_PER_PEER_MAX
        if data.flag():
            caller.cancel(data.integer(0, 12))
        link += frame(data)
        cut = data.integer(0, len(link))
        caller.receive(link[:cut])
        link = link[cut:]
        now += data.integer(0, 1)
        caller.tick(now)
        caller.take()


# A call, and its answer.
SEEDS = [
    b"\x00\x00\x00\x01\x00\x00\x06\x00\x00\x00\x00\x13\x00",
    bytes(range(256)),
    bytes(range(255, -1, -1)) * 2,
    b"\x01\x02\x00\x01" * 50,
]


def one(raw: bytes) -> bool:
    data = Data(raw)
    try:
        (fuzz_callee if data.flag() else fuzz_caller)(data)
    except (PeerError, LinkError):
        return False
    return True


if __name__ == "__main__":
    main(one, SEEDS)
