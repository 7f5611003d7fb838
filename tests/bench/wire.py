"""What the wire costs: raw TCP, trio.SSLStream, stock libp2p and ours, interleaved, in pairs of processes on this
machine.

Run ``python -m tests.bench.wire`` from the root of the project (JSON=FILE writes the ratios as flat JSON, ROUNDS and
MIB change the effort). Figures are medians; CPU is that of the busier of the two processes, user and system together,
because wall time says more about the machine's other work. Calls follow (``calls.py``). ``connect`` is TCP, security,
first stream and one echo; TLS shows certificates on both sides, as libp2p does.
"""

import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import trio

from . import calls
from .stacks import REQUEST, STACKS, TITLES, exactly, pour, swallow

ROUNDS = int(os.environ.get("ROUNDS", "5"))
BULK_BYTES = int(os.environ.get("MIB", "192")) * 1024 * 1024
STOCK_SHARE = 4  # stock is that much slower, and its figure as stable with less
CALLS = 400
CONNECTS = 40
STREAMS = 100
IDLE = 30  # connections held open, of as many clients


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
            gc.collect()
            say(cpu(), _resident())


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def client(name: str, address: str) -> None:
    tasks = {"up": up, "down": down, "call": call, "connect": connect, "stream": stream}
    async with STACKS[name]().session(address) as session, AsyncExitStack() as held:
        say("ready")
        while words := await line():
            begin, begin_cpu = time.perf_counter(), cpu()
            if words[0] == "hold":
                units = await hold(name, address, held)
            else:
                units = await tasks[words[0]](session, name)
            say(units, time.perf_counter() - begin, cpu() - begin_cpu)


async def hold(name: str, address: str, held: AsyncExitStack) -> int:
    """Connect as that many clients, whose connections stay open and idle."""
    for _ in range(IDLE):
        session = await held.enter_async_context(STACKS[name]().session(address))
        one = await session.connect()
        await one.send_all(REQUEST.pack(b"C", 1) + b"x")
        await exactly(one, 1)
    return IDLE


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
    # Stock refuses inbound connection number 251 of a process's lifetime.
    count = CONNECTS // STOCK_SHARE if name == "stock" else CONNECTS
    for _ in range(count):
        await _one_echo(await session.connect())
    return count


async def stream(session: Any, name: str) -> int:
    for _ in range(STREAMS):
        await _one_echo(await session.open())
    return STREAMS


async def _one_echo(one: Any) -> None:
    await one.send_all(REQUEST.pack(b"C", 1) + b"x")
    await exactly(one, 1)
    await one.aclose()


# -- the parent -------------------------------------------------------------------------------------------------------


class Pair:
    """A server process and a client process of one stack."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.title = TITLES[name]
        self._server = self._start("server", name)
        (address,) = self._hear(self._server)
        self._client = self._start("client", name, address)
        self._hear(self._client)

    def _start(self, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "tests.bench.wire", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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

    def idle_bytes(self) -> float:
        """What one more idle connection costs the server's process."""
        before = self._ask(self._server, "cpu")[1]
        count = self._ask(self._client, "hold")[0]
        after = self._ask(self._server, "cpu")[1]
        return float((after - before) / count)

    def close(self) -> None:
        for process in (self._client, self._server):
            assert process.stdin
            process.stdin.close()
        for process in (self._client, self._server):
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


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
        memory = {pair.title: pair.idle_bytes() for pair in pairs if pair.name != "stock"}  # nests badly
        for pair in pairs:
            pair.close()
    middle = {
        key: {what: statistics.median(one[what] for one in ones) for what in ("wall", "cpu")}
        for key, ones in found.items()
    }
    print_table({pair.name: pair.title for pair in pairs}, tasks, middle)
    print("kB of memory for an idle connection, a stream on it open:")  # noqa: T201
    print(", ".join(f"{title} {size / 1024:.0f}" for title, size in memory.items()))  # noqa: T201
    figures = ratios(middle) | calls.measure()
    print("calls, and all ratios:")  # noqa: T201
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
        ratio: float = middle[name, task]["cpu"] / middle["tls", task]["cpu"]
        return ratio

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
