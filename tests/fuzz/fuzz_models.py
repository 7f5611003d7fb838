"""Fuzz what a deployed model is described by: headers of weights, manifests, programs, configurations, records.

Whatever they say they are read as what was promised, or refused; a program that is read can be tried without numbers.
"""

import json

from .fuzzing import Data, main, watched

with watched("lepton.node.blobs.tensor_files", "lepton.node.blobs.manifests", "lepton.node.programs.program"):
    from lepton.mesh.errors import LeptonError
    from lepton.node.blobs.manifests import manifest_bytes, read_manifest
    from lepton.node.blobs.tensor_files import BITS, Tensor, header_of, read_header
    from lepton.node.deployments import BlobRef, Manifest
    from lepton.node.language.config import parse_config
    from lepton.node.language.layout import sizes
    from lepton.node.programs.program import read_program
    from lepton.node.programs.run import RESULT_MAX, batch_max

_BODY_BYTES = 40


def one(raw: bytes) -> bool:
    data = Data(raw)
    kind = [_header, _manifest, _program, _config][data.integer(0, 3)]
    try:
        kind(data.rest())
    except LeptonError:
        return False
    return True


def _header(header: bytes) -> None:
    """A header, with a length that fits it, over as many bytes as there are."""
    file = len(header).to_bytes(8, "little") + header + bytes(_BODY_BYTES)
    found = read_header(lambda start, size: file[start : start + size], len(file), "a file")
    assert sum(tensor.size_bytes for tensor in found.values()) == _BODY_BYTES
    assert all(tensor.dtype in BITS and tensor.start >= 8 + len(header) for tensor in found.values())


def _manifest(raw: bytes) -> None:
    manifest = read_manifest(raw)
    assert read_manifest(manifest_bytes(manifest)) == manifest
    assert not any("/" in name or name.startswith(".") for name in manifest.files)


def _program(raw: bytes) -> None:
    program = read_program(raw)
    assert 1 <= batch_max(program) <= RESULT_MAX


def _config(raw: bytes) -> None:
    found = sizes(parse_config(raw), "int8")
    assert len(found.weights_bytes) == len(found.cache_bytes)


_REF = BlobRef(digest="0" * 64, size_bytes=9)
_X = {"is": "value", "name": "x"}
_PROGRAM = {
    "inputs": {"x": {"dtype": "float32", "shape": ["batch", 4]}}, "symbols": {"batch": [1, 9]},
    "tensors": {"w": {"stored": "w", "dtype": "float32", "shape": [4, 4]}},
    "nodes": [
        {"name": "a", "op": "linear.default", "args": [_X, {"is": "value", "name": "w"}],
         "value": {"dtype": "float32", "shape": ["batch", 4]}},
        {"name": "n", "op": "sym_size.int", "args": [_X, 1], "value": {"dtype": "int64", "shape": None}},
        {"name": "y", "op": "reshape.default",
         "args": [{"is": "value", "name": "a"}, {"is": "list", "items": [-1, {"is": "value", "name": "n"}]}],
         "value": {"dtype": "float32", "shape": ["batch", 4]}},
    ],
    "outputs": ["y"], "cuts": [1],
}  # fmt: skip
_CONFIG = {
    "model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 1, "rope_scaling": {"rope_type": "yarn", "factor": 2.0},
}  # fmt: skip
SEEDS = [
    b"\x00" + header_of({"a": Tensor("F32", (2, 3), 0, 24), "b": Tensor("U8", (16,), 0, 16)})[8:],
    b"\x01" + manifest_bytes(Manifest(kind="program", config="{}", files={"a.json": _REF}, layers=((_REF,),))),
    b"\x02" + json.dumps(_PROGRAM).encode(),
    b"\x03" + json.dumps(_CONFIG).encode(),
]

if __name__ == "__main__":
    main(one, SEEDS)
