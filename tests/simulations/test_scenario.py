"""A scenario that cannot be played is an error that names the key, the value, or the nearest valid one."""

from pathlib import Path
from typing import Any

import pytest
from lepton.mesh.errors import UsageError
from lepton.simulations.scenario import load, read, shipped

LEAST: dict[str, Any] = {"about": "least", "nodes": 3, "duration_s": 60}


def test_the_least_scenario_can_be_read() -> None:
    assert read(LEAST, "file").names == ("n0", "n1", "n2")


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ({"node": 4}, "there is no key 'node'. Did you mean 'nodes'?"),
        ({"link": {"los": 0.1}}, "there is no key 'link.los'. Did you mean 'link.loss'?"),
        ({"crash": [{"at_s": 1, "nod": "n1"}]}, "there is no key 'crash.nod'. Did you mean 'crash.node'?"),
        ({"link": {"loss": -0.1}}, "link.loss: "),
        ({"link": {"loss": 1.0}}, "link.loss: "),
        ({"nodes": 0}, "nodes: "),
        ({"nodes": "four"}, "nodes: Expected `int`, got `str`"),
        ({"duration_s": 0}, "duration_s: "),
        ({"link": 3}, "link: "),
        ({"crash": [{"at_s": 1, "node": "n3"}]}, "there is no node 'n3'; the nodes are n0 to n2"),
        ({"crash": [{"at_s": 1}]}, "a crash names its node"),
        ({"crash": [{"at_s": 1, "node": "n1", "during": "lunch"}]}, "crash[0].during: "),
        ({"partition": [{"at_s": 2, "heal_s": 1, "groups": [["n0"], ["n1"]]}]}, "a partition heals after it begins"),
        ({"partition": [{"at_s": 1, "heal_s": 2, "groups": [["n0"], ["n0"]]}]}, "no node is in two of its groups"),
        ({"task": {"codec": "int9"}}, "there is no codec 'int9'. Did you mean 'int8'?"),
        ({"settle_s": 60}, "settle_s is the last part of duration_s"),
    ],
)
def test_what_cannot_be_is_named(added: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(LEAST | added, "my.toml")
    assert str(caught.value).startswith("my.toml: ")
    assert said in str(caught.value)


def test_a_file_is_read_and_a_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('about = "mine"\nnodes = 2\nduration_s = 30\n', "utf-8")
    assert load(str(tmp_path / "mine.toml")).about == "mine"
    assert load("quiet").nodes == 4


def test_a_name_that_is_misspelt_is_put_right() -> None:
    with pytest.raises(UsageError, match=r"no file 'quite'\. Did you mean 'quiet'"):
        load("quite")


@pytest.mark.parametrize("content", [b"nodes = ", b"\xff\xfe", b"nodes = 1\nnodes = 2"])
def test_what_is_no_toml_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises(UsageError, match="is not a readable TOML file"):
        load(str(tmp_path / "bad.toml"))


def test_every_shipped_scenario_says_what_it_is_about() -> None:
    for name, path in shipped().items():
        assert path.read_text("utf-8").startswith("# "), name
        assert load(name).about
