"""A node opens its endpoint as configured: off, on loopback without a token, elsewhere with one that is kept."""

import stat
from pathlib import Path
from typing import Any

import pytest
import trio
from lepton.mesh.errors import UsageError
from lepton.node.config import WebConfig, load_config
from lepton.node.home import Home
from lepton.node.web.listen import Listen
from lepton.node.web.opening import kept_token, open_web


class Nothing:
    """A mesh without models."""

    def models(self) -> list[Any]:
        return []

    generate = embed = None


async def status(url: str, **headers: str) -> int:
    host, _, port = url.removeprefix("http://").removesuffix("/v1").rpartition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        said = "".join(f"{name}: {value}\r\n" for name, value in ({"host": f"{host}:{port}"} | headers).items())
        await stream.send_all(f"GET /v1/models HTTP/1.1\r\n{said}\r\n".encode())
        with trio.fail_after(60):
            return int((await stream.receive_some()).split()[1])


async def test_it_can_be_off(tmp_path: Path) -> None:
    async with open_web(Nothing(), WebConfig(listen="off"), Home(tmp_path), owner="home") as web:  # type: ignore[arg-type]
        assert web is None


async def test_on_loopback_no_token_is_asked_for(tmp_path: Path) -> None:
    config = WebConfig(listen="127.0.0.1:0")
    async with open_web(Nothing(), config, Home(tmp_path), owner="home") as web:  # type: ignore[arg-type]
        assert web is not None
        assert web.remark == ""
        assert await status(web.url) == 200
    assert not (tmp_path / "web.token").exists()


async def test_elsewhere_a_token_is_made_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Listen, "is_loopback", False)  # tests do not listen elsewhere
    config = WebConfig(listen="127.0.0.1:0")
    tokens = set()
    for _ in range(2):
        async with open_web(Nothing(), config, Home(tmp_path), owner="home") as web:  # type: ignore[arg-type]
            assert web is not None
            path = tmp_path / "web.token"
            assert web.remark == f"; its API key is in {path}; neither the key nor the text is encrypted"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            tokens.add(token := path.read_text().strip())
            assert await status(web.url) == 401
            assert await status(web.url, authorization=f"Bearer {token}") == 200
            path.chmod(0o644)  # as after a backup
    assert len(tokens) == 1
    assert len(tokens.pop()) > 40


async def test_a_token_of_the_owners_own_counts(tmp_path: Path) -> None:
    config = WebConfig(listen="127.0.0.1:0", token="of-the-owner-himself")
    async with open_web(Nothing(), config, Home(tmp_path), owner="home") as web:  # type: ignore[arg-type]
        assert web is not None
        assert await status(web.url) == 401
        assert await status(web.url, authorization="Bearer of-the-owner-himself") == 200


def test_a_damaged_token_is_named(tmp_path: Path) -> None:
    path = tmp_path / "web.token"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"web.token cannot be read: .* Remove the file"):
        kept_token(path)


def test_where_it_listens_is_configured(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text('[web]\nlisten = "[::1]:80"\n')
    assert load_config(path).web.place == Listen("::1", 80)
    assert load_config(path, {"web": {"listen": "off"}}).web.place is None
    assert load_config(tmp_path / "none.toml").web.place == Listen("127.0.0.1", 7533)
    with pytest.raises(UsageError, match=r"web.listen: 'kitchen' is not ADDRESS:PORT, .* nor 'off'"):
        _ = load_config(path, {"web": {"listen": "kitchen"}}).web.place
