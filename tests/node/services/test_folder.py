"""A new folder is a service that works; one that is not a service's is told what it lacks."""

import subprocess
import sys
from pathlib import Path

import pytest
from lepton.mesh.errors import UsageError
from lepton.node.services.bundling.folder import MANIFEST, make_folder, read_manifest


def test_a_new_folder_is_a_service_that_works(tmp_path: Path) -> None:
    folder = tmp_path / "my-thing"
    files = make_folder(folder)
    assert read_manifest(folder).entry == "my_thing:MyThing"
    program = "import test_my_thing as t; t.test_it_greets()"
    subprocess.run([sys.executable, "-c", program], cwd=folder, check=True)
    assert {path.name for path in files} == {MANIFEST, "my_thing.py", "test_my_thing.py"}
    with pytest.raises(UsageError, match="File exists"):
        make_folder(folder)
    with pytest.raises(UsageError, match="cannot be a service's name"):
        make_folder(tmp_path / "Not A Name")


@pytest.mark.parametrize("text", ['entry = "no colon"', "entry = ", 'entry = "a:B"\nmore = 1', "#" * 70_000, "\xff"])
def test_a_manifest_that_does_not_read_is_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"service\.toml.*service new"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"service\.toml"):
        read_manifest(tmp_path)
