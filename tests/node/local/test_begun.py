"""Which private round was begun: kept for good, never repeated, never guessed."""

from pathlib import Path

import pytest
from lepton.mesh.errors import LeptonError
from lepton.node.learning.begun import Begun


def test_a_round_is_noted_for_good_and_never_again(tmp_path: Path) -> None:
    begun = Begun(tmp_path / "x.1")
    assert begun.last == -1
    for round_ in (0, 1, 7):
        begun.mark(round_)
        again = Begun(tmp_path / "x.1")
        assert again.last == round_
        for earlier in (0, round_):
            with pytest.raises(LeptonError, match=f"private round {earlier} had begun before"):
                again.mark(earlier)


@pytest.mark.parametrize("content", [b"", b"-1", b"7 ", b"\xff", b"1e3", b"9" * 40])
def test_what_cannot_be_read_is_not_guessed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.1").write_bytes(content)
    with pytest.raises(LeptonError, match="cannot be read"):
        Begun(tmp_path / "x.1")


def test_a_disk_that_will_not_take_it_stops_the_round(tmp_path: Path) -> None:
    begun = Begun(tmp_path / "gone" / "x.1")
    with pytest.raises(LeptonError, match="cannot be written"):
        begun.mark(0)
    assert begun.last == -1
