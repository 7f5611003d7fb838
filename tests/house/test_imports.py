"""The rooms and their directions: who may import whom, what a pure module may load, and no circles."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "gossip": {"gossip"},
    "mesh": {"mesh"},
    "node": {"node", "mesh", "gossip"},
    "simulations": {"simulations", "gossip", "mesh", "node"},
}
# The modules of mesh/ that reach the network or drive those that do. All others there are pure, like all of gossip/.
SHELLS = {
    *(
        "arrivals",
        "asking",
        "attached",
        "bulk",
        "calls",
        "channel",
        "dialler",
        "finding",
        "discovery",
        "door",
        "joining",
        "mesh",
        "methods",
        "muxer",
        "once",
        "overhearing",
    ),
    *(
        "picture",
        "probing",
        "revoking",
        "renewing",
        "records_layer",
        "serving",
        "surroundings",
        "tcp",
        "transport",
        "upgrade",
    ),
    *("noise", "stock", "tls"),  # handshakes: bytes in, bytes out, but with libp2p's payloads and certificates
}

HEAVY = {"trio", "libp2p", "torch"}  # a pure module loads none of them
SLOW = {"libp2p", "torch"}  # seconds that `lepton-node --help` must not take
SOCKETS = {"trio", "libp2p", "zeroconf", "multiaddr", "socket", "socketserver", "ssl", "asyncio", "http"}
CLOCKS = {"time", "sched", "threading"}  # time comes in from outside: `now`
FILES = {"os", "io", "pathlib", "shutil", "tempfile"}


@dataclass(frozen=True, slots=True)
class Import:
    target: str  # dotted, `lepton.…` for our own
    late: bool  # inside a function: not when the module is loaded

    @property
    def top(self) -> str:
        return self.target.partition(".")[0]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("lepton", *(parts[:-1] if parts[-1] == "__init__" else parts)))


MODULES = {name_of(path): path for room in MAY_IMPORT for path in sorted((ROOT / room).rglob("*.py"))}


def room_of(module: str) -> str:
    return module.split(".")[1]


def is_pure(module: str) -> bool:
    _, room, *rest = module.split(".")
    return room == "gossip" or (room == "mesh" and not SHELLS & set(rest))


def statements(node: ast.AST, *, late: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Import statements below `node`, without those that only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, late
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        else:
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from statements(child, late=late or function)


@cache
def imports_of(module: str) -> tuple[Import, ...]:
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = []
    for statement, late in statements(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(statement, ast.Import):
            found += [Import(alias.name, late) for alias in statement.names]
            continue
        above = package[: len(package) - statement.level + 1] if statement.level else []
        base = ".".join([*above, *filter(None, [statement.module])])
        for alias in statement.names:  # a name may be a module of its own
            full = f"{base}.{alias.name}"
            found.append(Import(full if full in MODULES else base, late))
    return tuple(found)


def loaded_with(module: str) -> set[str]:
    """What import statements name when `module` is loaded: ours in full, others by their top name."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in MODULES:
            waiting += [i.target if i.top == "lepton" else i.top for i in imports_of(name) if not i.late]
            waiting += [name.rpartition(".")[0]]  # its package's __init__ runs first
    return seen


def load(modules: list[str], forbidden: set[str]) -> str:
    """Load modules one by one in a fresh interpreter: a line for each that fails or loads what it must not."""
    program = f"""
import importlib, sys
for name in {modules!r}:
    before = set(sys.modules)
    try:
        importlib.import_module(name)
    except Exception as error:
        print(name, "cannot be imported:", repr(error))
    if extra := (set(sys.modules) - before) & {forbidden!r}:
        print(name, "loads", *sorted(extra))
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_room_may(module: str) -> None:
    for found in imports_of(module):
        assert found.top not in MAY_IMPORT, f"{module} imports {found.target} without the name lepton"
        if found.target.startswith("lepton."):
            assert room_of(found.target) in MAY_IMPORT[room_of(module)], f"{module} imports {found.target}"


@pytest.mark.parametrize("module", [m for m in MODULES if is_pure(m)])
def test_a_pure_module_reads_no_clock_and_opens_no_socket(module: str) -> None:
    forbidden = HEAVY | SOCKETS | CLOCKS | (FILES if room_of(module) == "gossip" else set())
    assert not {found.top for found in imports_of(module)} & forbidden


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) == "simulations"])
def test_a_simulation_reaches_no_socket(module: str) -> None:
    assert not {found.top for found in imports_of(module)} & SOCKETS
    assert not loaded_with(module) & SOCKETS


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {m: {i.target for i in imports_of(m) if i.target in MODULES and not i.late} - {m} for m in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        pytest.fail(" imports ".join(reversed(circle.args[1])))


def test_loading_pure_modules_loads_neither_trio_nor_libp2p_nor_torch() -> None:
    assert load([m for m in MODULES if is_pure(m)], HEAVY) == ""


def test_a_node_that_neither_trains_nor_serves_does_not_load_torch() -> None:
    assert load(["lepton.node.node"], {"torch", "transformers"}) == ""


def test_a_command_that_asks_the_running_node_loads_neither_libp2p_nor_torch() -> None:
    assert load(["lepton.node.__main__", "lepton.node.control"], SLOW) == ""


def test_help_is_quick() -> None:
    if "lepton.node.__main__" not in MODULES:
        pytest.skip("the command line is not written yet")
    program = f"""
import runpy, sys
sys.argv[1:] = ["--help"]
try:
    runpy.run_module("lepton.node.__main__", run_name="__main__")
finally:
    print("loaded:", *sorted(set(sys.modules) & {SLOW!r}))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1].strip() == "loaded:"
