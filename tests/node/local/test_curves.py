"""Curves: a picture comes out, and what would keep it from that is told before the training."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lepton.mesh.errors import UsageError
from lepton.node.curves import Curves
from lepton.node.watch import Watch
from PIL import Image

NODES: dict[str, dict[str, Any]] = {
    "peer-one": {"state": "training", "round": 3, "accuracy": 0.5, "loss": 2.0},
    "peer-two": {"state": "ready"},
}


def test_the_picture_shows_what_was_told(tmp_path: Path) -> None:
    curves = Curves(tmp_path / "curves.png")
    watch = Watch(5, "robust", plain=True, as_json=True, curves=curves)
    watch.show(NODES)
    watch.finish({"task": "x", "version": 1, "rounds": 5, "nodes": {"peer-one": {**NODES["peer-one"], "round": 5}}})
    assert curves._points["accuracy"]["peer-one"] == {3: 0.5, 5: 0.5}
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 500
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 10


def test_what_cannot_be_drawn_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path / "x.svg", tmp_path / "none" / "x.png"):
        with pytest.raises(UsageError, match=r"name a \.png file in a folder that is there"):
            Curves(path)
    curves = Curves(tmp_path / "x.png")
    (tmp_path / "x.png").mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        curves.save("x")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=r"pip install 'lepton-node\[plot\]'"):
        Curves(tmp_path / "x.png")


def test_plain_lines_are_one_a_round_and_one_a_change_of_state(capsys: pytest.CaptureFixture[str]) -> None:
    said = {"rounds": 5, "loss": 0.25, "accuracy": None, "r2": None, "members": 2, "bytes_sent": 1500,
            "deadline_misses": 0, "reason": ""}  # fmt: skip
    watch = Watch(5, "trusted", plain=True, as_json=False)
    for number in range(1, 4):
        watch.hear({"nodes": {"peer-one": {"state": "training", "round": number}}})
        watch.hear({"round": {**said, "round": number, "accuracy": 0.5 if number == 3 else None}})
    watch.hear({"nodes": {"peer-one": {"state": "done", "round": 3}}})
    assert capsys.readouterr().out.splitlines() == [
        "peer-one training 1/5",
        "round 1/5: loss 0.2500, 2 members, 2 kB sent, 0 misses",
        "round 2/5: loss 0.2500, 2 members, 2 kB sent, 0 misses",
        "round 3/5: loss 0.2500, 50.0%, 2 members, 2 kB sent, 0 misses",
        "peer-one done 3/5",
    ]
