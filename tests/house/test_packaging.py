"""The wheel holds every file of the rooms that git holds and the kernel; the lock pins what is needed, nothing else."""

import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from zipfile import ZipFile

from lepton.node.kernels.native import library_path
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOMS = {"gossip", "mesh", "node", "simulations"}
KERNEL = re.compile(r"lepton/node/kernels/_native\.[\w.-]+")


def test_the_wheel_holds_what_git_holds(root: Path, tracked: list[Path], tmp_path: Path) -> None:
    for path in tracked:  # built from a copy: setuptools leaves folders behind, and would pack stale ones
        (tmp_path / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / path, tmp_path / "tree" / path)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(tmp_path), str(tmp_path / "tree")], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name and not KERNEL.fullmatch(name)]
        packed = {name: archive.read(name) for name in names}
        built = any(KERNEL.fullmatch(name) for name in archive.namelist())

    ours = [path for path in tracked if path == Path("__init__.py") or path.parts[0] in ROOMS]
    expected = {f"lepton/{path.as_posix()}": (root / path).read_bytes() for path in ours if path.suffix != ".md"}
    assert set(expected) - set(packed) == set(), "packages or package-data in pyproject.toml want a line"
    assert packed == expected
    assert built == (library_path() is not None), "where a compiler is, the wheel carries what it made"


def test_without_a_compiler_the_package_is_built_without_the_kernel(root: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-c", "from setuptools import setup; setup()", "--quiet", "build_ext"]
    places = ["--build-lib", str(tmp_path), "--build-temp", str(tmp_path)]
    environment = os.environ | {"CC": "a-compiler-that-is-not-here"}
    subprocess.run([*build, *places], cwd=root, env=environment, check=True, capture_output=True)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def needed() -> set[str]:
    """Names of all distributions that lepton-node[dev] may ask for, on any platform."""
    seen: set[tuple[str, str]] = set()
    waiting = [("lepton-node", ""), ("lepton-node", "dev")]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        with suppress(PackageNotFoundError):  # what another platform needs is not installed here
            for line in requires(name) or []:
                want = Requirement(line)
                if want.marker is None or "extra" not in str(want.marker) or want.marker.evaluate({"extra": extra}):
                    waiting += [(canonicalize_name(want.name), each) for each in ("", *want.extras)]
    return {name for name, _ in seen}


def test_the_lock_pins_what_is_needed_and_nothing_else(root: Path) -> None:
    lines = (root / "requirements.lock").read_text("utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+(; [\w ='_]+)?", line)] == [], (
        "neither hosts nor local builds"
    )
    pins = {canonicalize_name(name): pin for name, pin in (line.partition(";")[0].split("==") for line in lines)}
    declared = {canonicalize_name(Requirement(line).name) for line in requires("lepton-node") or []}
    assert declared - set(pins) == set(), "declared but not locked: run `make lock`"
    assert set(pins) - needed() - {"lepton-node"} == set(), "locked, but nothing needs it"
    installed = {name: version(name).partition("+")[0] for name in declared}
    assert installed == {name: pins[name] for name in declared}, "this environment is not the locked one"
