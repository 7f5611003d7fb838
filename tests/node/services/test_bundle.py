"""Bundles: the same folder gives the same bytes, and what strangers send stays in its folder or is refused."""

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh import limits
from lepton.mesh.errors import LeptonError, PeerError, UsageError
from lepton.node.services.bundling.bundle import File, Index, clear, pack_folder, read_bundle, spec_of, unpack_bundle
from lepton.node.services.spec import MethodSpec, ServiceSpec

SPEC = ServiceSpec(
    name="eyes", version="1.0", entry="eyes:Eyes", methods=(MethodSpec(name="see", takes="{}", gives="{}"),)
)
MAGIC = b"lepton-bundle-1\n"


def folder(path: Path, **files: str | bytes) -> Path:
    for name, content in {"service.toml": 'entry = "eyes:Eyes"\n', "eyes.py": "class Eyes: ...\n", **files}.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def made(*files: tuple[str, bytes], sizes: dict[str, int] | None = None) -> bytes:
    index = msgspec.json.encode(Index(tuple(File(name, (sizes or {}).get(name, len(data))) for name, data in files)))
    return MAGIC + len(index).to_bytes(4, "big") + index + b"".join(data for _, data in files)


def test_the_same_folder_gives_the_same_bytes_wherever_it_lies(tmp_path: Path) -> None:
    first = folder(tmp_path / "a", **{"data/table.csv": "1,2\n", "run.sh": "#!/bin/sh\n"})
    (first / "run.sh").chmod(0o755)
    second = folder(tmp_path / "b" / "elsewhere", **{"run.sh": "#!/bin/sh\n"})
    (second / "run.sh").chmod(0o777)
    folder(second, **{"data/table.csv": "1,2\n", "__pycache__/eyes.pyc": "old", ".git/config": "[core]"})
    os.utime(second / "eyes.py", (0, 0))
    assert pack_folder(first, SPEC) == pack_folder(second, SPEC)
    folder(second, **{"data/table.csv": "1,3\n"})
    assert pack_folder(first, SPEC) != pack_folder(second, SPEC)


def test_what_was_packed_comes_out_again_once(tmp_path: Path) -> None:
    source = folder(tmp_path / "a", **{"data/table.csv": "1,2\n", "run.sh": "#!/bin/sh\n", "empty.py": ""})
    (source / "run.sh").chmod(0o755)
    bundle = read_bundle(pack_folder(source, SPEC))
    into = tmp_path / "bundles" / "abc"
    unpack_bundle(bundle, into)
    names = sorted(path.relative_to(into).as_posix() for path in into.rglob("*") if path.is_file())
    assert names == ["data/table.csv", "empty.py", "eyes.py", "run.sh", "service.toml", "spec.json"]
    assert (into / "data" / "table.csv").read_text() == "1,2\n"
    assert (into / "run.sh").stat().st_mode & 0o777 == 0o700
    assert (into / "eyes.py").stat().st_mode & 0o777 == 0o600
    assert spec_of(bundle) == SPEC
    (into / "eyes.py").write_text("changed")
    unpack_bundle(bundle, into)
    assert (into / "eyes.py").read_text() == "changed", "what is there is whole, and left alone"
    (into.parent / ".unpacking-killed").mkdir()
    clear(into.parent, frozenset({"abc"}))
    assert [path.name for path in into.parent.iterdir()] == ["abc"]


def test_what_cannot_be_unpacked_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = read_bundle(pack_folder(folder(tmp_path / "a"), SPEC))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "chmod", full)
        with pytest.raises(LeptonError, match="No space left"):
            unpack_bundle(bundle, tmp_path / "bundles" / "abc")
    assert list((tmp_path / "bundles").iterdir()) == []


def test_what_is_left_out_is_said_in_the_folder(tmp_path: Path) -> None:
    source = folder(tmp_path, **{"film.mp4": "x" * 1000, "notes/todo.txt": "", "data/notes.csv": ""})
    names = [file.path for file, _ in read_bundle(pack_folder(source, SPEC, leave_out=["*.mp4", "notes"])).files]
    assert names == ["data/notes.csv", "eyes.py", "service.toml", "spec.json"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("link", "is a link"), ("pipe", "no ordinary file"), ("a:b.py", "cannot be a name"), ("spec.json", "is written")],
)
def test_what_does_not_belong_into_a_bundle_is_named(tmp_path: Path, name: str, words: str) -> None:
    folder(tmp_path)
    if name == "link":
        (tmp_path / name).symlink_to("/etc/passwd")
    elif name == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).write_text("")
    with pytest.raises(UsageError, match=words) as raised:
        pack_folder(tmp_path, SPEC)
    assert str(tmp_path / name) in str(raised.value)
    pack_folder(tmp_path, SPEC, leave_out=[name])


def test_a_bundle_of_too_many_bytes_files_or_folders_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = "/".join(["d"] * limits.BUNDLE_DEPTH_MAX)
    with pytest.raises(UsageError, match="deeper than 16 folders"):
        pack_folder(folder(tmp_path / "deep", **{f"{deep}/file": ""}), SPEC)
    pack_folder(folder(tmp_path / "not-so-deep", **{f"{deep[2:]}/file": ""}), SPEC)
    source = folder(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(limits, "BUNDLE_FILES_MAX", 2)
        with pytest.raises(UsageError, match="more than 2 files"):
            pack_folder(source, SPEC)
    size = len(pack_folder(source, SPEC))
    with monkeypatch.context() as patch:
        patch.setattr(limits, "BUNDLE_BYTES_MAX", size)
        pack_folder(source, SPEC)
        patch.setattr(limits, "BUNDLE_BYTES_MAX", size - 1)
        with pytest.raises(UsageError, match="larger than any"):
            pack_folder(source, SPEC)
        patch.setattr(limits, "BUNDLE_BYTES_MAX", 10)
        with pytest.raises(UsageError, match="leave_out"):
            pack_folder(source, SPEC)


@pytest.mark.parametrize(
    "name",
    [
        "../out",
        "/etc/passwd",
        "a/../../out",
        "a//b",
        "a/",
        ".",
        "..",
        ".hidden",
        "a\\b",
        "c:x",
        "nul\0",
        "a/.git/x",
        "ä",
    ],
)
def test_a_file_outside_of_the_folder_is_refused(name: str) -> None:
    with pytest.raises(PeerError, match="cannot be a name"):
        read_bundle(made((name, b"")))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no bundle"),
        (MAGIC, "no bundle"),
        (b"PK\x03\x04" + bytes(40), "no bundle"),
        (MAGIC + (2**32 - 1).to_bytes(4, "big"), "said to have 4,294,967,295 B"),
        (
            MAGIC + (limits.BUNDLE_INDEX_BYTES_MAX + 1).to_bytes(4, "big") + bytes(2 * limits.MIB),
            "said to have 1,048,577",
        ),
        (MAGIC + (4).to_bytes(4, "big") + b"null", "not valid"),
        (MAGIC + (13).to_bytes(4, "big") + b'{"files": []}', "not valid"),
        (made(("a", b"1"), ("a", b"2")), "twice"),
        (made(("b", b"1"), ("a", b"2")), "not in order"),
        (made(("A", b"1"), ("a", b"2")), "case alone"),
        (made(("a", b"1"), ("a/b", b"2")), "the other's folder"),
        (made(("a", b"1")) + b"more", "where its files say"),
        (made(("a", b"1"), sizes={"a": 2**40}), "where its files say"),
        (bytes(limits.BUNDLE_BYTES_MAX + 1), "larger than any"),
    ],
)
def test_what_is_no_bundle_is_refused_before_anything_is_written(data: bytes, words: str) -> None:
    with pytest.raises(PeerError, match=words):
        read_bundle(data)


@given(st.binary(max_size=200), st.integers(0, 30))
def test_damage_is_a_peers_error_and_nothing_else(noise: bytes, at: int) -> None:
    whole = made(("a.py", b"1"), ("b/c.py", b"22"))
    damaged = whole[:at] + noise + whole[at + len(noise) :]
    try:
        bundle = read_bundle(damaged)
    except PeerError:
        return
    assert sum(file.size_bytes for file, _ in bundle.files) <= len(damaged)


@pytest.mark.parametrize("spec", [b"{}", b"[", b'{"name": "eyes"}', b"\xff"])
def test_a_description_that_makes_no_sense_is_refused(spec: bytes) -> None:
    with pytest.raises(PeerError, match="not valid"):
        spec_of(read_bundle(made(("spec.json", spec))))
    with pytest.raises(PeerError, match="has no spec"):
        spec_of(read_bundle(made(("other.json", spec))))
