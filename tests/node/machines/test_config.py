"""A configuration is right, or one sentence names the key that is not and what it could have been."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.errors import UsageError
from lepton.node.config import BlobsConfig, Config, ServeConfig, did_you_mean, load_config, parse_size


def write(folder: Path, text: str) -> Path:
    path = folder / "node.toml"
    path.write_text(text, "utf-8")
    return path


def test_without_a_file_there_are_defaults(tmp_path: Path) -> None:
    config = load_config(tmp_path / "node.toml")
    assert config == Config()
    assert config.memory_bytes > 1_000_000  # half of this machine's


def test_a_file_is_read_and_overrides_win_key_by_key(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'name = "a"\nlisten = ["127.0.0.1:0"]\n[serve]\nmemory = "18kB"\n[blobs]\ndisk = "20GB"\n[data]\nx = "x.npz"\n',
    )
    assert load_config(path) == Config(
        name="a",
        listen=("127.0.0.1:0",),
        serve=ServeConfig(memory="18kB"),
        blobs=BlobsConfig(disk="20GB"),
        data={"x": "x.npz"},
    )
    config = load_config(path, {"name": "b", "data": {"y": "y.csv@last"}, "serve": {}})
    assert config.name == "b"
    assert config.data == {"x": "x.npz", "y": "y.csv@last"}
    assert config.memory_bytes == 18_000
    assert config.blobs_bytes == 20_000_000_000
    assert Config().blobs_bytes is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('interface = ["127.0.0.1"]', "there is no key 'interface'. Did you mean 'interfaces'?"),
        ('[serve]\nmemroy = "1GB"', "there is no key 'serve.memroy'. Did you mean 'serve.memory'?"),
        ("[serv]", "there is no key 'serv'. Did you mean 'serve'?"),
        (
            "zzz = 1",
            "no key 'zzz'. Valid here: name, listen, interfaces, bootstrap, serve, models, blobs, web, services, data.",
        ),
        ("name = 3", "Expected `str`, got `int` - at `$.name`"),
        ('serve = "1GB"', "Expected `object`, got `str` - at `$.serve`"),
        ('[data]\n"a b" = "x.npz"', "Expected `str` matching regex"),
        ("name = ", "is not a readable TOML file"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as raised:
        load_config(path)
    assert str(path) in str(raised.value)
    assert said in str(raised.value)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(UsageError, match="is not a readable TOML file"):
        load_config(tmp_path / "node.toml")
    with pytest.raises(UsageError, match="is not a readable TOML file"):
        load_config(tmp_path)


@pytest.mark.parametrize("overrides", [{"nmae": "a"}, {"serve": {"memry": "1"}}])
def test_a_misspelt_override_is_named_too(tmp_path: Path, overrides: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"Did you mean '(name|serve.memory)'"):
        load_config(tmp_path / "node.toml", overrides)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("4096", 4096), ("18kB", 18_000), ("2 GiB", 2 * 1024**3), ("1.5MB", 1_500_000), (" 3 b ", 3), ("0", 0)],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "kB", "-1", "1 TB", "1e3", "1,5MB", "٣MB", "one"])
def test_what_is_no_size_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="is not a size; write a number and B, kB"):
        parse_size(text)


@given(st.integers(0, 10**15), st.sampled_from(["", "B", "kB", "KB", "MiB", "gb"]))
def test_a_size_with_a_larger_unit_is_larger(number: int, unit: str) -> None:
    assert parse_size(f"{number}{unit}") >= number


def test_a_suggestion_is_near_or_all_there_are() -> None:
    assert did_you_mean("digts", ["digits", "faces"]) == " Did you mean 'digits'?"
    assert did_you_mean("zzz", ["digits", "faces"]) == " Valid here: digits, faces."
    assert did_you_mean("zzz", []) == " There is none yet."
