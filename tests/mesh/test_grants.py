"""Grants: chains from the root to one peer that only narrow."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh import limits
from lepton.mesh.errors import Refused, UsageError
from lepton.mesh.grants import (
    ROLES,
    Authority,
    Grant,
    Statement,
    allows,
    authority_of,
    capabilities_of_role,
    issue,
    role_of,
)
from lepton.mesh.identity import Identity
from lepton.mesh.messages import pack, unpack

from .fakes import FOREVER, NOW, ROOT, SERIAL, grant, identity

ADMIN, ALICE, BOB, OTHER_ROOT = map(identity, ("admin", "alice", "bob", "other root"))


def judge(*chain: Grant, subject: Identity = ALICE, now: float = NOW) -> Authority:
    return authority_of(chain, root=ROOT.peer_id, subject=subject.peer_id, now=now)


def test_the_root_lets_a_member_in() -> None:
    authority = judge(grant(ROOT, ALICE, role="member"))
    assert authority == Authority(ALICE.peer_id, ROLES["member"], int(FOREVER))
    authority.require("infer:digits", NOW)


def test_a_chain_narrows_in_capabilities_and_time() -> None:
    chain = (
        grant(ROOT, ADMIN, role="admin", expires=NOW + 100),
        grant(ADMIN, ALICE, "mesh", "infer:digits", expires=NOW + 1000),
    )
    authority = judge(*chain)
    assert authority.capabilities == ("mesh", "infer:digits")
    assert authority.expires == NOW + 100  # no longer than its issuer's


@pytest.mark.parametrize(
    ("chain", "words"),
    [
        ((), "showed no grant of this mesh"),
        ((grant(OTHER_ROOT, ALICE),), "of another mesh or forged"),
        ((grant(ALICE, ALICE, role="admin"),), "of another mesh or forged"),
        ((grant(ROOT, BOB),), "belongs to"),
        ((grant(ROOT, ALICE, expires=NOW),), "has expired"),
        ((grant(ROOT, ADMIN, role="admin", expires=NOW), grant(ADMIN, ALICE)), "has expired"),
        ((grant(ROOT, ADMIN, role="member"), grant(ADMIN, ALICE, "mesh")), "may not give grants"),
        ((grant(ROOT, ADMIN, "mesh", "invite"), grant(ADMIN, ALICE, role="member")), "more than its issuer"),
        ((grant(ROOT, ADMIN, "invite", "infer:digits"), grant(ADMIN, ALICE, "infer:*")), "more than its issuer"),
        ((grant(ADMIN, ALICE), grant(ROOT, ADMIN, role="admin")), "of another mesh or forged"),
    ],
)
def test_a_chain_that_does_not_hold_is_refused_in_words(chain: tuple[Grant, ...], words: str) -> None:
    with pytest.raises(Refused, match=words):
        judge(*chain)


def test_a_chain_has_at_most_three_links() -> None:
    people = [ROOT, ADMIN, BOB, OTHER_ROOT, ALICE]
    chain = [grant(a, b, role="admin") for a, b in itertools.pairwise(people)]
    judge(*chain[: limits.GRANT_CHAIN_MAX], subject=people[limits.GRANT_CHAIN_MAX])
    with pytest.raises(Refused, match="has 4 links; at most 3"):
        judge(*chain)


def signed(issuer: Identity, payload: bytes) -> Grant:
    return Grant(statement=payload, signature=issuer.sign("grant", payload))


def test_a_statement_must_name_its_signer_and_a_known_version() -> None:
    theirs = unpack(grant(BOB, ALICE).statement, Statement)
    with pytest.raises(Refused, match="names another issuer"):
        judge(signed(ROOT, pack(theirs)))
    newer = Statement(
        version=2, issuer=ROOT.peer_id, subject=ALICE.peer_id, capabilities=("mesh",), expires=2**40, serial=SERIAL
    )
    with pytest.raises(Refused, match="does not know"):
        judge(signed(ROOT, pack(newer)))
    with pytest.raises(Refused, match="forged"):
        judge(signed(ROOT, b"\xc1"))


@pytest.mark.parametrize(
    "capability", ["", "Mesh", "mesh\n", "infer:", "infer:**", "infer:a b", "infer:a:b", "x" * 5000]
)
def test_a_capability_has_a_fixed_form(capability: str) -> None:
    payload = grant(ROOT, ALICE, capability).statement
    with pytest.raises(Refused):
        judge(signed(ROOT, payload))


def test_a_grant_holds_so_many_capabilities_and_no_more() -> None:
    many = tuple(f"infer:model-{n}" for n in range(limits.CAPABILITIES_MAX + 1))
    assert judge(grant(ROOT, ALICE, *many[:-1])).capabilities == many[:-1]
    with pytest.raises(Refused):
        judge(grant(ROOT, ALICE, *many))


@given(st.data())
def test_no_changed_byte_of_a_grant_passes(data: st.DataObject) -> None:
    good = grant(ROOT, ALICE)
    blob = bytearray(good.statement + good.signature)
    blob[data.draw(st.integers(0, len(blob) - 1))] ^= data.draw(st.integers(1, 255))
    at = len(good.statement)
    with pytest.raises(Refused):
        judge(Grant(statement=bytes(blob[:at]), signature=bytes(blob[at:])))


def test_what_a_capability_covers() -> None:
    held = ("mesh", "infer:*", "train:digits")
    for needed in ("mesh", "infer:digits", "infer:*", "train:digits"):
        assert allows(held, needed)
    for needed in ("admin", "infer", "train:*", "train:other", "train", "service:x", "meshes"):
        assert not allows(held, needed)


def test_an_authority_says_what_is_missing_and_when_it_is_over() -> None:
    authority = judge(grant(ROOT, ALICE, role="client"))
    with pytest.raises(Refused, match="lacks the capability 'train:digits'"):
        authority.require("train:digits", NOW)
    with pytest.raises(Refused, match="has expired"):
        authority.require("mesh", FOREVER)


def test_a_role_that_does_not_exist_is_named_with_those_that_do() -> None:
    assert capabilities_of_role("trainer") == ROLES["trainer"]
    with pytest.raises(UsageError, match="no role 'boss'; choose one of client, trainer, member, admin"):
        capabilities_of_role("boss")


def test_every_grant_of_ours_fits_its_field() -> None:
    longest = tuple(f"infer:{'m' * 55}{n:02}" for n in range(limits.CAPABILITIES_MAX - 5))
    statement = issue(ROOT, ALICE.peer_id, longest, expires=FOREVER, serial=SERIAL).statement
    assert len(statement) < limits.GRANT_BYTES_MAX


def test_capabilities_have_a_name_for_people() -> None:
    for role, capabilities in ROLES.items():
        assert role_of(tuple(reversed(capabilities))) == role
    assert role_of(("train:x", "mesh")) == "mesh, train:x"
    assert role_of(()) == "nothing"


def test_a_role_may_have_named_capabilities_besides_and_none_that_make_an_admin() -> None:
    assert capabilities_of_role("client, host:eyes,deploy:*") == (*ROLES["client"], "host:eyes", "deploy:*")
    for word in ("admin", "invite", "mesh", "host", "host:", "host:Eyes", "admin:x", ""):
        with pytest.raises(UsageError, match="is no capability; write infer:NAME"):
            capabilities_of_role(f"client,{word}")
    with pytest.raises(UsageError, match="holds 32 capabilities"):
        capabilities_of_role(",".join(["client", *(f"host:eyes-{n}" for n in range(limits.CAPABILITIES_MAX))]))


def test_members_host_services_also_by_grants_from_before_and_clients_and_trainers_do_not() -> None:
    for role, hosts in {"client": False, "trainer": False, "member": True, "admin": True}.items():
        assert allows(ROLES[role], "host:eyes") is hosts, role
    assert allows((*ROLES["client"], "host:eyes"), "host:eyes")
    assert not allows((*ROLES["client"], "host:eyes"), "host:ears")
    assert not allows(("mesh", "service:*", "train:digits"), "host:eyes")
    assert not allows(ROLES["member"], "host")
