"""Whose code runs: signatures over bundles, the mesh's grants, a device's own configuration, and records that lie."""

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from lepton.mesh.errors import PeerError, UsageError
from lepton.mesh.grants import ROLES, Authority, allows
from lepton.mesh.identity import Identity, PeerId
from lepton.mesh.messages import pack, unpack
from lepton.node.deployments import BlobRef
from lepton.node.services.bundling.admitting import check_allow, may_deploy, refusal
from lepton.node.services.bundling.signing import sign_release, verify_release
from lepton.node.services.deciding.outlook import picture_of
from lepton.node.services.deciding.view import SERVICES_PER_OWNER_MAX, ServiceView
from lepton.node.services.records import HostedRecord, InstanceSaid, Offering, Release, ServiceRecord
from lepton.node.services.spec import MethodBrief, Needs

ADMIN, DEPLOYER, MEMBER, ROOT, CALLER, TRAINER, STRANGER = (Identity(bytes([number]) * 32) for number in range(7))
BUNDLE = BlobRef(digest="ab" * 32, size_bytes=100)
GRANTS = {
    ADMIN.peer_id: ROLES["admin"],
    DEPLOYER.peer_id: (*ROLES["member"], "deploy:eyes"),
    MEMBER.peer_id: ROLES["member"],
    CALLER.peer_id: ROLES["client"],
    TRAINER.peer_id: (*ROLES["trainer"], "host:ears"),
}


def authority_of(peer: PeerId) -> Authority:
    return Authority(peer, GRANTS[peer], 2**53)


def release(signer: Identity = ADMIN, service: str = "eyes", **changes: Any) -> Release:
    version, needs = changes.get("version", "1.0"), changes.get("needs", Needs())
    signature = sign_release(signer, ROOT.peer_id, service, version, BUNDLE, needs)
    return Release(
        version=version,
        bundle=BUNDLE,
        signer=signer.peer_id,
        signature=signature,
        needs=needs,
        methods=(MethodBrief(name="see"),),
    )


def why_not(found: Release, *allow: str, service: str = "eyes") -> str:
    return refusal(service, found, mesh=ROOT.peer_id, authority_of=authority_of, allow=allow)


def test_an_admins_grant_from_before_there_were_services_lets_it_deploy() -> None:
    assert allows(ROLES["admin"], "deploy:eyes")
    assert allows(ROLES["admin"], "deploy:*")
    assert not allows(ROLES["member"], "deploy:eyes")
    assert not allows(("admin",), "deploy")  # not a capability of its own: it always names what
    assert may_deploy(authority_of, DEPLOYER.peer_id, "eyes")
    assert not may_deploy(authority_of, DEPLOYER.peer_id, "ears")
    assert not may_deploy(authority_of, ROOT.peer_id, "eyes"), "who was never met"


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "1.1"},
        {"needs": Needs(memory_bytes=1)},
        {"bundle": BlobRef(digest="cd" * 32, size_bytes=100)},
        {"signer": MEMBER.peer_id},
    ],
)
def test_a_signature_is_for_one_bundle_version_and_needs(changes: dict[str, Any]) -> None:
    verify_release(ROOT.peer_id, "eyes", release())
    with pytest.raises(PeerError, match="forged or damaged"):
        verify_release(ROOT.peer_id, "eyes", msgspec.structs.replace(release(), **changes))


def test_a_signature_is_for_one_mesh_and_one_service() -> None:
    with pytest.raises(PeerError, match="forged"):
        verify_release(ADMIN.peer_id, "eyes", release())
    assert "not signed as it should be" in why_not(release(), "admin", "ears", service="ears")


@pytest.mark.parametrize("word", ["admin", "deploy", "eyes", "ab" * 32, str(ADMIN.peer_id)])
def test_each_word_of_the_configuration_admits_what_it_names(word: str) -> None:
    assert why_not(release(), word) == ""


def test_by_default_only_what_an_admin_signed_runs() -> None:
    assert why_not(release(ADMIN), "admin") == ""
    assert "does not admit it: [services] allow = ['admin']" in why_not(release(DEPLOYER), "admin")
    told = why_not(release(DEPLOYER), *(f"{number:064x}" for number in range(50)))
    assert "allow = ['000000000000…', '000000000000…', …]. Add 'eyes'" in told  # what to do is not cut off
    assert why_not(release(DEPLOYER), "deploy") == ""
    assert "does not admit" in why_not(release(ADMIN))


def test_no_configuration_admits_whom_the_mesh_does_not() -> None:
    for word in ("admin", "deploy", "eyes", "ab" * 32, str(MEMBER.peer_id)):
        assert "may not deploy 'eyes' in this mesh (any more)" in why_not(release(MEMBER), word)
    assert "deploy:ears" in why_not(release(DEPLOYER, "ears"), "deploy", service="ears")


def test_a_word_that_can_admit_nothing_is_told() -> None:
    check_allow(("admin", "deploy", "eyes", "ab" * 32, str(ADMIN.peer_id)))
    with pytest.raises(UsageError, match="'Admins' is neither 'admin' nor"):
        check_allow(("Admins",))


class Said:
    """A mesh that is nothing but records."""

    def __init__(self, *records: tuple[Identity, str, Any]) -> None:
        self._records = records

    def live(self, kind: str, value: type) -> list[tuple[Any, Any]]:
        del kind
        return [
            (SimpleNamespace(owner=owner.peer_id, name=name), said)
            for owner, name, said in self._records
            if isinstance(said, value)
        ]

    def authority(self, peer: PeerId) -> Authority:
        return authority_of(peer)


def view(*records: tuple[Identity, str, Any], now: float = 0.0) -> ServiceView:
    return ServiceView(cast("Any", Said(*records)), lambda: now)


def wanted(revision: int = 1, **changes: Any) -> ServiceRecord:
    return ServiceRecord(revision=revision, releases=(release(),), **changes)


def test_who_may_not_deploy_changes_nothing_whatever_revision_it_says() -> None:
    mine = wanted(1, replicas=2)
    theirs = wanted(2**53 - 1, removed=True)
    found = view((ADMIN, "eyes", mine), (MEMBER, "eyes", theirs), (DEPLOYER, "ears", theirs), (MEMBER, "ears", theirs))
    assert found.services() == {"eyes": mine}
    assert found.known().keys() == {"eyes"}


def test_no_revision_is_beyond_all_others() -> None:
    with pytest.raises(PeerError, match="not a valid ServiceRecord"):
        unpack(pack(wanted(2**53)), ServiceRecord)


def test_of_those_who_may_the_highest_revision_counts_then_the_owner() -> None:
    first, second = sorted((ADMIN, DEPLOYER), key=lambda identity: identity.peer_id)
    for order in ((first, second), (second, first)):
        found = view(*((owner, "eyes", wanted(3, replicas=1 + (owner is second))) for owner in order))
        assert found.services()["eyes"].replicas == 2
    found = view((first, "eyes", wanted(4, removed=True)), (second, "eyes", wanted(3)))
    assert found.services() == {}
    assert found.known()["eyes"].owner == first.peer_id


def test_of_one_owner_only_so_many_services_count() -> None:
    found = view(*((ADMIN, f"eyes-{number:03}", wanted()) for number in range(SERVICES_PER_OWNER_MAX + 1)))
    assert len(found.services()) == SERVICES_PER_OWNER_MAX


def test_who_may_not_host_is_not_heard_asked_or_counted_whatever_it_says() -> None:
    said = HostedRecord(revision=1, failed={BUNDLE.digest: "it burns"}, wanted=64)
    offer = Offering(memory_bytes=2**40, cores=1000.0)
    found = view(
        (ADMIN, "eyes", wanted()),
        *((peer, "eyes", said) for peer in (MEMBER, CALLER, TRAINER, STRANGER)),
        *((peer, "self", offer) for peer in (MEMBER, CALLER, TRAINER, STRANGER)),
    )
    assert found.hosted() == {"eyes": {MEMBER.peer_id: said}}
    assert picture_of(found).hosts("eyes") == {MEMBER.peer_id}


def test_a_host_says_no_wait_that_nobody_could_reckon_with() -> None:
    said = InstanceSaid(id="a", bundle="ab" * 32, version="1", state="ready")
    for queue_ms in (float("nan"), float("inf"), -1.0):
        word = HostedRecord(revision=1, instances=(msgspec.structs.replace(said, queue_ms=queue_ms),))
        with pytest.raises(PeerError, match="not a valid HostedRecord"):
            unpack(pack(word), HostedRecord)


def test_when_a_grant_has_ended_what_its_owner_signed_stated_and_hosts_counts_no_more() -> None:
    records = ((ADMIN, "eyes", wanted()), (MEMBER, "eyes", HostedRecord(revision=1)))
    offers = ((MEMBER, "self", Offering(memory_bytes=1, cores=1.0)),)
    for now, counts in ((2.0**53 - 1, True), (2.0**53, False)):
        found = view(*records, *offers, now=now)
        assert bool(found.services()) is bool(found.hosted()) is found.may_host(MEMBER.peer_id, "eyes") is counts
        why = refusal("eyes", release(), mesh=ROOT.peer_id, authority_of=found.authority, allow=("admin",))
        assert ("may not deploy 'eyes' in this mesh (any more)" in why) is not counts
