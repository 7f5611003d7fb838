"""Fuzz what deployers and hosts say of a service: bundles stay in their folder, schemas make readers no trouble."""

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from .fuzzing import Data, main, watched

with watched("lepton.node.services.bundling", "lepton.node.services.calling.vetting", "lepton.node.services.writing"):
    from lepton.mesh.errors import PeerError, UsageError
    from lepton.node.services.bundling.bundle import Index, read_bundle, spec_of, unpack_bundle
    from lepton.node.services.bundling.folder import MANIFEST, read_manifest
    from lepton.node.services.calling.vetting import check_schema
    from lepton.node.services.writing import in_json

MAGIC = b"lepton-bundle-1\n"


def bundled(raw: bytes) -> bool:
    """Read and unpack a bundle: it has the bytes that it says, all below its folder and nothing but files there."""
    try:
        bundle = read_bundle(raw)
    except PeerError:
        return False
    with suppress(PeerError):
        spec_of(bundle)
    with TemporaryDirectory() as top:
        folder = Path(top, "bundle")
        unpack_bundle(bundle, folder)
        files = [path for path in Path(top).rglob("*") if not path.is_dir() or path.is_symlink()]
        assert {path.relative_to(folder).as_posix() for path in files} == {file.path for file, _ in bundle.files}
        assert all(path.is_file() and not path.is_symlink() for path in files)
        assert sum(path.stat().st_size for path in files) == sum(file.size_bytes for file, _ in bundle.files) < len(raw)
    return True


def indexed(raw: bytes) -> bool:
    """The same with a frame that fits whatever index there is, so that names are what is tried."""
    try:
        index = msgspec.json.decode(raw, type=Index)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    size = sum(file.size_bytes for file in index.files)
    return size < 100_000 and bundled(MAGIC + len(raw).to_bytes(4, "big") + raw + bytes(size))


def followed(raw: bytes) -> bool:
    """A schema that is accepted makes no value, and no JSON, an error of another kind than its reader's."""
    text, _, value = raw.partition(b"\0")
    try:
        schema = text.decode()
        check_schema(schema)
    except (PeerError, UnicodeDecodeError):
        return False
    try:
        in_json.write(in_json.read(value or b"{}", schema))
    except UsageError:
        return False
    return True


def manifest(raw: bytes) -> bool:
    with TemporaryDirectory() as top:
        Path(top, MANIFEST).write_bytes(raw)
        try:
            read_manifest(Path(top))
        except UsageError:
            return False
    return True


def one(raw: bytes) -> bool:
    data = Data(raw)
    return data.pick([bundled, indexed, followed, manifest])(data.rest())


INDEX = b'{"files":[["a/b.py",2,true],["service.toml",1,false]]}'
SCHEMA = (
    b'{"properties":{"x":{"x-dtype":"float32"},"y":{"anyOf":[{"$ref":"#/$defs/Y"},{"type":"null"}]}},'
    b'"$defs":{"Y":{"type":"object","required":["k"],"properties":{"k":{"enum":["Y"]}}}}}'
)
SEEDS = [
    b"\x00" + MAGIC + len(INDEX).to_bytes(4, "big") + INDEX + b"abc",
    b"\x01" + INDEX,
    b'\x01{"files":[["a/../b",2],["CON",1],["a",0]]}',
    b"\x02" + SCHEMA + b'\x00{"x":[1],"y":{"k":"Y"}}',
    b'\x02{"items":{"contentEncoding":"base64"},"prefixItems":[{"x-dtype":"any"}]}\x00[[1,2],"AA=="]',
    b'\x03entry = "a:B"\nleave_out = ["x"]\n',
]

if __name__ == "__main__":
    main(one, SEEDS)
