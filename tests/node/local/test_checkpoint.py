"""Whatever happens to the newest checkpoint or to the process that writes it, the last good one is there."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.errors import LeptonError, UsageError
from lepton.node.learning.checkpoint import Checkpoint, CheckpointStore, Loaded, decode, encode
from lepton.node.learning.data import digits
from lepton.node.learning.losses import Metrics
from lepton.node.learning.settings import TrainSettings
from lepton.node.learning.trainer import Trainer, TrainerState
from lepton.node.shapes import ModelSpec
from safetensors.numpy import save


def checkpoint(number: int) -> Checkpoint:
    vector = np.arange(6, dtype=np.float32) + number
    metrics = Metrics(accuracy=0.5, loss=1.25, samples=number) if number % 2 else None
    state = TrainerState(step=10 * number, momentum=-vector, correction=2 * vector, local=vector[:2])
    return Checkpoint(round=number, vector=vector, trainer_state=state, metrics=metrics)


def assert_same(found: Checkpoint, wanted: Checkpoint) -> None:
    assert (found.round, found.metrics) == (wanted.round, wanted.metrics)
    assert found.trainer_state.step == wanted.trainer_state.step
    np.testing.assert_array_equal(found.vector, wanted.vector)
    for name in ("momentum", "correction", "local"):
        np.testing.assert_array_equal(getattr(found.trainer_state, name), getattr(wanted.trainer_state, name))
    assert found.vector.flags.writeable


def latest(folder: Path) -> Loaded:
    loaded = CheckpointStore(folder).load_latest()
    assert loaded is not None
    return loaded


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_the_newest_comes_back_and_one_before_it_is_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "new" / "task")
    assert store.load_latest() is None
    for number in range(1, 5):
        store.save(checkpoint(number))
        loaded = latest(tmp_path / "new" / "task")
        assert_same(loaded.checkpoint, checkpoint(number))
        assert loaded.skipped == ()
    assert [decode(path.read_bytes()).round for path in files(tmp_path / "new" / "task")] == [3, 4]


def test_a_round_may_come_again(tmp_path: Path) -> None:
    for number in (5, 6, 2):  # taken up again from an earlier one
        CheckpointStore(tmp_path).save(checkpoint(number))
    assert latest(tmp_path).checkpoint.round == 2


LENGTH = len(encode(checkpoint(2)))


@pytest.mark.parametrize("length", range(LENGTH))
def test_cut_short_anywhere_it_gives_way_to_the_previous(tmp_path: Path, length: int) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(1))
    store.save(checkpoint(2))
    newest = files(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:length])
    loaded = latest(tmp_path)
    assert_same(loaded.checkpoint, checkpoint(1))
    assert len(loaded.skipped) == 1
    assert loaded.skipped[0].startswith(f"{newest.name}: it is cut short or ")


@given(st.integers(0, LENGTH - 1), st.integers(1, 255))
def test_one_changed_byte_is_enough_to_refuse_it(place: int, change: int) -> None:
    data = bytearray(encode(checkpoint(2)))
    data[place] ^= change
    with pytest.raises(UsageError, match="cut short or"):
        decode(bytes(data))


def test_what_is_appended_is_refused() -> None:
    with pytest.raises(UsageError, match="SHA-256"):
        decode(encode(checkpoint(2)) + b"\0")


def test_the_next_save_keeps_the_good_one_and_not_the_damaged(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(1))
    store.save(checkpoint(2))
    good, damaged = files(tmp_path)
    damaged.write_bytes(b"")
    store = CheckpointStore(tmp_path)
    store.load_latest()
    store.save(checkpoint(3))
    assert good.exists()
    assert not damaged.exists()
    files(tmp_path)[-1].write_bytes(b"")
    assert latest(tmp_path).checkpoint.round == 1


def test_when_none_can_be_used_the_user_decides(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(1))
    store.save(checkpoint(2))
    for path in files(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(
        LeptonError, match=r"no checkpoint can be used \(.*02.lepton: .*01.lepton: .*move the folder away"
    ):
        store.load_latest()


def test_one_that_cannot_be_read_gives_way_too(tmp_path: Path) -> None:
    CheckpointStore(tmp_path).save(checkpoint(1))
    (tmp_path / "checkpoint-000000000002.lepton").mkdir()
    loaded = latest(tmp_path)
    assert loaded.checkpoint.round == 1
    assert loaded.skipped == ("checkpoint-000000000002.lepton: Is a directory",)


def sealed(header: bytes, body: bytes) -> bytes:
    """A file whose SHA-256 is right, whatever it holds."""
    content = b"LEPTON\x00\x02" + len(header).to_bytes(4, "big") + header + body
    return hashlib.sha256(content).digest() + content


def test_a_content_of_another_kind_is_refused() -> None:
    header = msgspec.msgpack.encode({"round": 1, "step": 2, "metrics": None})
    row = np.zeros(3, np.float32)
    whole = {"vector": row, "momentum": row, "correction": row[:0], "local": row[:1]}
    decode(sealed(header, save(whole)))
    cases: list[tuple[bytes, dict[str, Any]]] = [
        (b"", whole),
        (msgspec.msgpack.encode({"round": "1", "step": 2, "metrics": None}), whole),
        (header, {"vector": row}),
        (header, {"vector": row, "momentum": row}),
        (header, whole | {"momentum": row.astype(np.float64)}),
        (header, whole | {"vector": row[None]}),
    ]
    for bad_header, tensors in cases:
        with pytest.raises(UsageError, match="its content cannot be read"):
            decode(sealed(bad_header, save(tensors)))
    with pytest.raises(UsageError, match="its content cannot be read"):
        decode(sealed(header, b"rubbish"))


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LeptonError, match="file: cannot keep checkpoints there"):
        CheckpointStore(tmp_path / "file")


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "checkpoint-1.lepton").write_text("mine")
    assert CheckpointStore(tmp_path).load_latest() is None
    CheckpointStore(tmp_path).save(checkpoint(1))
    assert len(files(tmp_path)) == 3


class Killed(BaseException):
    """The process ends here: nothing after this reaches the disk."""


def steps_until_killed(patch: pytest.MonkeyPatch, steps: int) -> list[str]:
    """Let ``steps`` calls that change the disk happen; every later one raises, as a dead process does nothing."""
    done: list[str] = []

    def limited(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            if len(done) >= steps:
                raise Killed
            done.append(name)
            return real(*arguments, **settings)

        return call

    for owner, name in [(os, "fsync"), (Path, "replace"), (Path, "unlink")]:
        patch.setattr(owner, name, limited(name, getattr(owner, name)))
    return done


@pytest.mark.parametrize("steps", range(5))
@pytest.mark.parametrize("saved", [1, 2])
def test_killed_between_any_two_steps_nothing_is_lost(
    tmp_path: Path, steps: int, saved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    for number in range(1, saved + 1):
        store.save(checkpoint(number))
    with monkeypatch.context() as patch:
        done = steps_until_killed(patch, steps)
        try:
            store.save(checkpoint(saved + 1))
        except Killed:
            pass
        else:
            assert done == ["fsync", "replace", "fsync", "unlink"][: len(done)]
    loaded = latest(tmp_path)
    assert loaded.skipped == ()
    assert_same(loaded.checkpoint, checkpoint(saved + ("replace" in done)))
    assert not list(tmp_path.glob(".*"))  # opening the store clears what was half-written
    CheckpointStore(tmp_path).save(checkpoint(9))
    assert latest(tmp_path).checkpoint.round == 9


def test_a_full_disk_leaves_the_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    store = CheckpointStore(tmp_path)
    store.save(checkpoint(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(LeptonError, match="No space left on device"):
            store.save(checkpoint(2))
    assert latest(tmp_path).checkpoint.round == 1
    assert len(files(tmp_path)) == 1


def test_a_trainer_goes_on_exactly_from_the_disk(tmp_path: Path) -> None:
    spec, data, settings = ModelSpec(architecture="mlp", inputs=(64,), classes=10), digits(), TrainSettings()
    trainer = Trainer(spec, data, settings)
    trainer.run_steps(11)
    saved = Checkpoint(round=1, vector=trainer.vector(), trainer_state=trainer.state(), metrics=trainer.evaluate())
    CheckpointStore(tmp_path).save(saved)
    trainer.run_steps(11)
    loaded, resumed = latest(tmp_path).checkpoint, Trainer(spec, data, settings)
    resumed.restore(loaded.vector, loaded.trainer_state)
    assert resumed.evaluate() == loaded.metrics
    resumed.run_steps(11)
    np.testing.assert_array_equal(resumed.vector(), trainer.vector())
