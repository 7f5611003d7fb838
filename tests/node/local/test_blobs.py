"""A blob is what its name says or it is not there, whatever the disk does and whenever the process is killed."""

import errno
import hashlib
import os
import random
import stat
from pathlib import Path
from typing import Any

import pytest
from lepton.mesh import limits
from lepton.mesh.errors import LeptonError, PeerError, UsageError
from lepton.node.blobs import hashing, parts
from lepton.node.blobs.hashing import CHUNK_BYTES, checked_chunks, hash_of, only_chunk, ref_of, ref_of_bytes
from lepton.node.blobs.store import BlobStore
from lepton.node.blobs.virtual import SourceFile, Span, Virtual
from lepton.node.deployments import BlobRef

ABSENT = BlobRef(digest="0" * 64, size_bytes=3)
LARGE = random.Random(1).randbytes(3 * CHUNK_BYTES + 1)


def list_of(data: bytes) -> bytes:
    return b"".join(map(hash_of, hashing.pieces(data)))


def fetched(store: BlobStore, data: bytes, *indices: int) -> BlobRef:
    """Bring some chunks of a blob into a store, all of them by default."""
    ref = ref_of_bytes(data)
    part = store.begin(ref, checked_chunks(ref, list_of(data)))
    for index in indices or range(part.chunks.number):
        part.write(index, data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
    if part.is_whole:
        store.adopt(part)
    else:
        store.leave(part)
    return ref


# -- names -------------------------------------------------------------------------------------------------------------


def test_a_small_blob_is_named_by_its_leaf_and_a_large_one_by_its_root() -> None:
    assert ref_of_bytes(b"abc").digest == hashlib.sha256(b"\0abc").hexdigest()
    assert ref_of_bytes(b"").digest == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"  # RFC 6962
    leaves = b"".join(
        hashlib.sha256(b"\0" + LARGE[at : at + CHUNK_BYTES]).digest() for at in range(0, len(LARGE), CHUNK_BYTES)
    )
    assert len(leaves) == 4 * 32
    root = hashlib.sha256(b"\1" + len(LARGE).to_bytes(8, "big") + leaves).hexdigest()
    assert ref_of_bytes(LARGE) == BlobRef(digest=root, size_bytes=len(LARGE))


def test_a_list_of_chunks_is_believed_only_if_it_is_the_blobs() -> None:
    ref, hashes = ref_of_bytes(LARGE), list_of(LARGE)
    chunks = checked_chunks(ref, hashes)
    assert [chunks.size(i) for i in range(chunks.number)] == [CHUNK_BYTES] * 3 + [1]
    assert chunks.fits(3, LARGE[-1:])
    assert not chunks.fits(2, LARGE[-1:])
    other = BlobRef(digest=ref.digest, size_bytes=ref.size_bytes - 1)  # as many chunks, another size
    for wrong, claimed in ((hashes[:-32], ref), (hashes[32:] + hashes[:32], ref), (b"", ref), (hashes, other)):
        with pytest.raises(PeerError, match="a list of chunks is not that of the blob"):
            checked_chunks(claimed, wrong)
    assert only_chunk(ref) is None


def test_a_blob_larger_than_any_layer_has_no_name() -> None:
    size = limits.BLOB_BYTES_MAX
    hashes = bytes(32) * hashing.chunk_count(size)
    assert checked_chunks(ref_of(size, hashes), hashes).number == 4096
    more = hashes + bytes(32)
    with pytest.raises(UsageError, match="more than the 17,179,869,184"):
        ref_of(size + 1, more)
    root = hashlib.sha256(b"\1" + (size + 1).to_bytes(8, "big") + more).hexdigest()
    with pytest.raises(PeerError):
        checked_chunks(BlobRef(digest=root, size_bytes=size + 1), more)


# -- small ones --------------------------------------------------------------------------------------------------------


def test_bytes_come_back_under_their_digest(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "new" / "blobs")
    ref = store.put(b"abc")
    assert store.put(b"abc") == ref
    assert store.has(ref)
    assert not store.has(BlobRef(digest=ref.digest, size_bytes=4))
    assert store.names() == {ref.digest}
    assert BlobStore(tmp_path / "new" / "blobs").get(ref) == b"abc"
    assert stat.S_IMODE((tmp_path / "new" / "blobs" / ref.digest).stat().st_mode) == 0o600
    store.remove(ref.digest)
    store.remove(ref.digest)
    assert not store.has(ref)
    large = store.put(LARGE)
    assert BlobStore(tmp_path / "new" / "blobs").get(large) == LARGE
    (tmp_path / "new" / "blobs" / f"{large.digest}.chunks").unlink()  # a whole blob says its chunks again
    assert BlobStore(tmp_path / "new" / "blobs").get(large) == LARGE


def test_a_missing_blob_says_so(tmp_path: Path) -> None:
    with pytest.raises(LeptonError, match=f"blob {'0' * 64} is not here"):
        BlobStore(tmp_path).get(ABSENT)


@pytest.mark.parametrize("damage", [b"", b"ab", b"abd", b"abcd", b"x" * 100])
def test_a_damaged_blob_is_set_aside_and_can_be_put_again(tmp_path: Path, damage: bytes) -> None:
    store = BlobStore(tmp_path)
    ref = store.put(b"abc")
    (tmp_path / ref.digest).write_bytes(damage)
    if len(damage) == 3:
        with pytest.raises(LeptonError, match=f"blob {ref.digest} was damaged"):
            store.get(ref)
    assert not store.has(ref)
    (tmp_path / ref.digest).write_bytes(damage)
    store.put(b"abc")
    assert store.get(ref) == b"abc"


def test_a_blob_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / ("0" * 64)).mkdir()
    with pytest.raises(LeptonError, match=f"blob {'0' * 64} cannot be read: Is a directory"):
        BlobStore(tmp_path).get(ABSENT)


@pytest.mark.parametrize(
    "name", ["", "../secret", "a" * 63, "A" * 64, "a" * 65, "a" * 64 + "\n", "/" + "a" * 63, "g" * 64]
)
def test_what_is_no_name_reaches_no_file(tmp_path: Path, name: str) -> None:
    store = BlobStore(tmp_path)
    ref = BlobRef(digest=name, size_bytes=CHUNK_BYTES + 1)
    for use in (store.get, store.has, store.path):
        with pytest.raises(UsageError, match="is not a blob's name"):
            use(ref)
    with pytest.raises(UsageError, match="is not a blob's name"):
        store.remove(name)


def test_a_blob_too_large_for_memory_is_refused(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, in_memory_bytes_max=3)
    store.put(b"abc")
    with pytest.raises(UsageError, match="4 bytes is more than the 3"):
        store.put(b"abcd")
    with pytest.raises(UsageError, match="4 bytes is more than the 3"):
        store.get(BlobStore(tmp_path).put(b"abcd"))


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_disk_leaves_no_trace(tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BlobStore(tmp_path)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if step == "fsync" else Path, step, fail)
        with pytest.raises(LeptonError, match="No space left on device"):
            store.put(b"abc")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".writing-123").write_bytes(b"half")
    assert BlobStore(tmp_path).names() == set()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LeptonError, match="file: cannot keep blobs there"):
        BlobStore(tmp_path / "file")


# -- in chunks ---------------------------------------------------------------------------------------------------------


def test_a_blob_that_comes_in_chunks_is_there_when_it_is_whole_and_its_parts_before(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    ref = ref_of_bytes(LARGE)
    part = store.begin(ref, checked_chunks(ref, list_of(LARGE)))
    for index in (3, 1, 0):
        part.write(index, hashing.pieces(LARGE).__next__() if not index else LARGE[index * CHUNK_BYTES :][:CHUNK_BYTES])
        assert not store.has(ref)
        assert index in store.held(ref)
        assert store.read_chunk(ref, index) == LARGE[index * CHUNK_BYTES :][:CHUNK_BYTES]
    with pytest.raises(LeptonError, match="is not here"):
        store.read_chunk(ref, 2)
    part.write(2, LARGE[2 * CHUNK_BYTES :][:CHUNK_BYTES])
    store.adopt(part)
    assert store.get(ref) == LARGE
    assert list(store.held(ref)) == [0, 1, 2, 3]
    assert {path.name for path in tmp_path.iterdir()} == {ref.digest, f"{ref.digest}.chunks"}


def test_a_wrong_chunk_is_not_kept(tmp_path: Path) -> None:
    ref = ref_of_bytes(LARGE)
    part = BlobStore(tmp_path).begin(ref, checked_chunks(ref, list_of(LARGE)))
    for wrong in (b"", LARGE[:CHUNK_BYTES], LARGE[CHUNK_BYTES : 2 * CHUNK_BYTES - 1]):
        with pytest.raises(PeerError, match=r"chunk 1 of the blob .* is not what its hash says"):
            part.write(1, wrong)
    assert part.have == set()
    part.close()


def test_after_a_kill_whole_chunks_are_known_again_and_torn_ones_are_not(tmp_path: Path) -> None:
    ref = fetched(BlobStore(tmp_path), LARGE, 0, 1, 3)
    with (tmp_path / f"{ref.digest}.part").open("r+b") as file:  # the disk got only half of one
        file.seek(CHUNK_BYTES + 1000)
        file.write(bytes(1000))
    again = BlobStore(tmp_path)
    assert not again.has(ref)
    assert list(again.held(ref)) == []
    chunks = again.chunks(ref)
    assert chunks is not None
    part = again.begin(ref, chunks)
    assert part.have == {0, 3}
    for index in (1, 2):
        part.write(index, LARGE[index * CHUNK_BYTES :][:CHUNK_BYTES])
    again.adopt(part)
    assert again.get(ref) == LARGE


def test_a_damaged_chunk_is_all_that_is_fetched_again(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    ref = fetched(store, LARGE)
    store.require_intact(ref)
    with (tmp_path / ref.digest).open("r+b") as file:
        file.seek(2 * CHUNK_BYTES)
        file.write(b"damage")
    with pytest.raises(LeptonError, match="was damaged on disk and is set aside"):
        store.require_intact(ref)
    assert not store.has(ref)
    part = store.begin(ref, checked_chunks(ref, list_of(LARGE)))
    assert part.have == {0, 1, 3}
    part.close()


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync", "open"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_is_an_error_and_nothing_is_taken_for_whole(
    tmp_path: Path, call: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BlobStore(tmp_path)
    store._keep_chunks(checked_chunks(ref_of_bytes(LARGE), list_of(LARGE)))

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        what = "the disk has no room for the blob" if number == errno.ENOSPC else "cannot be written: Input/output"
        with pytest.raises(LeptonError, match=what):
            fetched(store, LARGE)
    assert store.names() == set()
    assert not store.has(ref_of_bytes(LARGE))
    again = BlobStore(tmp_path)
    assert again.get(fetched(again, LARGE)) == LARGE


def test_a_disk_that_is_really_full_is_told_at_once(tmp_path: Path) -> None:
    ref = BlobRef(digest="1" * 64, size_bytes=2**50)
    with pytest.raises(LeptonError, match=r"no room for the blob 11111111|File too large"):
        parts.Part(tmp_path / "part", tmp_path / "whole", hashing.Chunks(ref, b""))
    assert list(tmp_path.iterdir()) == []


# -- out of an owner's files -------------------------------------------------------------------------------------------


def virtual_of(path: Path) -> Virtual:
    return Virtual(b"header", (SourceFile.of(path),), (Span(0, 100, CHUNK_BYTES), Span(0, 0, 7)))


def test_a_virtual_blob_reads_like_a_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(LARGE)
    store = BlobStore(tmp_path / "blobs")
    ref = store.register(virtual_of(source))
    expected = b"header" + LARGE[100 : 100 + CHUNK_BYTES] + LARGE[:7]
    assert ref == ref_of_bytes(expected)
    assert store.get(ref) == expected
    for start, size in ((0, 3), (4, 10), (6, 20), (CHUNK_BYTES, 50), (CHUNK_BYTES + 8, 5)):
        assert store.read(ref, start, size) == expected[start : start + size]
    assert list(store.held(ref)) == [0, 1]
    assert sum(path.stat().st_size for path in (tmp_path / "blobs").iterdir()) < 1000


def test_a_restart_does_not_read_an_owners_files_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.write_bytes(LARGE)
    ref = BlobStore(tmp_path / "blobs").register(virtual_of(source))
    again = BlobStore(tmp_path / "blobs")
    with monkeypatch.context() as patch:
        patch.setattr(Virtual, "read", lambda *_: pytest.fail("it was read"))
        assert again.register(virtual_of(source)) == ref
        again.require_intact(ref)
    os.utime(source, ns=(1, 1))  # touched and the same: read again, and good
    again.require_intact(ref)


def test_a_changed_file_is_found_out_before_anything_of_it_is_sent(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(LARGE)
    store = BlobStore(tmp_path / "blobs")
    ref = store.register(virtual_of(source))
    source.write_bytes(LARGE[:150] + b"!" + LARGE[151:])
    os.utime(source, ns=(1, 1))
    with pytest.raises(LeptonError, match="source was changed since it was published; publish the model again"):
        store.read_chunk(ref, 0)
    with pytest.raises(LeptonError, match="was changed"):
        store.require_intact(ref)
    assert len(store.read_chunk(ref, 1)) == 13  # what is as it was is still given
    source.write_bytes(b"short")
    with pytest.raises(LeptonError, match="source became shorter since it was published"):
        store.read_chunk(ref, 0)
    source.unlink()
    with pytest.raises(LeptonError, match="source: cannot be read: No such file"):
        store.read_chunk(ref, 0)
    assert store.register(virtual_of(renewed(source))) != ref


def renewed(path: Path) -> Path:
    path.write_bytes(bytes(len(LARGE)))
    return path


def test_a_damaged_description_costs_only_itself(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(LARGE)
    ref = BlobStore(tmp_path / "blobs").register(virtual_of(source))
    file = tmp_path / "blobs" / f"{ref.digest}.virtual"
    file.write_bytes(file.read_bytes()[:-1])
    again = BlobStore(tmp_path / "blobs")
    assert not again.has(ref)
    assert again.register(virtual_of(source)) == ref


# -- room --------------------------------------------------------------------------------------------------------------


def test_what_no_model_names_makes_room_least_recently_used_first(tmp_path: Path) -> None:
    named: set[str] = set()
    store = BlobStore(tmp_path, disk_bytes_max=30_000, in_use=lambda: named)
    old, mid, new = (store.put(bytes([number]) * 8192) for number in range(3))
    for age, ref in enumerate((mid, old, new)):
        os.utime(tmp_path / ref.digest, ns=(10**18 + age, 1))
    store.require_intact(mid)  # used now
    named.add(new.digest)
    last = store.put(b"x" * 8192)
    assert store.names() == {mid.digest, new.digest, last.digest}
    named.update((mid.digest, last.digest))
    with pytest.raises(LeptonError, match=r"8,192 bytes do not fit: .* may take 30,000 bytes"):
        store.put(b"y" * 8192)
    with pytest.raises(LeptonError, match="do not fit"):
        fetched(store, LARGE)
    assert store.names() == {mid.digest, new.digest, last.digest}
    assert {path.name for path in tmp_path.iterdir()} == store.names()


def test_an_unfinished_blob_that_nobody_needs_makes_room_too(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, disk_bytes_max=len(LARGE) + 100_000, in_use=lambda: ())
    ref = fetched(store, LARGE, 0)
    assert (tmp_path / f"{ref.digest}.part").exists()
    kept = store.put(b"z" * 200_000)
    assert {path.name for path in tmp_path.iterdir()} == {kept.digest}


def test_without_knowing_what_is_in_use_nothing_is_removed(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, disk_bytes_max=10_000)
    ref = store.put(b"a" * 8000)
    with pytest.raises(LeptonError, match="do not fit"):
        store.put(b"b" * 8000)
    assert store.get(ref)
