"""A compressed folder is whole or not there, and where none can be made is said before the work begins."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from lepton.mesh.errors import LeptonError, UsageError
from lepton.node.compression import compress, quantise_folder
from lepton.node.compression.whole import new_folder
from safetensors import SafetensorError

from .folders import made

HIDDEN = ".small-"


def test_a_folder_has_its_name_only_when_all_is_in_it(tmp_path: Path) -> None:
    out = tmp_path / "deep/small"
    with new_folder(out) as work:
        (work / "one").write_text("1")
        assert not out.exists()
        assert work.name.startswith(HIDDEN)
    assert [path.name for path in out.parent.iterdir()] == ["small"]
    assert (out / "one").read_text() == "1"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), SafetensorError("No space left on device")]
)
def test_nothing_stays_on_a_full_disk(error: Exception, tmp_path: Path) -> None:
    def write() -> None:
        with new_folder(tmp_path / "small") as work:
            (work / "one").write_text("1")
            raise error

    with pytest.raises(LeptonError, match=r"small was not made: No space left on device\. Nothing stays"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_of_what_was_stopped(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "small"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_may_not_become_so_large_is_an_error_in_a_sentence(tmp_path: Path) -> None:
    made(tmp_path / "model", "llama")
    limited = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from lepton.mesh.errors import LeptonError\n"
        "from lepton.node.compression import quantise_folder\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))\n"
        "try:\n"
        f"    quantise_folder(Path({str(tmp_path / 'model')!r}), Path({str(tmp_path / 'small')!r}), bits=8)\n"
        "except LeptonError as error:\n"
        "    sys.exit(str(error))\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, check=False)
    assert "was not made" in done.stderr, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_where_no_folder_can_be_made_is_said_before_anything_is_done(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    made(tmp_path / "model", "llama")
    said = pytest.raises(UsageError, match="cannot be written: Not a directory; name another")
    with mock.patch("lepton.node.compression.folder._data", side_effect=AssertionError), said:
        quantise_folder(tmp_path / "model", tmp_path / "file/small")
    said = pytest.raises(UsageError, match="cannot be written: Not a directory; name another")
    with mock.patch("lepton.node.compression.search.compressing.search", side_effect=AssertionError), said:
        compress(tmp_path / "model", target="size=0.5x", out=tmp_path / "file/small")


def test_what_is_small_already_is_refused_before_the_search(tmp_path: Path) -> None:
    made(tmp_path / "model", "llama")
    quantise_folder(tmp_path / "model", tmp_path / "small", bits=8)
    with mock.patch("lepton.node.compression.search.compressing.search", side_effect=AssertionError):
        with pytest.raises(UsageError, match="small was rounded before"):
            compress(tmp_path / "small", target="size=0.5x", out=tmp_path / "smaller")
        (tmp_path / "program.json").write_text("{}")
        with pytest.raises(UsageError, match="holds a traced program"):
            compress(tmp_path, target="size=0.5x", out=tmp_path / "smaller")
    assert not (tmp_path / "smaller").exists()
