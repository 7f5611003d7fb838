"""The commands with which an author makes a service, looks at it and tries it."""

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from lepton.node.service_commands import service

CODE = '''
from collections.abc import AsyncIterator, Iterator
import numpy as np
from numpy.typing import NDArray
from lepton.node.services import method, service

print("imported")

@service("sums", version="1.0", memory="200MB")
class Sums:
    """Adds things."""
    @method(idempotent=True)
    def total(self, x: NDArray[np.float32], least: float = 0.0) -> float:
        """Add the numbers of an array."""
        return float(x.sum()) + least
    @method
    def up_to(self, n: int) -> Iterator[int]: yield from range(n)
    @method
    async def all(self, numbers: AsyncIterator[int]) -> int: return sum([n async for n in numbers])
'''


def run(*words: object, text: str = "") -> Result:
    return CliRunner().invoke(service, [str(word) for word in words], input=text)


def made(tmp_path: Path) -> Path:
    folder = tmp_path / "sums"
    assert run("new", folder).exit_code == 0
    (folder / "sums.py").write_text(CODE, "utf-8")
    return folder


def test_a_service_is_made_looked_at_and_tried(tmp_path: Path) -> None:
    folder = made(tmp_path)
    checked = run("check", folder)
    assert checked.output.splitlines() == [
        "sums 1.0: Adds things.",
        "  needs 200 MB, 1 core",
        "  total(x: array of float32, least: number = 0.0) -> number",
        "      Add the numbers of an array.",
        "      10 s, idempotent",
        "  up_to(n: integer) -> stream of integer",
        "      10 s",
        "  all(numbers: stream of integer) -> integer",
        "      10 s",
    ]
    assert msgspec.json.decode(run("check", folder, "--json").output)["entry"] == "sums:Sums"
    calls = 'total {"x": [[1, 2], [3, 4.5]]}\nup_to {"n": 3}\nall {"numbers": [1, 2, 3]}\nnothing\ntotal {"y": 1}\n'
    ran = run("run", folder, "--home", tmp_path / "home", text=calls)
    assert ran.stdout.splitlines() == ["10.5", "0", "1", "2", "6"]
    assert "sums has no method 'nothing'; it has total, up_to, all" in ran.stderr
    assert "Sums.total needs its parameter 'x'" in ran.stderr
    tried = run("try", folder, "total", "--json", "-", "--home", tmp_path / "home", text='{"x": [1], "least": 2}')
    assert tried.stdout == "3.0\n"
    assert "| imported" in tried.stderr


def test_who_tries_a_service_sees_where_it_failed_and_may_go_on(tmp_path: Path) -> None:
    folder = made(tmp_path)
    (folder / "sums.py").write_text(f"{CODE}    @method\n    def end(self) -> None: os._exit(1 // 0)\n", "utf-8")
    tried = run("try", folder, "end", "--home", tmp_path / "home")
    assert "NameError: name 'os' is not defined" in tried.stderr
    assert f'|   File "{folder}/sums.py", line ' in tried.stderr
    (folder / "sums.py").write_text(f"import os\n{CODE}    @method\n    def end(self) -> None: os._exit(3)\n", "utf-8")
    ran = run("run", folder, "--home", tmp_path / "home", text='end\ntotal {"x": [1]}\n')
    assert "ended by itself with status 3" in ran.stderr
    assert ran.stdout == "1.0\n"  # it was started again meanwhile


def test_an_environment_is_found_under_a_home_that_is_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(tmp_path)
    (folder / "requirements.lock").write_text("# nothing beyond Lepton's own\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    assert run("check", folder, "--home", "home").exit_code == 0
    assert run("try", "sums", "total", "--json", '{"x": [1]}', "--home", "home").stdout == "1.0\n"


def test_what_is_wrong_is_one_sentence(tmp_path: Path) -> None:
    folder = made(tmp_path)
    (folder / "sums.py").write_text(CODE.replace("n: int)", "n)"), "utf-8")
    checked = run("check", folder)
    assert checked.exit_code == 2
    assert "Sums.up_to does not say what its parameter 'n' is" in checked.output
    (folder / "sums.py").write_text(CODE + "    def setup(self) -> None: raise OSError('no camera')\n", "utf-8")
    tried = run("try", folder, "total", "--home", tmp_path / "home")
    assert tried.exit_code == 1
    assert "sums does not start: its setup failed: OSError: no camera" in tried.output


def test_a_device_that_it_needs_is_the_one_of_this_nodes_configuration(tmp_path: Path) -> None:
    folder = made(tmp_path)
    code = CODE.replace('"200MB"', '"200MB", devices=("camera",)')
    code += "    def setup(self, mesh) -> None: self.at = mesh.devices['camera']\n"
    (folder / "sums.py").write_text(f"{code}    @method\n    def camera(self) -> str: return self.at\n", "utf-8")
    home = tmp_path / "home"
    tried = run("try", folder, "camera", "--home", home)
    assert tried.exit_code == 2
    assert "sums needs the device 'camera': name it in this node's node.toml" in tried.output
    home.mkdir(exist_ok=True)
    (home / "node.toml").write_text('[services]\ndevices = {camera = "/dev/video7", lamp = "/dev/lamp"}\n', "utf-8")
    assert run("try", folder, "camera", "--home", home).stdout == '"/dev/video7"\n'
