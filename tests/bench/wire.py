"""What the wire costs: raw TCP, trio.SSLStream, stock libp2p and ours, interleaved, in pairs of processes on this
machine.

Run ``python tests/bench/wire.py`` (JSON=FILE writes the ratios as flat JSON, ROUNDS and MIB change the effort). Figures
are medians; CPU is that of the busier of the two processes, user and system together, because wall time says more about
the machine's other work. ``connect`` is TCP, security, first stream and one echo; TLS shows certificates on both sides,
as libp2p does.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import trio

sys.path.insert(0, str(Path(__file__).parent))  # the stacks are no package; this file runs as a script

from stacks import REQUEST, STACKS, exactly, pour, swallow

ROUNDS = int(os.environ.get("ROUNDS", "5"))
BULK_BYTES = int(os.environ.get("MIB", "192")) * 1024 * 1024
STOCK_SHARE = 4  # stock is that much slower, and its figure as stable with less
CALLS = 400
CONNECTS = 40
STREAMS = 100
IDLE = 50


# -- one process ------------------------------------------------------------------------------------------------------


def cpu() -> float:
    return time.process_time()


async def line() -> list[str]:
    text: str = await trio.to_thread.run_sync(sys.stdin.readline)
    return text.split()


def say(*values: Any) -> None:
    print(json.dumps(values), flush=True)  # noqa: T201  the parent reads it


async def server(name: str) -> None:
    async with STACKS[name]().listening() as address:
        say(address)
        while await line():
            usage = resource.getrusage(resource.RUSAGE_SELF)
            say(cpu(), _resident(), usage.ru_maxrss)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def client(name: str, address: str) -> None:
    stack = STACKS[name]()
    async with stack.session(address) as session:
        say("ready")
        tasks = {"up": up, "down": down, "call": call, "connect": connect, "stream": stream, "idle": idle}
        while words := await line():
            begin, begin_cpu = time.perf_counter(), cpu()
            units = await tasks[words[0]](session, name)
            say(units, time.perf_counter() - begin, cpu() - begin_cpu)


async def up(session: Any, name: str) -> int:
    size = BULK_BYTES // (STOCK_SHARE if name == "stock" else 1)
    one = await session.open()
    await one.send_all(REQUEST.pack(b"U", size))
    await pour(one, size)
    await exactly(one, 1)
    await one.aclose()
    return size


async def down(session: Any, name: str) -> int:
    size = BULK_BYTES // (STOCK_SHARE if name == "stock" else 1)
    one = await session.open()
    await one.send_all(REQUEST.pack(b"D", size))
    await swallow(one, size)
    await one.aclose()
    return size


async def call(session: Any, name: str) -> int:
    one = await session.open()
    await one.send_all(REQUEST.pack(b"C", 256))
    for _ in range(CALLS):
        await one.send_all(bytes(256))
        await exactly(one, 256)
    await one.aclose()
    return CALLS


async def connect(session: Any, name: str) -> int:
    for _ in range(CONNECTS):
        await _one_echo(await session.connect())
    return CONNECTS


async def stream(session: Any, name: str) -> int:
    for _ in range(STREAMS):
        await _one_echo(await session.open())
    return STREAMS


async def _one_echo(one: Any) -> None:
    await one.send_all(REQUEST.pack(b"C", 1) + b"x")
    await exactly(one, 1)
    await one.aclose()


async def idle(session: Any, name: str) -> int:
    """Hold connections of different clients until the next command; the server's growth is what they cost."""
    return 0


# -- the parent -------------------------------------------------------------------------------------------------------


class Pair:
    """A server process and a client process of one stack."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.title = STACKS[name].name
        self._server = self._start("server", name)
        (address,) = self._hear(self._server)
        self._client = self._start("client", name, address)
        self._hear(self._client)

    def _start(self, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, __file__, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def _hear(self, process: "subprocess.Popen[str]") -> list[Any]:
        assert process.stdout
        text = process.stdout.readline()
        if not text:
            message = f"the {self.name} process ended early"
            raise RuntimeError(message)
        return list(json.loads(text))

    def _ask(self, process: "subprocess.Popen[str]", word: str) -> list[Any]:
        assert process.stdin
        process.stdin.write(word + "\n")
        process.stdin.flush()
        return self._hear(process)

    def measure(self, task: str) -> dict[str, float]:
        before = self._ask(self._server, "cpu")
        units, wall, client_cpu = self._ask(self._client, task)
        after = self._ask(self._server, "cpu")
        return {"wall": wall / units, "cpu": max(client_cpu, after[0] - before[0]) / units}

    def close(self) -> None:
        for process in (self._client, self._server):
            assert process.stdin
            process.stdin.close()
            process.wait(20)


def main() -> None:
    names = [name for name in STACKS if name in os.environ.get("STACKS", " ".join(STACKS)).split()]
    tasks = os.environ.get("TASKS", "up down call connect stream").split()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LEPTON_BENCH_FOLDER"] = folder
        pairs = [Pair(name) for name in names]
        found: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
        for task in tasks:
            for pair in pairs:
                pair.measure(task)  # warm
            for _ in range(ROUNDS):
                for pair in pairs:
                    found[pair.name, task].append(pair.measure(task))
        for pair in pairs:
            pair.close()
    middle = {
        key: {what: statistics.median(one[what] for one in ones) for what in ("wall", "cpu")}
        for key, ones in found.items()
    }
    print_table({pair.name: pair.title for pair in pairs}, tasks, middle)
    figures = ratios(middle)
    print(json.dumps(figures, indent=1))  # noqa: T201
    if path := os.environ.get("JSON"):
        Path(path).write_text(json.dumps(figures, indent=1) + "\n")


def print_table(titles: dict[str, str], tasks: list[str], middle: dict[tuple[str, str], dict[str, float]]) -> None:
    units = {"up": "MB/s", "down": "MB/s", "call": "us", "connect": "ms", "stream": "ms"}
    shape = {"MB/s": lambda s: 1e-6 / s, "us": lambda s: 1e6 * s, "ms": lambda s: 1e3 * s}
    print("".join([f"{'':16}", *(f"{f'{task} {units[task]}':>20}" for task in tasks)]))  # noqa: T201
    print("".join([f"{'':16}", *(f"{'CPU':>10}{'wall':>10}" for _ in tasks)]))  # noqa: T201
    for name, title in titles.items():
        row = [f"{title:16}"]
        for task in tasks:
            one = middle[name, task]
            row += [f"{shape[units[task]](one[what]):10.4g}" for what in ("cpu", "wall")]
        print("".join(row))  # noqa: T201


def ratios(middle: dict[tuple[str, str], dict[str, float]]) -> dict[str, float]:
    """The figures that are held to: above 1 is faster than TLS for bulk, and dearer than TLS for everything else."""

    def bulk(name: str) -> float:
        return min(middle["tls", way]["cpu"] / middle[name, way]["cpu"] for way in ("up", "down"))

    def dearer(name: str, task: str) -> float:
        return middle[name, task]["cpu"] / middle["tls", task]["cpu"]

    have = {name for name, _ in middle}
    did = {task for _, task in middle}
    out: dict[str, float] = {}
    for name, prefix in (("noise", ""), ("ours_tls", "tls_"), ("stock", "stock_")):
        if name in have and "tls" in have:
            if {"up", "down"} <= did:
                out[f"{prefix}bulk_vs_tls"] = bulk(name)
            for task, key in (("call", "echo_cpu_vs_tls_echo"), ("connect", "connect_cpu_vs_tls")):
                if task in did:
                    out[prefix + key] = dearer(name, task)
    return {key: round(value, 3) for key, value in out.items()}


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["server", name]:
            trio.run(server, name)
        case ["client", name, address]:
            trio.run(client, name, address)
        case _:
            main()
