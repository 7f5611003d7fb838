"""A service's life in a mesh of three real nodes, as an operator types it."""

import json
import signal
from pathlib import Path
from typing import Any

import trio
from lepton.node.control import Control

from .fakes import HERE, Up, assert_refused, eventually, processes_of, run, said

CODE = """
from lepton.node.services import method, service


@service("greeter", version="{version}", memory="256MB", cores=0.25)
class Greeter:
    def setup(self) -> None:
        print("version {version} is set up")
        {setup}

    @method(idempotent=True, timeout_s=20)
    def greet(self, name: str) -> str:
        return f"Hello, {{name}}, from {version}!"
"""


def write(folder: Path, version: str, setup: str = "pass") -> Path:
    folder.mkdir()
    (folder / "service.toml").write_text('entry = "greeter:Greeter"\n')
    (folder / "greeter.py").write_text(CODE.format(version=version, setup=setup))
    return folder


def listed(home: Path) -> dict[str, Any]:
    """Ask as `service list --json` does, without a process for each look."""
    found, _ = trio.run(Control(home).ask, "service", {"do": "list"})
    return found[0] if found else {}


def ready(home: Path) -> dict[str, str]:
    """Which device has an instance ready, and of what version."""
    return {its["device"]: its["version"] for its in listed(home).get("instances", ()) if its["state"] == "ready"}


def test_a_service_is_deployed_called_taken_back_replaced_and_removed(tmp_path: Path) -> None:
    names = ("kitchen", "attic", "cellar")
    homes = {name: tmp_path / name for name in names}
    said("mesh", "create", "home", home=homes["kitchen"])
    nodes: dict[str, Up] = {}

    def up(name: str) -> None:
        (homes[name] / "node.toml").write_text('[services]\nmemory = "1GB"\ncores = 1.0\n[web]\nlisten = "off"\n')
        nodes[name] = Up(homes[name], "--name", name)
        nodes[name].ready()

    try:
        up("kitchen")
        code = said("invite", "--uses", "2", home=homes["kitchen"])
        for name in names[1:]:
            said("join", code, *HERE, home=homes[name])
            up(name)
        home = homes["kitchen"]
        assert_refused(run("service", "update", write(tmp_path / "v1", "1.0"), home=home), 2, "No service 'greeter'")
        assert "greeter 1.0 runs." in said("service", "deploy", tmp_path / "v1", "--replicas", "2", home=home)
        assert sorted(ready(home).values()) == ["1.0", "1.0"]
        for name in names[:2]:  # of three devices two host it
            answer = said("call", "greeter.greet", "--json", '{"name": "Ada"}', home=homes[name])
            assert json.loads(answer) == "Hello, Ada, from 1.0!"
        assert "version 1.0 is set up" in said("service", "logs", "greeter", home=home)
        assert "greeter 1.0: 2 of 2 ready" in said("service", "list", home=home)

        broken = write(tmp_path / "v2", "2.0", 'raise RuntimeError("no camera")')
        assert_refused(run("service", "update", broken, home=home), 1, r"'greeter' 2.0 was taken back.*no camera")
        assert sorted(ready(home).values()) == ["1.0", "1.0"]
        assert "greeter 3.0 runs." in said("service", "update", write(tmp_path / "v3", "3.0"), home=home)

        gone = next(name for name in ready(home) if name != "kitchen")
        killed = nodes.pop(gone)
        killed.signal(signal.SIGKILL)
        killed.ended()
        survivors = {name for name in names if name != gone}
        eventually(lambda: ready(home) == dict.fromkeys(survivors, "3.0"), *nodes.values())
        assert "3.0" in said("call", "greeter.greet", "--json", '{"name": "Ada"}', home=home)

        other = next(homes[name] for name in survivors if name != "kitchen")
        assert_refused(run("service", "scale", "greeter", "1", home=other), 1, "deploy:greeter")  # a member
        said("service", "scale", "greeter", "1", home=home)
        eventually(lambda: len(ready(home)) == 1, *nodes.values())
        said("service", "rm", "greeter", home=home)
        eventually(lambda: not [line for line in processes_of(tmp_path) if "services.instance" in line])
    finally:
        for node in nodes.values():
            node.end()
