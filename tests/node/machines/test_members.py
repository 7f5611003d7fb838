"""What devices are called in sentences for their owner."""

from lepton.mesh.identity import PeerId
from lepton.node.members import named

ATTIC, ONE, OTHER = (PeerId(f"12D3KooW{last}") for last in ("aaaaAAAA", "bbbbBBBB", "ccccCCCC"))


def test_a_device_is_named_in_place_of_its_short_id_and_nothing_else_is_touched() -> None:
    devices = {ATTIC: "attic", ONE: "pi", OTHER: "pi"}
    assert named("aaaaAAAA did not answer.", devices) == "attic did not answer."
    assert named("bbbbBBBB, not ccccCCCC", devices) == "pi (bbbbBBBB), not pi (ccccCCCC)", "two have that name"
    assert named(f"{ATTIC} ddddDDDD", devices) == f"{ATTIC} ddddDDDD"
    assert named("aaaaAAAA", {ATTIC: "bbbbBBBB", ONE: "x"}) == "bbbbBBBB", "a name is no id"
    assert named("aaaaAAAA", {}) == "aaaaAAAA"
