"""The owner's socket: private, found again from the folder's name, and no command can end the node but `stop`."""

import os
import stat
from pathlib import Path

import msgspec
import pytest
import trio
from lepton.mesh.errors import LeptonError, LinkError, PeerError, UsageError
from lepton.mesh.frames import encode
from lepton.mesh.identity import short
from lepton.mesh.messages import pack
from lepton.node import Node
from lepton.node.control import Control, NoNode, Request, serve_control, socket_path
from lepton.node.streamed import STREAMED, Arguments, Tell

from .fakes import World, samples


async def test_commands_that_make_no_sense_cost_nothing(tmp_path: Path) -> None:
    world, stop = World(tmp_path), trio.Event()
    async with world.node("a") as node, trio.open_nursery() as nursery:
        await nursery.start(serve_control, node, stop)
        path = socket_path(node.home.path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        control = Control(node.home.path)
        status, _ = await control.ask("status")
        assert status["me"] == node.mesh.me
        for command, arguments, arrays in (
            ("predict", {}, [samples(1)]),
            ("predict", {"model": "x"}, []),
            ("invite", {"colour": "red"}, []),
            ("train", {}, []),
            ("export", {}, []),
        ):
            with pytest.raises(LeptonError, match=r"The node could not do this .* its log says more"):
                await control.ask(command, arguments, arrays)
        with pytest.raises(UsageError, match=r"No model 'x' is served in this mesh. There is none yet"):
            await control.ask("predict", {"model": "x"}, [samples(1)])
        with pytest.raises(PeerError, match=r"not a valid Request"):
            await control.ask("dance")  # of a later release
        async with await trio.open_unix_socket(str(path)) as stream:
            await stream.send_all(b"\xff" * 100)
            assert await stream.receive_some()  # it is told why
        async with await trio.open_unix_socket(str(path)) as stream:
            for piece in encode(pack(Request(command="status", json_bytes=3)), [b"{]!"]):
                await stream.send_all(piece)
            told = b""
            async for piece in stream:
                told += piece
            assert b"not valid JSON" in told
        async with await trio.open_unix_socket(str(path)):
            pass  # went away without a word
        assert (await control.ask("status"))[0]["mesh"] == "home"
        assert msgspec.json.encode(status)
        await control.ask("stop")
        await stop.wait()
        nursery.cancel_scope.cancel()
    assert not path.exists()
    with pytest.raises(NoNode, match=r"No node runs with the folder .* Start it with `lepton-node up`"):
        await control.ask("status")


async def test_errors_about_services_name_devices_and_others_keep_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(node: Node, arguments: Arguments, tell: Tell) -> object:
        raise LinkError(f"It is not known whether it ran on {short(node.mesh.me)}.")

    for command in ("call", "service", "generate"):
        monkeypatch.setitem(STREAMED, command, lost)
    world = World(tmp_path)
    async with world.node("a") as node, trio.open_nursery() as nursery:
        await nursery.start(serve_control, node, trio.Event())
        for command, who in (("call", "a"), ("service", "a"), ("generate", short(node.mesh.me))):
            with pytest.raises(LinkError, match=f"ran on {who}[.]$"):
                await Control(node.home.path).ask(command)
        nursery.cancel_scope.cancel()


async def test_a_folder_with_a_long_name_has_its_socket_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path / ("long" * 30))
    async with world.node("a") as node, trio.open_nursery() as nursery:
        await nursery.start(serve_control, node, trio.Event())
        path = socket_path(node.home.path)
        assert path.parent != node.home.path
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert (await Control(node.home.path).ask("status"))[0]["me"] == node.mesh.me
        me = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: me + 1)  # as if somebody else had made it first
        with pytest.raises(LeptonError, match=r"belongs to somebody else"):
            await Control(node.home.path).ask("status")
        monkeypatch.undo()
        nursery.cancel_scope.cancel()
    assert not path.parent.exists()
