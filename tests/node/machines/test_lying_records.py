"""Records of members that lie: who may say what is served and by whom, and models that are not as their record says."""

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from lepton.mesh import limits
from lepton.mesh.errors import LeptonError, PeerError, UsageError
from lepton.node.blobs.manifests import manifest_bytes, require_sizes
from lepton.node.blobs.naming import Naming
from lepton.node.blobs.sharing import Blobs
from lepton.node.blobs.store import BlobStore
from lepton.node.deployments import DEPLOYMENT, BlobRef, DeploymentRecord, Manifest
from lepton.node.generation.host import GenerationHost
from lepton.node.inference.serving import Serving
from lepton.node.inference.view import DEPLOYMENTS_PER_OWNER_MAX, View
from lepton.node.language.config import parse_config
from lepton.node.language.layout import layers, sizes
from lepton.node.picture import STAGE, Profile, StageRecord
from lepton.node.stages import StageLoader

REF = BlobRef(digest="0" * 64, size_bytes=1)
CONFIG = json.dumps({
    "model_type": "llama", "vocab_size": 90, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2,
    "num_attention_heads": 2,
})  # fmt: skip


def deployment(version: int = 1, **changes: Any) -> DeploymentRecord:
    about = {"kind": "causal_lm", "manifest": REF, "weights_bytes": (1, 1), "cache_bytes": (1, 1), **changes}
    return DeploymentRecord(version=version, **about)


class Said:
    """A mesh that is nothing but records and what their owners may do."""

    def __init__(self, *records: tuple[str, str, Any], may: dict[str, set[str]]) -> None:
        self._records = records
        self._may = may

    def live(self, kind: str, value: type) -> list[tuple[Any, Any]]:
        del kind
        return [
            (SimpleNamespace(owner=owner, name=name), said)
            for owner, name, said in self._records
            if isinstance(said, value)
        ]

    def authority(self, peer: str) -> Any:
        return SimpleNamespace(allows=lambda wanted: wanted in self._may[peer])


def view(*records: tuple[str, str, Any], **may: set[str]) -> View:
    return View(cast("Any", Said(*records, may=may)))


def test_only_who_may_use_a_model_is_asked_to_serve_it() -> None:
    stage = StageRecord(version=1, first=0, end=4)
    found = view(
        ("ann", "toy", stage), ("eve", "toy", stage), ("unknown", "toy", stage),
        ann={"infer:toy", "host:toy"}, eve={"infer:other", "host:toy"},
    )  # fmt: skip
    assert found.serving("toy", 1) == {(0, 4): ["ann"]}, STAGE


def test_only_who_may_hold_layers_is_planned_for_asked_and_heard() -> None:
    stage, offer = StageRecord(version=1, first=0, end=2, arithmetic="x"), Profile(device="d", memory_bytes=10**9)
    people = {"ann": {"train:toy", "infer:toy", "host:toy"}, "eve": {"infer:toy", "host:other"}, "tom": {"host:toy"}}
    records = [(who, name, said) for who in people for name, said in (("toy", stage), ("self", offer))]
    found = view(("ann", "toy", deployment(1)), *records, **people)
    assert found.serving("toy", 1) == {(0, 2): ["ann"]}
    assert found.arithmetics("toy", 1) == {"ann": "x"}
    assert [(offer.peer, sorted(offer.may or ())) for offer in found.offers({"toy"})] == [
        ("ann", ["toy"]), ("eve", []), ("tom", []),
    ]  # fmt: skip
    assert set(found.plans()["toy"].assigned) == {"ann"}
    assert found.barred("toy") == ["eve", "tom"]


def test_only_who_may_train_a_model_deploys_it_whatever_version_others_say() -> None:
    found = view(
        ("ann", "toy", deployment(1)), ("eve", "toy", deployment(2**53 - 1)), ann={"train:toy"}, eve={"train:other"}
    )
    assert found.deployments()["toy"].version == 1, DEPLOYMENT


def test_of_one_owner_so_many_models_are_planned_and_its_first_stay() -> None:
    names = [f"m{number:03}" for number in range(100)]
    mine = [("eve", name, deployment(number + 5)) for number, name in enumerate(names)]
    found = view(("ann", "toy", deployment(99)), *mine, ann={"train:toy"}, eve={f"train:{name}" for name in names})
    assert sorted(found.deployments()) == [*names[:DEPLOYMENTS_PER_OWNER_MAX], "toy"]


def test_a_manifest_that_somebody_names_without_the_right_opens_no_blobs(tmp_path: Any) -> None:
    store = BlobStore(tmp_path)
    secret = store.put(b"weights")
    manifest = store.put(manifest_bytes(Manifest(kind="causal_lm", config="{}", files={}, layers=((secret,),))))
    records = [("ann", "secret", deployment(manifest=manifest)), ("eve", "mine", deployment(manifest=manifest))]
    naming = Naming(view(*records, ann={"train:secret"}, eve={"infer:mine"}), store)
    assert naming.names("secret", secret)
    assert not naming.names("mine", manifest)
    assert not naming.names("mine", secret)


def test_what_is_named_a_manifest_and_is_none_is_read_once(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, read = BlobStore(tmp_path), list[BlobRef]()
    bad = store.put(b"no manifest")

    def get(ref: BlobRef) -> bytes:
        read.append(ref)
        return b"no manifest"

    monkeypatch.setattr(store, "get", get)
    large = BlobRef(digest="1" * 64, size_bytes=limits.MANIFEST_BYTES_MAX + 1)
    monkeypatch.setattr(store, "has", lambda _ref: True)
    found = view(
        ("eve", "bad", deployment(manifest=bad)), ("eve", "large", deployment(manifest=large)),
        eve={"train:bad", "train:large"},
    )  # fmt: skip
    naming = Naming(found, store)
    for _ in range(5):
        assert not naming.names("bad", REF)
        assert not naming.names("large", REF)
    assert read == [bad]


@pytest.mark.parametrize("size_bytes", [limits.BLOB_BYTES_MAX + 1, 2**53 - 1])
async def test_a_blob_larger_than_any_may_be_is_not_begun(size_bytes: int, tmp_path: Any) -> None:
    mesh = SimpleNamespace(calls=SimpleNamespace(serve=lambda *_: None), present=frozenset(), changed=trio.Event())
    blobs = Blobs(cast("Any", mesh), BlobStore(tmp_path), cast("Any", SimpleNamespace(in_use=frozenset)))
    ref = BlobRef(digest="2" * 64, size_bytes=size_bytes)
    with pytest.raises(PeerError, match="more than any may"):
        await blobs.fetch("toy", ref)
    with pytest.raises(UsageError, match="too large"):
        await blobs.data("toy", BlobRef(digest="2" * 64, size_bytes=limits.BLOB_BYTES_MAX))


# -- models that are not what their record says -----------------------------------------------------------------------


class Fetched:
    """Blobs of one manifest; nothing may be fetched."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    async def manifest(self, _name: str, _ref: BlobRef) -> Manifest:
        return self._manifest

    async def fetch_layers(self, *_: object) -> None:
        raise AssertionError("fetched before it was checked")


async def load(weight: int = 0, cache: int = 0, blob_bytes: int = 100, config: str = CONFIG) -> None:
    known = parse_config(CONFIG)
    needs, count = sizes(known, "float32"), layers(known)
    record = deployment(
        weights_bytes=tuple(size + weight for size in needs.weights_bytes),
        cache_bytes=tuple(max(0, size + cache) for size in needs.cache_bytes),
    )
    refs = ((BlobRef(digest="3" * 64, size_bytes=blob_bytes),),) * count
    manifest = Manifest(kind="causal_lm", config=config, files={}, layers=refs)
    await StageLoader(cast("Any", Fetched(manifest))).load("toy", record, (0, count))


async def test_a_model_that_takes_more_than_its_record_says_is_neither_fetched_nor_loaded() -> None:
    with pytest.raises(AssertionError, match="before it was checked"):
        await load()  # as it should be
    for lie in ({"weight": -1}, {"cache": -1}, {"blob_bytes": 2**30}, {"config": CONFIG.replace("8", "1024")}):
        with pytest.raises(PeerError):
            await load(**cast("Any", lie))


def test_blobs_that_are_larger_than_what_they_may_hold_are_not_fetched() -> None:
    refs = (BlobRef(digest="4" * 64, size_bytes=limits.LAYER_HEADER_BYTES_MAX + 11),)
    manifest = Manifest(kind="program", config="{}", files={}, layers=(refs,))
    require_sizes(manifest, [11], [0])
    with pytest.raises(PeerError, match="larger than the layer"):
        require_sizes(manifest, [10], [0])


async def test_a_model_that_makes_loading_raise_anything_does_not_end_the_node() -> None:
    async def load_engine(*_: object) -> Any:
        raise ZeroDivisionError

    mesh = SimpleNamespace(me="me", calls=SimpleNamespace(serve=lambda *_: None))
    plan = SimpleNamespace(assigned={"me": (0, 2)}, missing_bytes=0)

    def seen(kind: str) -> Any:
        return SimpleNamespace(
            plans=lambda: {"toy": plan}, deployments=lambda: {"toy": deployment(kind=kind)}, models=dict
        )

    def nothing(*_: object) -> None: ...

    host = GenerationHost(cast("Any", mesh), seen("causal_lm"), load_engine, nothing, nothing, nothing)
    assert not await host._follow_plans()
    programs = cast("Any", SimpleNamespace(load=load_engine))
    serving = Serving(cast("Any", mesh), seen("program"), cast("Any", None), programs, 1)
    assert not await serving._follow_plan()
    assert host.trouble == serving.trouble == {"toy": "ZeroDivisionError"}
    assert not issubclass(ZeroDivisionError, LeptonError)
