"""A model's name leads to its files in the hub's cache, without network too; what is no name leads nowhere."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors
from lepton.mesh.errors import LeptonError, LinkError, Refused, UsageError
from lepton.node.blobs import hub
from lepton.node.blobs.hub import folder_of
from lepton.node.blobs.publishing import publish_folder
from lepton.node.blobs.store import BlobStore
from safetensors.torch import save
from torch import ones

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache as its library lays it out, and no network."""
    repository = tmp_path / "hub" / "models--org--toy"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for name, data in (("config.json", b"{}"), ("model.safetensors", save({"w": ones(3)}))):
        (repository / "blobs" / name[::-1]).write_bytes(data)
        (snapshot / name).symlink_to(Path("..", "..", "blobs", name[::-1]))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: real(*a, **k, cache_dir=tmp_path / "hub"))
    return snapshot


def test_what_is_in_the_cache_is_published_without_network(cache: Path, tmp_path: Path) -> None:
    found = folder_of("org/toy")
    assert found.path == cache
    published = publish_folder(BlobStore(tmp_path / "blobs"), found.path, lambda _: (0,), 1, within=found.within)
    assert published.layers[0].keys() == {"w"}


def test_without_network_what_is_not_in_the_cache_is_asked_for_as_a_folder(cache: Path) -> None:
    with pytest.raises(
        LinkError, match="the hub cannot be reached, and 'org/other' is not in its cache here: give a fo"
    ):
        folder_of("org/other")


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert folder_of(str(tmp_path)) == (tmp_path, tmp_path.resolve())


@pytest.mark.parametrize(
    "name",
    ["", "toy", "../x", "/etc/x", "org/../x", "a/b/c", "org/", "~/x", "org/x\n", "org/" + "x" * 97, "https://x/y"],
)
def test_what_is_no_name_reaches_no_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_snapshot", lambda *_: pytest.fail("it was asked for"))
    with pytest.raises(UsageError, match="is neither a folder that is here nor a model's name on the hub"):
        folder_of(name)


@pytest.mark.parametrize("revision", ["", "../x", "-x", "a b"])
def test_what_is_no_revision_reaches_no_network(revision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_snapshot", lambda *_: pytest.fail("it was asked for"))
    with pytest.raises(UsageError, match="is not a revision"):
        folder_of("org/toy", revision=revision)


class _Response:
    """What the library's errors of HTTP want."""

    status_code = 404
    headers: dict[str, str] = {}  # noqa: RUF012 - as in the library
    request = None


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (errors.GatedRepoError, Refused, "lets in: log in"),
        (errors.RevisionNotFoundError, UsageError, "has no revision 'main'"),
        (errors.RepositoryNotFoundError, UsageError, "there is no model 'org/toy' on the hub"),
        (errors.HfHubHTTPError, LinkError, "the hub did not give 'org/toy'"),
        (errors.HFValidationError, UsageError, "is not a model's name"),
        (errors.LocalEntryNotFoundError, LinkError, "give a folder"),
        (OSError, LeptonError, "cannot be kept in the hub's cache"),
        (RuntimeError, LinkError, "could not be fetched"),
    ],
)
def test_the_librarys_errors_become_ours(
    raised: type[Exception], expected: type[LeptonError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    http = issubclass(raised, errors.HfHubHTTPError)

    def fail(*_: Any, **__: Any) -> None:
        options: dict[str, Any] = {"response": _Response()} if http else {}
        raise raised("what it says", **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(expected, match=message):
        folder_of("org/toy", revision="main")
