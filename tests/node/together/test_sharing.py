"""With a model's folder on one node only, every node gets what it needs of it, whole, or an error."""

import json
import random
from pathlib import Path

import pytest
import safetensors.torch
import torch
import trio
from lepton.mesh import limits
from lepton.mesh.calls import Answer, Empty, Incoming, Method
from lepton.mesh.errors import Busy, LeptonError, LinkError, Refused, UsageError
from lepton.node import Node
from lepton.node.blobs.hashing import CHUNK_BYTES
from lepton.node.blobs.naming import refs_of
from lepton.node.blobs.opening import open_layer
from lepton.node.blobs.parts import Part
from lepton.node.blobs.publishing import Published
from lepton.node.blobs.sharing import BlobHeld, BlobWanted, ChunkWanted
from lepton.node.deployments import DEPLOYMENT, BlobRef, DeploymentRecord

from .fakes import running, until

WIDE = torch.arange(3 * CHUNK_BYTES // 4 + 1000, dtype=torch.float32)  # four chunks


def folder(path: Path) -> Path:
    path.mkdir()
    tensors = {"0.w": WIDE, "1.w": torch.randn(9, 9, generator=torch.Generator().manual_seed(3))}
    safetensors.torch.save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text("{}")
    (path / "tokenizer.json").write_text('{"model": {}}')
    return path


async def deploy(node: Node, path: Path, name: str = "toy") -> Published:
    published = await node.blobs.publish(folder(path), lambda tensor: (int(tensor[0]),), 2)
    record = DeploymentRecord(version=1, kind="program", manifest=published.ref, weights_bytes=(1, 1))
    node.mesh.publish(DEPLOYMENT, name, record, durable=True)
    return published


def knows(node: Node, name: str = "toy") -> bool:
    return any(record.name == name for record, _ in node.mesh.live(DEPLOYMENT, DeploymentRecord))


async def test_one_folder_feeds_a_mesh_and_damage_is_mended(tmp_path: Path) -> None:
    async with running(tmp_path, "owner", "b", "c") as world:
        owner, b, c = world.nodes.values()
        published = await deploy(owner, tmp_path / "model")
        await until(lambda: all(map(knows, (b, c))))
        for node in (b, c):
            manifest = await node.blobs.manifest("toy", published.ref)
            assert manifest == published.manifest
            assert json.loads(await node.blobs.data("toy", manifest.files["tokenizer.json"])) == {"model": {}}
            async with trio.open_nursery() as nursery:  # twice at once is once
                nursery.start_soon(node.blobs.fetch_layers, "toy", manifest, [0, 1])
                nursery.start_soon(node.blobs.fetch, "toy", manifest.layers[0][0])
            assert torch.equal(open_layer(node.blobs.store, manifest, 0)["0.w"], WIDE)
        wide = published.manifest.layers[0][0]
        (tmp_path / "model" / "model.safetensors").unlink()  # b and c have it now
        file = b.blobs.store.path(wide)
        with file.open("r+b") as opened:
            opened.seek(CHUNK_BYTES)
            opened.write(b"damage")
        for node in (owner, b, c):  # whatever is short of room, these stay
            node.blobs.refresh()
            assert node.blobs.store.in_use is not None
            assert set(node.blobs.store.in_use()) == {published.ref.digest, *(ref.digest for ref in refs_of(manifest))}
        written: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            real = Part.write

            def write(part: Part, chunk: int, data: bytes) -> None:
                written.append(chunk)
                real(part, chunk, data)

            patch.setattr(Part, "write", write)
            await b.blobs.fetch("toy", wide)
        assert written == [1]
        assert torch.equal(open_layer(b.blobs.store, published.manifest, 0)["0.w"], WIDE)
        await owner.blobs.fetch("toy", wide)  # its folder is gone: it fetches like anybody
        assert torch.equal(open_layer(owner.blobs.store, published.manifest, 0)["0.w"], WIDE)


async def test_who_may_fetch_and_what(tmp_path: Path) -> None:
    async with running(tmp_path, "owner", "b", roles={"b": "member"}) as world:
        owner, b = world.nodes.values()
        published = await deploy(owner, tmp_path / "model")
        wide = published.manifest.layers[0][0]
        secret = owner.blobs.store.put(b"of no model")

        async def ask(ref: BlobRef, chunk: int = 0, scope: str = "toy") -> None:
            into = bytearray(min(CHUNK_BYTES, ref.size_bytes))
            wanted = ChunkWanted(ref=ref, chunk=chunk)
            await b.mesh.calls.fetch(owner.mesh.me, "blob.read", wanted, Empty, into, scope=scope)

        await ask(wide)
        for ref in (secret, BlobRef(digest=wide.digest, size_bytes=5)):
            with pytest.raises(UsageError, match="knows no blob"):
                await ask(ref)
        with pytest.raises(UsageError, match="knows no blob"):
            await ask(wide, scope="other")
        with pytest.raises(UsageError, match="has no chunk 4"):
            await ask(wide, 4)
        with pytest.raises((Refused, UsageError)):
            await ask(wide, scope="")
        owner.blobs._lent = limits.CHUNKS_SERVED_MAX - 1
        await ask(wide)
        owner.blobs._lent = limits.CHUNKS_SERVED_MAX
        with pytest.raises(Busy, match="16 chunks wait to be sent here already"):
            await ask(wide)
        owner.blobs._lent = 0
        with pytest.raises(LinkError, match=r"nobody who is here has the blob [0-9a-f]{8}… of 'toy'; start a node"):
            await b.blobs.fetch("toy", secret)
        with pytest.raises(LinkError, match="larger than any"):
            await ask(BlobRef(digest="0" * 64, size_bytes=limits.BLOB_BYTES_MAX + 1))


async def test_a_fetch_that_breaks_goes_on_where_it_was_and_a_full_disk_ends_it(tmp_path: Path) -> None:
    async with running(tmp_path, "owner", "liar", "b") as world:
        owner, liar, b = world.nodes.values()
        published = await deploy(owner, tmp_path / "model")
        await until(lambda: knows(b) and knows(liar))
        wide, noise = published.manifest.layers[0][0], random.Random(0).randbytes(CHUNK_BYTES)
        manifest = await b.blobs.manifest("toy", published.ref)

        async def claim(call: Incoming[BlobWanted]) -> Answer[BlobHeld]:
            return Answer(BlobHeld(whole=True))

        async def lie(call: Incoming[ChunkWanted]) -> Answer[Empty]:
            return Answer(Empty(), (), noise)

        liar.mesh.calls.serve(
            Method(name="blob.have", needs="infer", takes=BlobWanted, handler=claim),
            Method(name="blob.read", needs="infer", takes=ChunkWanted, handler=lie),
        )
        real, broken = Part.write, 2

        def write(part: Part, chunk: int, data: bytes) -> None:
            nonlocal broken
            broken -= 1
            if broken < 0:
                raise LeptonError("the disk has no room")
            real(part, chunk, data)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Part, "write", write)
            with pytest.raises(LeptonError, match="the disk has no room"):
                await b.blobs.fetch("toy", wide)
        assert not b.blobs.store.has(wide)
        await b.blobs.fetch("toy", wide)
        assert torch.equal(open_layer(b.blobs.store, manifest, 0)["0.w"], WIDE)
        with trio.move_on_after(0):
            await b.blobs.fetch("toy", manifest.layers[1][0])
        await b.blobs.fetch("toy", manifest.layers[1][0])
