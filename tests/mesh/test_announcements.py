"""The sealed value of an announcement: members read it, nobody else can tell it from noise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.announcements import NONCE_BYTES, SEALED_BYTES, Seal
from lepton.mesh.identity import public_key_of

from .fakes import ROOT, identity

ALICE, OTHER_ROOT = identity("alice").peer_id, identity("another root").peer_id
SEAL = Seal(ROOT.peer_id)
NONCE = bytes(range(NONCE_BYTES))
SEALED = SEAL.close(ALICE, 4001, NONCE)


def test_a_member_reads_who_it_is() -> None:
    assert len(SEALED) == SEALED_BYTES < 250  # with its key it has to fit into one TXT string
    assert SEAL.open(SEALED, 4001) == ALICE


def test_outsiders_and_other_meshes_read_nothing() -> None:
    assert Seal(OTHER_ROOT).open(SEALED, 4001) is None
    for secret in (ALICE.encode(), public_key_of(ALICE), ROOT.public_key, ROOT.peer_id.encode()):
        assert secret not in SEALED


def test_a_value_that_is_copied_to_another_port_is_passed_over() -> None:
    assert SEAL.open(SEALED, 4002) is None


@pytest.mark.parametrize("at", [0, NONCE_BYTES - 1, NONCE_BYTES, SEALED_BYTES - 1])
def test_a_changed_value_is_passed_over(at: int) -> None:
    assert SEAL.open(SEALED[:at] + bytes([SEALED[at] ^ 1]) + SEALED[at + 1 :], 4001) is None


@given(st.binary(max_size=300))
def test_anything_else_is_passed_over(data: bytes) -> None:
    assert SEAL.open(data, 4001) is None


@given(st.binary(min_size=NONCE_BYTES, max_size=NONCE_BYTES), st.binary(min_size=NONCE_BYTES, max_size=NONCE_BYTES))
def test_two_values_of_one_node_have_nothing_in_common(one: bytes, other: bytes) -> None:
    first, second = SEAL.close(ALICE, 4001, one), SEAL.close(ALICE, 4001, other)
    if one != other:
        run = max(
            sum(a == b for a, b in zip(first[at : at + 8], second[at : at + 8], strict=True)) for at in range(24, 66)
        )
        assert run < 8
