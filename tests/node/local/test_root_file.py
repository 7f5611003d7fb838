"""The root key in a file: only its passphrase opens it, and a file from anybody costs no more than one attempt."""

import nacl.pwhash.argon2id as argon
import pytest
from lepton.mesh.errors import UsageError
from lepton.mesh.identity import Identity
from lepton.node import root_file
from lepton.node.root_file import FILE_BYTES_MAX, MAGIC, open_root, seal_root

ROOT = Identity(bytes(range(32)))
WORDS = "four words of mine"


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root_file, "_PASSES", argon.OPSLIMIT_MIN)
    monkeypatch.setattr(root_file, "_MEMORY_BYTES", argon.MEMLIMIT_MIN)


def test_what_is_sealed_opens_with_its_passphrase_alone() -> None:
    data = seal_root(ROOT, "home", WORDS)
    assert ROOT.seed not in data
    assert b"home" not in data
    assert len(data) <= FILE_BYTES_MAX
    root, name = open_root(data, WORDS)
    assert (root.peer_id, name) == (ROOT.peer_id, "home")
    assert seal_root(ROOT, "home", WORDS) != data  # a salt and a nonce of its own
    with pytest.raises(UsageError, match="The passphrase is wrong, or the file was damaged"):
        open_root(data, WORDS + " ")


def test_a_changed_or_cut_file_does_not_open() -> None:
    data = seal_root(ROOT, "home", WORDS)
    for changed in (data[:-1], data + b"x", data[:-1] + bytes([data[-1] ^ 1]), data[:20] + b"x" + data[21:]):
        with pytest.raises(UsageError, match="The passphrase is wrong, or the file was damaged"):
            open_root(changed, WORDS)


def test_another_file_is_told_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root_file, "_box", lambda *_: pytest.fail("it was tried"))
    for other in (b"", b"lepton-ed25519-1:abc", MAGIC, MAGIC + bytes(30), MAGIC + bytes(FILE_BYTES_MAX)):
        with pytest.raises(UsageError, match="not a root key as `lepton-node mesh export-root` writes it"):
            open_root(other, WORDS)


def test_a_short_passphrase_is_not_taken() -> None:
    with pytest.raises(UsageError, match="has 12 characters or more"):
        seal_root(ROOT, "home", "x" * 11)
