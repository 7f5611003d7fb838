"""What a round of averaging costs: 2, 4 and 8 real processes on loopback, beside the same bytes over raw TLS.

Run ``python -m tests.bench.average`` from the root of the project (JSON=FILE writes flat JSON; arguments such as
``8x10 2x50`` choose peers and millions of parameters, ROUNDS and CODECS change the effort). The workload is hivemind's
(``DecentralizedAverager``, float32 vectors, everyone in one group). A peer is one process that holds a transport,
calls, the averaging machine and its shell, and no torch. Each round is followed by the same bytes between the same
processes over ``trio.SSLStream``; figures are medians of rounds, wall time from the first to begin to the last to end.

The codecs' own speed follows, in bytes of float32 per second beside memcpy. ``faults 20`` instead kills or freezes one
of four processes in the middle of a round, so many times, and looks whether all others come to the same model.

Aims: a quarter of hivemind's time and CPU in float32, an eighth in int8, and at most twice the time of TLS.
"""

import hashlib
import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from .stacks import REQUEST, STACKS, exactly

ROUNDS = int(os.environ.get("ROUNDS", "5"))
WARM = 2  # rounds without a common model before them, or in memory that was never touched
CODECS = os.environ.get("CODECS", "float32 int8 int4").split()
WORKLOADS = ["2x10", "4x10", "8x10"]
MESH = b"bench"
FAULT_PEERS, FAULT_WAIT_S = 4, 3.0
PIECE = memoryview(bytes(1024 * 1024))


# -- one process ------------------------------------------------------------------------------------------------------


class Me:
    """The part of an identity that the transport needs."""

    def __init__(self) -> None:
        from lepton.mesh.identity import PeerId
        from lepton.mesh.stock import ID, Ed25519PrivateKey

        self.seed = os.urandom(32)
        self.peer_id = PeerId(ID.from_pubkey(Ed25519PrivateKey.from_bytes(self.seed).get_public_key()).to_base58())


class Peer:
    """A member of the group: everything of a node that a round touches."""

    def __init__(self, transport: Any, nursery: trio.Nursery) -> None:
        from lepton.mesh.calls import Calls
        from lepton.mesh.grants import Authority

        self.transport, self.nursery = transport, nursery
        self.me = transport.peer_id
        self.calls = Calls(
            Authority(self.me, ("train:*",), 2**53),
            admit=self._admit,
            connection_to=self._connection_to,
            offend=lambda peer, why: say("offended", peer, why),
        )
        self.exchange: Any = None
        self.round = 0
        self.watched = False  # whether somebody is about to be killed

    def _connection_to(self, peer: Any) -> Any:
        from lepton.mesh.errors import LinkError

        if peer not in self.transport.connections:
            message = "it is not connected."
            raise LinkError(message)
        return self.transport.connections[peer]

    async def _admit(self, peer: Any) -> Any:
        from lepton.mesh.grants import Authority

        return Authority(peer, ("train:*",), 2**53)

    def begin(self, codec: str, dimension: int, members: tuple[str, ...]) -> None:
        """Be ready for rounds in this codec."""
        import numpy as np
        from lepton.gossip.averager import Averager
        from lepton.gossip.config import Config
        from lepton.mesh.calls import Empty, Incoming, Method
        from lepton.node.learning.exchange import MESSAGE_BYTES_MAX, METHOD, Exchange
        from lepton.node.learning.messages import RoundMessage

        self.members, self.round = members, 0
        seed = members.index(self.me)
        self.vector = np.random.default_rng(seed).standard_normal(dimension, dtype=np.float32)
        self.buffers = [np.zeros_like(self.vector) for _ in range(2)]
        config = Config(wait_s_initial=FAULT_WAIT_S) if self.watched else Config()
        averager = Averager(
            self.me, codec, mesh=MESH, dimension=dimension, codec_name=codec, rng_seed=seed, config=config
        )
        exchange = self.exchange = Exchange(self.calls, self.nursery, averager, scope=codec)

        async def take(call: Incoming[Empty]) -> None:
            async for item in call.items:
                if call.scope == codec:
                    exchange.take(call.caller, item)

        self.calls.serve(
            Method(
                name=METHOD, needs="train", takes=Empty, handler=take, kind="client_stream", items=RoundMessage,
                body_bytes_max=MESSAGE_BYTES_MAX,
            )
        )  # fmt: skip

    async def average(self) -> dict[str, Any]:
        from lepton.gossip.events import Ready

        into = self.buffers[self.round % 2]
        self.exchange.begin(Ready(self.round, self.vector, 1.0, self.members, into))
        finished = await self.exchange.outcome()
        self.round += 1
        report = finished.report
        return {
            "complete": report.complete and report.agreed,
            "bytes": report.bytes_sent,
            "phases": [report.opening_s, report.exchange_s, report.agreement_s],
            "sum": float(finished.vector[:1000].sum()),
            "agreed": report.agreed,
            "digest": hashlib.blake2b(finished.vector).hexdigest() if self.watched else "",
        }

    async def watch(self, peer: Any, connection: Any) -> None:
        """Tell the machine when a peer is gone, as a node does."""
        await connection.closed.wait()
        if self.exchange is not None:
            self.exchange.peer_left(peer)


async def tls(sessions: list[Any], size: int) -> None:
    """Send so many bytes to each other process, and take as many from each."""

    async def to(session: Any) -> None:
        one = await session.open()
        await one.send_all(REQUEST.pack(b"U", size))
        left = size
        while left:
            piece = PIECE[:left]
            await one.send_all(piece)
            left -= len(piece)
        await exactly(one, 1)
        await one.aclose()

    async with trio.open_nursery() as nursery:
        for session in sessions:
            nursery.start_soon(to, session)


async def peer() -> None:
    from lepton.mesh.calls import PROTOCOL
    from lepton.mesh.transport import open_transport

    found: list[Peer] = []

    async def answer(stream: Any) -> None:
        await found[0].calls.answer(stream)

    async def let_in(_connection: Any) -> None: ...

    async with (
        trio.open_nursery() as nursery,
        open_transport(Me(), on_connection=let_in, handlers={PROTOCOL: answer}) as transport,
        STACKS["tls"]().listening() as tls_address,
    ):
        found.append(Peer(transport, nursery))
        say(transport.peer_id, transport.addresses[0], tls_address)
        sessions: list[Any] = []
        while words := await line():
            sizes_begin, cpu_begin, at = _clear_peak(), time.process_time(), time.monotonic()
            outcome: dict[str, Any] = {}
            match words:
                case ["meet", others]:
                    sessions = await meet(transport, json.loads(others))
                case ["codec", name, dimension, members]:
                    found[0].begin(name, int(dimension), tuple(json.loads(members)))
                case ["round"]:
                    outcome = await found[0].average()
                case ["watch"]:
                    found[0].watched = True
                    for other, connection in transport.connections.items():
                        nursery.start_soon(found[0].watch, other, connection)
                case ["tls", size]:
                    await tls(sessions, int(size))
            now = time.monotonic()
            say(at, now, time.process_time() - cpu_begin, max(_peak_bytes(), sizes_begin), outcome)
        nursery.cancel_scope.cancel()


async def meet(transport: Any, others: list[list[str]]) -> list[Any]:
    sessions = []
    for peer_id, address, tls_address in others:
        if peer_id > transport.peer_id:
            await transport.dial(peer_id, [address], timeout_s=10)
        async with _lasting(tls_address) as session:
            sessions.append(session)
    while len(transport.connections) < len(others):  # noqa: ASYNC110  the other side dials
        await trio.sleep(0.01)
    return sessions


@asynccontextmanager
async def _lasting(address: str) -> AsyncIterator[Any]:
    async with STACKS["tls"]().session(address) as session:
        yield session  # it opens a connection for each stream, and holds none itself


def _clear_peak() -> int:
    """Let the kernel count the peak of memory anew, where it lets us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return 0


def _peak_bytes() -> int:
    for text in Path("/proc/self/status").read_text().splitlines():
        if text.startswith("VmHWM:"):
            return int(text.split()[1]) * 1024
    return 0


async def line() -> list[str]:
    text: str = await trio.to_thread.run_sync(sys.stdin.readline)
    return text.split()


def say(*values: Any) -> None:
    print(json.dumps(values), flush=True)  # noqa: T201  the parent reads it


# -- the parent -------------------------------------------------------------------------------------------------------


class Group:
    """So many peers, all connected to all."""

    def __init__(self, count: int) -> None:
        command = [sys.executable, "-m", "tests.bench.average", "peer"]
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
        ]
        self._known = [self._hear(process) for process in self._processes]
        self._members = sorted(known[0] for known in self._known)
        for process, known in zip(self._processes, self._known, strict=True):
            self._tell(process, "meet", _compact([other for other in self._known if other != known]))
        for process in self._processes:
            self._hear(process)

    def _tell(self, process: "subprocess.Popen[str]", *words: str) -> None:
        assert process.stdin
        process.stdin.write(" ".join(words) + "\n")
        process.stdin.flush()

    def _hear(self, process: "subprocess.Popen[str]") -> list[Any]:
        assert process.stdout
        text = process.stdout.readline()
        if not text:
            message = "a peer's process ended early"
            raise RuntimeError(message)
        return list(json.loads(text))

    def measure(self, *words: str) -> dict[str, Any]:
        """Let all do something at once."""
        for process in self._processes:
            self._tell(process, *words)
        heard = [self._hear(process) for process in self._processes]
        return {
            "wall": max(one[1] for one in heard) - min(one[0] for one in heard),
            "cpu": sum(one[2] for one in heard) / len(heard),
            "peak": max(one[3] for one in heard),
            "outcomes": [one[4] for one in heard],
        }

    def begin(self, codec: str, dimension: int) -> None:
        self.measure("codec", codec, str(dimension), _compact(self._members))

    def close(self) -> None:
        for process in self._processes:
            assert process.stdin
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()

    def fault(self, victim: int, after_s: float, *, kill: bool) -> list[dict[str, Any]]:
        """Kill or freeze one process in the middle of a round; return what came of it at the others, the frozen last.

        A machine under load may be done with the round by then; that is a trial too.
        """
        for process in self._processes:
            self._tell(process, "round")
        time.sleep(after_s)
        struck = self._processes[victim]
        struck.send_signal(signal.SIGKILL if kill else signal.SIGSTOP)
        outcomes = [self._hear(process)[4] for process in self._processes if process is not struck]
        if not kill:
            struck.send_signal(signal.SIGCONT)
            outcomes.append(self._hear(struck)[4])
        return outcomes


def faults(trials: int) -> None:
    """Raises RuntimeError when survivors do not agree, or two that say so hold different models."""
    dice = random.Random(trials)
    for trial in range(trials):
        kill, victim = trial % 2 == 0, dice.randrange(FAULT_PEERS)
        group = Group(FAULT_PEERS)
        group.measure("watch")
        group.begin("int8", 2_000_000)
        for _ in range(WARM):
            usual_s = group.measure("round")["wall"]
        after_s = dice.uniform(0, usual_s)
        begin = time.monotonic()
        outcomes = group.fault(victim, after_s, kill=kill)
        took_s = time.monotonic() - begin
        group.close()
        what = f"{'kill' if kill else 'freeze'} of {victim} after {after_s:.3f} s"
        survivors = outcomes[: FAULT_PEERS - 1]
        if not all(one["agreed"] for one in survivors) or len({o["digest"] for o in outcomes if o["agreed"]}) != 1:
            message = f"{what}: {outcomes}"
            raise RuntimeError(message)
        print(f"{what}: {len(survivors)} agreed, after {took_s:.2f} s in all")  # noqa: T201


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def bench(group: Group, count: int, millions: int, codec: str) -> dict[str, float]:
    """Measure rounds and the same bytes over TLS by turns. Raises RuntimeError when a round is not whole."""
    group.begin(codec, millions * 1_000_000)
    rounds, over_tls = [], []
    for number in range(ROUNDS + WARM):
        measured = group.measure("round")
        outcomes = measured["outcomes"]
        if not all(one["complete"] for one in outcomes) or len({one["sum"] for one in outcomes}) != 1:
            message = f"a round of {count} peers in {codec} did not give all the same mean: {outcomes}"
            raise RuntimeError(message)
        reference = group.measure("tls", str(outcomes[0]["bytes"] // (count - 1)))
        if number >= WARM:
            rounds.append(measured)
            over_tls.append(reference)
    what = f"{count}x{millions}M_{codec}"
    wall, wall_tls = _median(rounds, "wall"), _median(over_tls, "wall")
    return {
        f"round_s_{what}": wall,
        f"cpu_s_per_peer_{what}": _median(rounds, "cpu"),
        f"tls_s_{what}": wall_tls,
        f"tls_cpu_s_per_peer_{what}": _median(over_tls, "cpu"),
        f"round_vs_tls_limit_{what}": wall / wall_tls,
        f"cpu_vs_tls_{what}": _median(rounds, "cpu") / _median(over_tls, "cpu"),
        f"peak_mb_per_peer_{what}": max(one["peak"] for one in rounds) / 1e6,
    }


def codecs() -> dict[str, float]:
    """Measure each codec on a million normal values that stay in the cache's reach: the best of several tries."""
    import numpy as np
    from lepton.gossip.codecs import CODECS as ALL

    rng, figures = np.random.default_rng(0), dict[str, float]()
    x = rng.standard_normal(1 << 20, dtype=np.float32)
    copy = np.empty_like(x)
    figures["memcpy_gb_per_s"] = x.nbytes / _best_s(lambda: np.copyto(copy, x)) / 1e9
    for name, codec in ALL.items():
        data = codec.encode(x, rng)
        figures[f"encode_gb_per_s_{name}"] = x.nbytes / _best_s(lambda: codec.encode(x, rng)) / 1e9  # noqa: B023
        figures[f"decode_gb_per_s_{name}"] = x.nbytes / _best_s(lambda: codec.decode(data, x.size)) / 1e9  # noqa: B023
    print(", ".join(f"{key} {value:.2f}" for key, value in figures.items()))  # noqa: T201
    return figures


def _best_s(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(20):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def _median(measured: list[dict[str, Any]], what: str) -> float:
    return float(statistics.median(one[what] for one in measured))


def main(workloads: list[str]) -> None:
    figures: dict[str, float] = {}
    header = f"{'':>18}{'round s':>10}{'CPU s/peer':>12}{'TLS s':>8}{'TLS CPU':>9}{'/ TLS':>7}{'peak MB':>9}"
    print(header)  # noqa: T201
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LEPTON_BENCH_FOLDER"] = folder
        os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # two on busy cores wait for each other
        STACKS["tls"]()  # makes the certificate that all share
        for workload in workloads:
            count, millions = map(int, workload.split("x"))
            for codec in CODECS:
                group = Group(count)
                found = bench(group, count, millions, codec)
                group.close()
                figures |= found
                values = list(found.values())
                row = f"{f'{count}x{millions}M {codec}':>18}{values[0]:10.3f}{values[1]:12.3f}{values[2]:8.3f}"
                print(f"{row}{values[3]:9.3f}{values[4]:7.2f}{values[6]:9.0f}")  # noqa: T201
    figures |= codecs()
    if path := os.environ.get("JSON"):
        rounded = {key: round(value, 4) for key, value in figures.items()}
        Path(path).write_text(json.dumps(rounded, indent=1) + "\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["peer"]:
            trio.run(peer)
        case ["faults", trials]:
            with tempfile.TemporaryDirectory() as shared:
                os.environ["LEPTON_BENCH_FOLDER"] = shared
                STACKS["tls"]()
                faults(int(trials))
        case words:
            main(words or WORKLOADS)
