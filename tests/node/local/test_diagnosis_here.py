"""What the doctor reads of this machine: its ports and who has them, its interfaces; it changes nothing."""

import os
import socket
from pathlib import Path

from lepton.node.config import Config, WebConfig
from lepton.node.diagnosis import here


def test_a_port_that_is_taken_names_who_has_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        web = WebConfig(listen=f"127.0.0.1:{port}")
        free, used = here.ports(Config(listen=("127.0.0.1:0", f"127.0.0.1:{port}"), web=web))
        assert (free.what, used.what) == ("listen", "web.listen")
        assert f"process {os.getpid()}" in used.taken_by
    (now_free,) = here.ports(Config(listen=(f"127.0.0.1:{port}",), web=WebConfig(listen="off")))
    assert (now_free.taken_by, now_free.trouble) == ("", "")


def test_an_address_that_this_machine_does_not_have_is_a_trouble() -> None:
    (port,) = here.ports(Config(listen=("203.0.113.77:4001",)))
    assert port.trouble
    assert not port.taken_by


def test_loopback_is_known_and_the_machine_has_its_figures(tmp_path: Path) -> None:
    loopback = [one for one in here.interfaces() if one.kind == "loopback"]
    assert any("127.0.0.1/8" in one.addresses for one in loopback)
    (tmp_path / "x").write_text("")
    found = here.machine(tmp_path / "not" / "made")
    assert found.cores >= 1
    assert found.disk_free_bytes
    assert found.newest_file_s == 0.0
    assert here.machine(tmp_path).newest_file_s > 0
    assert not (tmp_path / "not").exists()
    assert isinstance(here.walls(), tuple)
