"""What a call costs: on the control stream, against a bare echo over trio.SSLStream (TLS 1.3) and over raw trio TCP.

Run ``python tests/bench/calls.py`` (JSON=FILE writes the figures as flat JSON; ROUNDS, CALLS and BULK_MB change the
effort). Server and client are processes of their own, the three kinds take turns, figures are medians. CPU is user and
system time: of both processes together, and of the busier. A call is 256 B each way: request and answer are messages
that are packed, checked and authorised; the echoes move the same 256 B and nothing else. The last part makes calls of
100 B one after another, first alone and then while transfers run over the same connection, both ways in turn.
"""

import json
import os
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import trio
from lepton.mesh.calls import PROTOCOL, Answer, Calls, Empty, Incoming, Method
from lepton.mesh.grants import Authority
from lepton.mesh.identity import Identity, PeerId
from lepton.mesh.messages import Message
from lepton.mesh.transport import Connection, Transport, open_transport

ROUNDS = int(os.environ.get("ROUNDS", "7"))
CALLS = int(os.environ.get("CALLS", "1500"))
BULK_BYTES = int(os.environ.get("BULK_MB", "500")) * 1_000_000
SECURITY = os.environ.get("SECURITY", "/noise")
KINDS = ("tcp", "tls", "call")
SIZE_BYTES = 256
SMALL_BYTES = 100
PAUSE_S = 0.002  # between small calls, so that those of a long transfer are a sample and not a load


class Note(Message, frozen=True):
    """So many bytes."""

    data: bytes


# -- the three kinds --------------------------------------------------------------------------------------------------

Call = Callable[[], Awaitable[Any]]


async def _echo(stream: Any) -> None:
    with suppress(trio.BrokenResourceError):  # the client just leaves
        while data := await stream.receive_some():
            await stream.send_all(data)


@asynccontextmanager
async def _echoing(wrap: Callable[[Any], Any]) -> AsyncIterator[str]:
    async def serve(stream: trio.SocketStream) -> None:
        await _echo(wrap(stream))

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield str(listeners[0].socket.getsockname()[1])
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _to_echo(port: str, wrap: Callable[[Any], Any]) -> AsyncIterator[Call]:
    stream = wrap(await trio.open_tcp_stream("127.0.0.1", int(port)))

    async def call() -> None:
        await stream.send_all(bytes(SIZE_BYTES))
        left = SIZE_BYTES
        while left:
            left -= len(await stream.receive_some(left))

    yield call


def _tls(*, server: bool) -> Callable[[Any], Any]:
    pem = Path(os.environ["LEPTON_BENCH_PEM"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(pem)
    context.load_cert_chain(pem)
    return lambda stream: trio.SSLStream(stream, context, server_side=server)


def make_pem(path: Path) -> None:
    """Write the certificate that both sides of the TLS echo show, P-256 as libp2p's."""
    from cryptography.hazmat.primitives import serialization
    from libp2p.security.tls.certificate import generate_self_signed_cert

    key, certificate = generate_self_signed_cert()
    pem = serialization.Encoding.PEM
    form = serialization.PrivateFormat.PKCS8
    path.write_bytes(certificate.public_bytes(pem) + key.private_bytes(pem, form, serialization.NoEncryption()))


@asynccontextmanager
async def open_calls() -> AsyncIterator[tuple[Transport, Calls]]:
    """A node that answers ``bench.echo`` and gives and takes transfers, to whoever connects."""
    me = Identity.generate()
    transport: Transport

    async def admit(peer: PeerId) -> Authority:
        return Authority(peer, ("bench",), 2**53)

    def offend(peer: PeerId, why: str) -> None:
        raise AssertionError(peer, why)

    async def let_in(_: Connection) -> None: ...

    async def echo(call: Incoming[Note]) -> Answer[Note]:
        return Answer(call.message)

    room = bytearray(BULK_BYTES)  # made once: half a second during which nobody would be answered

    async def give(call: Incoming[Empty]) -> Answer[Empty]:
        return Answer(Empty(), bulk=room)

    async def take(call: Incoming[Empty]) -> Answer[Empty]:
        assert call.bulk is not None
        await call.bulk.to(room)
        return Answer(Empty())

    mine = Authority(me.peer_id, ("bench",), 2**53)
    calls = Calls(mine, admit=admit, connection_to=lambda peer: transport.connections[peer], offend=offend)
    calls.serve(
        Method(name="bench.echo", needs="bench", takes=Note, handler=echo),
        Method(name="bench.give", needs="bench", takes=Empty, handler=give),
        Method(name="bench.take", needs="bench", takes=Empty, handler=take, bulk_bytes_max=2**40),
    )
    handlers = {PROTOCOL: calls.answer}
    async with open_transport(me, on_connection=let_in, handlers=handlers, security=[SECURITY]) as transport:
        yield transport, calls


# -- one process ------------------------------------------------------------------------------------------------------


async def _line() -> list[str]:
    line: str = await trio.to_thread.run_sync(sys.stdin.readline)
    return line.split()


def _say(*values: Any) -> None:
    print(json.dumps(values), flush=True)  # noqa: T201  the parent reads it


async def server(kind: str) -> None:
    """Serve one kind until the parent ends it; tell the CPU seconds used so far for each line that comes."""
    async with _listening(kind) as address:
        _say(address)
        while await _line():
            _say(time.process_time())


@asynccontextmanager
async def _listening(kind: str) -> AsyncIterator[str]:
    if kind == "call":
        async with open_calls() as (transport, _):
            yield f"{transport.peer_id},{transport.addresses[0]}"
    else:
        async with _echoing(_tls(server=True) if kind == "tls" else lambda stream: stream) as address:
            yield address


async def client(kind: str, address: str) -> None:
    """Do what the parent's lines say and tell what it took."""
    if kind != "call":
        async with _to_echo(address, _tls(server=False) if kind == "tls" else lambda stream: stream) as call:
            await _obey({"many": partial(_many, call)})
        return
    peer, where = address.split(",")
    async with open_calls() as (transport, calls):
        await transport.dial(PeerId(peer), [where], timeout_s=10)
        one = partial(calls.call, PeerId(peer), "bench.echo", Note(data=bytes(SIZE_BYTES)), Note)
        await _obey(
            {
                "many": partial(_many, one),
                "idle": partial(_idle, calls, PeerId(peer)),
                "down": partial(_under_bulk, calls, PeerId(peer), down=True),
                "up": partial(_under_bulk, calls, PeerId(peer), down=False),
            }
        )


async def _obey(tasks: dict[str, Call]) -> None:
    _say("ready")
    while words := await _line():
        wall, cpu = time.perf_counter(), time.process_time()
        result = await tasks[words[0]]()
        _say(time.perf_counter() - wall, time.process_time() - cpu, result)


async def _many(call: Call) -> None:
    for _ in range(CALLS):
        await call()


async def _small(calls: Calls, peer: PeerId) -> float:
    begin = time.perf_counter()
    await calls.call(peer, "bench.echo", Note(data=bytes(SMALL_BYTES)), Note)
    took = time.perf_counter() - begin
    await trio.sleep(PAUSE_S)
    return took


async def _idle(calls: Calls, peer: PeerId) -> list[float]:
    return [await _small(calls, peer) for _ in range(1000)]


async def _under_bulk(calls: Calls, peer: PeerId, *, down: bool) -> list[float]:
    took: list[float] = []

    async def sample() -> None:
        while True:
            took.append(await _small(calls, peer))

    buffer = bytearray(BULK_BYTES)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sample)
        if down:
            await calls.fetch(peer, "bench.give", Empty(), Empty, buffer)
        else:
            await calls.send(peer, "bench.take", Empty(), buffer, Empty)
        nursery.cancel_scope.cancel()
    return took


# -- the parent -------------------------------------------------------------------------------------------------------


class Pair:
    """A server process and a client process of one kind."""

    def __init__(self, kind: str) -> None:
        self._server = self._start("server", kind)
        (address,) = self._hear(self._server)
        self._client = self._start("client", kind, address)
        self._hear(self._client)

    def _start(self, *words: str) -> "subprocess.Popen[str]":
        command = [sys.executable, __file__, *words]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _hear(self, process: "subprocess.Popen[str]") -> list[Any]:
        assert process.stdout
        return list(json.loads(process.stdout.readline()))

    def _ask(self, process: "subprocess.Popen[str]", word: str) -> list[Any]:
        assert process.stdin
        process.stdin.write(word + "\n")
        process.stdin.flush()
        return self._hear(process)

    def measure(self, task: str) -> tuple[dict[str, float], Any]:
        """Do a task; returns seconds and what it found."""
        before = self._ask(self._server, "cpu")[0]
        wall, client_cpu, result = self._ask(self._client, task)
        server_cpu = self._ask(self._server, "cpu")[0] - before
        return {"wall": wall, "both": client_cpu + server_cpu, "busier": max(client_cpu, server_cpu)}, result

    def close(self) -> None:
        """End both."""
        for process in (self._client, self._server):
            assert process.stdin
            process.stdin.close()
            process.wait(20)


def measure() -> dict[str, float]:
    """All figures: microseconds a call, ratios to the TLS echo, milliseconds of small calls."""
    with TemporaryDirectory() as folder:
        pem = Path(folder, "bench.pem")
        make_pem(pem)
        os.environ["LEPTON_BENCH_PEM"] = str(pem)
        pairs = {kind: Pair(kind) for kind in KINDS}
        found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
        for turn in range(ROUNDS + 1):
            for kind, pair in pairs.items():
                seconds, _ = pair.measure("many")
                if turn:  # the first is to warm up
                    found[kind].append(seconds)
        small = {task: pairs["call"].measure(task)[1] for task in ("idle", "down", "up")}
        for pair in pairs.values():
            pair.close()
    return _figures(found, small)


def _figures(found: dict[str, list[dict[str, float]]], small: dict[str, list[float]]) -> dict[str, float]:
    middle = {
        (kind, what): statistics.median(one[what] for one in ones) / CALLS * 1e6
        for kind, ones in found.items()
        for what in ("wall", "both", "busier")
    }
    p99 = {task: statistics.quantiles(times, n=100)[98] * 1e3 for task, times in small.items()}
    return {
        **{f"{kind}_{what}_us": round(value, 1) for (kind, what), value in middle.items()},
        "call_cpu_vs_tls_echo": round(middle["call", "both"] / middle["tls", "both"], 3),
        "call_cpu_vs_tls_echo_busier": round(middle["call", "busier"] / middle["tls", "busier"], 3),
        "small_call_p99_ms_idle": round(p99["idle"], 3),
        "small_call_p99_ms_under_bulk": round(max(p99["down"], p99["up"]), 3),
        "small_calls_during_bulk": len(small["down"]) + len(small["up"]),
    }


def main() -> None:
    """Print the figures, and write them where JSON says."""
    figures = measure()
    print(json.dumps(figures, indent=1))  # noqa: T201
    if path := os.environ.get("JSON"):
        Path(path).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["server", kind]:
            trio.run(server, kind)
        case ["client", kind, address]:
            trio.run(client, kind, address)
        case _:
            main()
