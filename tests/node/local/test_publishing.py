"""A model's folder becomes blobs by layer without being copied, and opens layer by layer without being read whole."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from lepton.mesh import limits
from lepton.mesh.errors import LeptonError, PeerError, UsageError
from lepton.node.blobs import opening
from lepton.node.blobs.hashing import checked_chunks
from lepton.node.blobs.manifests import manifest_bytes, read_manifest
from lepton.node.blobs.opening import layer_contents, open_layer, stored_layer
from lepton.node.blobs.publishing import Published, folder_tensors, publish_folder
from lepton.node.blobs.store import BlobStore
from lepton.node.blobs.tensor_files import Tensor, header_of, read_header
from lepton.node.deployments import BlobRef, Manifest

TENSORS = {
    "embed.weight": torch.arange(60, dtype=torch.float32).reshape(10, 6),
    "block.0.a": torch.randn(6, 6).to(torch.bfloat16),
    "block.0.b": torch.randn(3),
    "block.0.odd": torch.tensor([1, 2, 3], dtype=torch.uint8),
    "block.1.a": torch.randn(6, 6).to(torch.float16),
    "block.1.empty": torch.empty(0, 4),
    "norm.weight": torch.ones(6, dtype=torch.float64),
    "rotary.inv_freq": torch.ones(3),
}


def layer_of(name: str) -> tuple[int, ...]:
    """Embeddings tied to the head; what is computed anew in no layer."""
    first, *rest = name.split(".")
    if first == "block":
        return (int(rest[0]) + 1,)
    return {"embed": (0, 3), "norm": (3,)}.get(first, ())


def folder(path: Path, *, shards: bool = False) -> Path:
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "toy"}')
    (path / "tokenizer.json").write_text("{}")
    if not shards:
        safetensors.torch.save_file(TENSORS, path / "model.safetensors", metadata={"format": "pt"})
        return path
    names = sorted(TENSORS)
    placed = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    for file in set(placed.values()):
        safetensors.torch.save_file({name: TENSORS[name] for name in names if placed[name] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return path


def require_all(published: Published, store: BlobStore) -> None:
    expected: list[set[str]] = [
        {"embed.weight"},
        {"block.0.a", "block.0.b", "block.0.odd"},
        {"block.1.a", "block.1.empty"},
        {"embed.weight", "norm.weight"},
    ]
    for index, names in enumerate(expected):
        opened = open_layer(store, published.manifest, index)
        assert opened.keys() == names == published.layers[index].keys()
        for name, tensor in opened.items():
            assert tensor.dtype == TENSORS[name].dtype
            assert torch.equal(tensor, TENSORS[name])
            stored = stored_layer(store, published.manifest, index)[name]
            assert (stored.shape, stored.dtype) == (tuple(tensor.shape), tensor.dtype)
            assert torch.equal(stored[:], tensor)
            assert torch.equal(stored[1:3], tensor[1:3])
        contents = layer_contents(store, published.manifest, index)
        assert {n: t[:2] for n, t in contents.items()} == {n: t[:2] for n, t in published.layers[index].items()}


@pytest.mark.parametrize("shards", [False, True])
def test_a_folder_is_published_where_it_is_and_opened_by_layer(tmp_path: Path, shards: bool) -> None:
    store = BlobStore(tmp_path / "blobs")
    published = publish_folder(store, folder(tmp_path / "model", shards=shards), layer_of, 4)
    manifest = published.manifest
    assert read_manifest(store.get(published.ref)) == manifest
    assert json.loads(manifest.config) == {"model_type": "toy"}
    assert store.get(manifest.files["tokenizer.json"]) == b"{}"
    assert set(manifest.layers[0]) < set(manifest.layers[3])  # tied: one blob, which both name
    require_all(published, store)
    require_all(published, BlobStore(tmp_path / "blobs"))


def test_equal_weights_give_equal_blobs_however_they_are_sharded(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    one = publish_folder(store, folder(tmp_path / "one"), layer_of, 4)
    two = publish_folder(BlobStore(tmp_path / "blobs2"), folder(tmp_path / "two", shards=True), layer_of, 4)
    assert one.ref == two.ref
    block = {name: TENSORS[name] for name in ("block.0.b", "block.0.odd", "block.0.a")}
    assert store.get(one.manifest.layers[1][0]) == safetensors.torch.save(block)  # what the library itself writes


def test_what_was_fetched_opens_like_the_owners_own(tmp_path: Path) -> None:
    owner, reader = BlobStore(tmp_path / "a"), BlobStore(tmp_path / "b")
    published = publish_folder(owner, folder(tmp_path / "model"), layer_of, 4)
    for ref in {ref for layer in published.manifest.layers for ref in layer}:
        chunks = owner.chunks(ref)
        assert chunks is not None
        part = reader.begin(ref, checked_chunks(ref, chunks.hashes))
        part.write(0, owner.read_chunk(ref, 0))
        reader.adopt(part)
    require_all(published, reader)


def test_only_what_is_asked_for_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BlobStore(tmp_path / "blobs")
    published = publish_folder(store, folder(tmp_path / "model"), layer_of, 4)
    mapped: list[str] = []
    real = opening._tensor

    def spy(*given: Any) -> torch.Tensor:
        mapped.append(given[2].dtype)
        return real(*given)

    monkeypatch.setattr(opening, "_tensor", spy)
    assert open_layer(store, published.manifest, 1, ["block.0.b", "no such"]).keys() == {"block.0.b"}
    assert mapped == ["F32"]
    with pytest.raises(UsageError, match="there is no layer 4: the model has 4"):
        open_layer(store, published.manifest, 4)


def test_what_is_written_to_a_tensor_stays_here(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    published = publish_folder(store, folder(tmp_path / "model"), layer_of, 4)
    open_layer(store, published.manifest, 0)["embed.weight"].zero_()
    require_all(published, store)


def test_a_folder_that_was_changed_since_is_not_loaded(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    path = folder(tmp_path / "model")
    published = publish_folder(store, path, layer_of, 4)
    changed = {name: tensor + 1 for name, tensor in TENSORS.items()}
    safetensors.torch.save_file(changed, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LeptonError, match=r"model.safetensors was changed since it was published"):
        open_layer(store, published.manifest, 0)
    assert publish_folder(store, path, layer_of, 4).ref != published.ref


def test_distant_tensors_do_not_share_a_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {name: Tensor("U8", (10,), 0, 10) for name in "abc"}
    near = [(0, "a"), (20, "b"), (10**9, "c")]
    assert opening._runs(near, wanted) == [near[:2], near[2:]]


# -- what is wrong with a folder ---------------------------------------------------------------------------------------


def spoil(path: Path, name: str, text: str | bytes) -> None:
    (path / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def only_a_pickle(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def no_weights(path: Path) -> None:
    (path / "model.safetensors").unlink()


def cut(path: Path) -> None:
    spoil(path, "model.safetensors", (path / "model.safetensors").read_bytes()[:-1])


def leads_out(path: Path) -> None:
    (path / "model.safetensors").rename(path.parent / "elsewhere")
    (path / "model.safetensors").symlink_to(path.parent / "elsewhere")


def index(weight_map: object) -> Callable[[Path], None]:
    return lambda path: spoil(path, "model.safetensors.index.json", json.dumps({"weight_map": weight_map}))


def tokenizer_leads_out(path: Path) -> None:
    (path / "tokenizer.json").unlink()
    (path / "tokenizer.json").symlink_to("/etc/hostname")


WRONG: list[tuple[Callable[[Path], None], str]] = [
    (only_a_pickle, "only in pytorch_model.bin, a pickle, .* convert it once: python -c .*save_pretrained"),
    (no_weights, "has no weights: neither model.safetensors nor"),
    (cut, "model.safetensors has .* bytes where its header describes"),
    (lambda p: spoil(p, "model.safetensors", b"\x80\x02pickle"), "is not a safetensors file"),
    (lambda p: (p / "config.json").unlink(), "config.json is not there"),
    (lambda p: spoil(p, "config.json", "{"), "config.json is not valid JSON"),
    (lambda p: spoil(p, "config.json", "[]"), "config.json is not a model's configuration"),
    (lambda p: spoil(p, "config.json", b'"\xff"'), "config.json is not valid JSON"),
    (lambda p: spoil(p, "config.json", " " * 300_000), "config.json has 300,000 bytes, more than"),
    (leads_out, "model.safetensors is a link that leads out of the model's folder"),
    (tokenizer_leads_out, "tokenizer.json is a link that leads out"),
    (index({"a": "../elsewhere.safetensors"}), "each named without a folder"),
    (index({"a": "/etc/passwd"}), "each named without a folder"),
    (index({"a": 1}), "is no index"),
    (index([]), "is no index"),
    (lambda p: spoil(p, "model.safetensors.index.json", "{}"), "is no index"),
    (index({"a": "gone.safetensors"}), "gone.safetensors is not there"),
    (index({"a": "model.safetensors"}), "says that 'a' is in model.safetensors, which does not have it"),
]


@pytest.mark.parametrize(("spoiled", "message"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path, spoiled: Callable[[Path], Any], message: str) -> None:
    path = folder(tmp_path / "model")
    spoiled(path)
    with pytest.raises(UsageError, match=message):
        publish_folder(BlobStore(tmp_path / "blobs"), path, layer_of, 4)


def test_links_are_followed_within_what_is_given(tmp_path: Path) -> None:
    path = folder(tmp_path / "model")
    leads_out(path)
    store = BlobStore(tmp_path / "blobs")
    require_all(publish_folder(store, path, layer_of, 4, within=tmp_path), store)
    assert folder_tensors(path, within=tmp_path).keys() == TENSORS.keys()


def test_a_layer_that_there_is_not_and_no_folder_at_all_are_told(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    with pytest.raises(UsageError, match=r"'embed.weight' belongs to layers \(0, 3\) of a model that has 3"):
        publish_folder(store, folder(tmp_path / "model"), layer_of, 3)
    with pytest.raises(UsageError, match="1 to 256"):
        publish_folder(store, tmp_path / "model", layer_of, 257)
    with pytest.raises(UsageError, match="is not a folder"):
        publish_folder(store, tmp_path / "nowhere", layer_of, 3)
    assert store.names() == set()


# -- headers and manifests ---------------------------------------------------------------------------------------------


def with_header(header: object, size: int = 16) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


def entry(dtype: str = "F32", shape: object = (4,), offsets: object = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        bytes(8),
        (2**62).to_bytes(8, "little") + bytes(100),
        with_header(b"{"),
        with_header(b"\xff"),
        with_header(b"[" * 100_000),
        with_header([]),
        with_header({"a": 1}),
        with_header({"a": entry(dtype="F4")}),
        with_header({"a": entry(shape=[-4])}),
        with_header({"a": entry(shape=[2**52, 2**52])}),
        with_header({"a": entry(shape=[4] * 17)}),
        with_header({"a": entry(shape=[3])}),
        with_header({"a": entry(offsets=[16, 0])}),
        with_header({"a": entry(offsets=[4, 20])}, 20),
        with_header({"a": entry(), "b": entry()}),
        with_header({"a": entry(), "b": entry(offsets=[20, 36])}, 36),
        with_header({"a": entry()}, 17),
        with_header({"a": entry() | {"more": 1}}),
    ],
)
def test_a_header_that_lies_is_refused(data: bytes) -> None:
    with pytest.raises(UsageError, match="the file"):
        read_header(lambda start, size: data[start : start + size], len(data), "the file")


def test_our_header_is_the_librarys() -> None:
    data = safetensors.torch.save(TENSORS)
    tensors = read_header(lambda start, size: data[start : start + size], len(data), "it")
    assert data.startswith(header_of(tensors))


def test_a_header_larger_than_a_layers_is_refused(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    spaces = limits.LAYER_HEADER_BYTES_MAX - len(json.dumps({"a": entry()}))
    fits, over = (
        store.put(with_header(json.dumps({"a": entry()}).encode() + b" " * count)) for count in (spaces, spaces + 1)
    )
    for ref in (fits, over):
        manifest = Manifest(kind="program", config="{}", files={}, layers=((ref,),))
        if ref == fits:
            assert open_layer(store, manifest, 0)["a"].shape == (4,)
        else:
            with pytest.raises(UsageError, match="larger one than allowed"):
                open_layer(store, manifest, 0)


def test_a_manifest_out_of_bounds_is_refused() -> None:
    ref = BlobRef(digest="0" * 64, size_bytes=2**40)
    size = len(manifest_bytes(Manifest(kind="program", config="c", files={}, layers=((ref,) * 20,) * 256)))
    assert size < limits.MANIFEST_BYTES_MAX
    with pytest.raises(UsageError, match=r"a manifest of .* bytes is more than"):
        manifest_bytes(Manifest(kind="program", config="\u20ac" * 200_000, files={}, layers=((ref,) * 64,) * 256))
    with pytest.raises(PeerError, match="more than"):
        read_manifest(b" " * (limits.MANIFEST_BYTES_MAX + 1))
    manifest = Manifest(kind="causal_lm", config="{}", files={}, layers=((ref,),))
    for data in (b"", b"{}", b"\xff", b"[" * 10_000, manifest_bytes(manifest).replace(b"0000", b"xxxx")):
        with pytest.raises(PeerError, match="manifest is not valid"):
            read_manifest(data)


def test_a_touched_folder_is_hashed_again_and_an_untouched_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BlobStore(tmp_path / "blobs")
    path = folder(tmp_path / "model")
    published = publish_folder(store, path, layer_of, 4)
    read: list[int] = []
    real = os.pread

    def spy(handle: int, size: int, offset: int) -> bytes:
        read.append(size)
        return real(handle, size, offset)

    monkeypatch.setattr(os, "pread", spy)
    assert publish_folder(store, path, layer_of, 4).ref == published.ref
    assert read == []
    os.utime(path / "model.safetensors")
    assert publish_folder(store, path, layer_of, 4).ref == published.ref
    assert read != []
