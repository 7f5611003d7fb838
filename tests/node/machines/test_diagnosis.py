"""The doctor's rules: tables of facts, and what is found in them."""

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from lepton.mesh.errors import Refused
from lepton.mesh.grants import ROLES, authority_of, issue
from lepton.mesh.identity import Identity
from lepton.mesh.revocations import Revocations, revoke
from lepton.node.diagnosis.allowance import Allowance
from lepton.node.diagnosis.checkup import outcome_of, ports_at
from lepton.node.diagnosis.facts import (
    Ear,
    Facts,
    Hearing,
    Interface,
    Machine,
    Member,
    Peer,
    Place,
    Port,
    Running,
    Speed,
    Try,
    Voice,
    Wall,
)
from lepton.node.diagnosis.findings import SEVERITIES, Finding
from lepton.node.diagnosis.peer_rules import classified
from lepton.node.diagnosis.places import host_of, is_near
from lepton.node.diagnosis.rules import diagnose

NOW, DAY = 1_800_000_000.0, 86400
ETH = Interface(name="eth0", addresses=("192.168.1.20/24",))
MEMBER = Member(mesh="home", me="me", role="member", expires=int(NOW + 60 * DAY), grant_life_s=90 * DAY)
UP = Running(device="kitchen", listening=("/ip4/0.0.0.0/tcp/4001",))
OWN = Voice(interface="eth0", source="192.168.1.20", peer="me", addresses=("/ip4/192.168.1.20/tcp/4001",))
HEARS = Hearing(seconds=3.0, ears=(Ear(interface="eth0"),), voices=(OWN,))
WELL = Machine(cores=4, load=0.5, memory_free_bytes=10**10, disk_free_bytes=10**11, files_most=4096, release="1")
ATTIC = Peer(
    id="12D3attic", device="attic", here=True, connected=True, at="/ip4/192.168.1.30/tcp/5000", round_trip_ms=0.6,
    skew_s=0.01, skew_error_s=0.001, release="1", dial_back=(Try(address="x", outcome="open"),),
)  # fmt: skip
CELLAR = msgspec.structs.replace(ATTIC, id="12D3cellar", device="cellar")
AWAY = Peer(id="12D3attic", device="attic", addresses=("/ip4/192.168.1.30/tcp/4001",))
HEARD = Voice(interface="eth0", source="192.168.1.30", peer="12D3attic", addresses=AWAY.addresses)
GOOD = Facts(
    taken_at_s=NOW, home="/h", member=MEMBER, running=UP, machine=WELL, interfaces=(ETH,), hearing=HEARS, peers=(ATTIC,)
)


def found(**changed: Any) -> dict[str, Finding]:
    """What the rules say of good facts with something changed."""
    return {finding.id: finding for finding in diagnose(msgspec.structs.replace(GOOD, **changed))}


def severe(findings: dict[str, Finding]) -> set[tuple[str, str]]:
    return {(one.id, one.severity) for one in findings.values() if one.severity in {"warn", "bad"}}


def machine(**changed: Any) -> dict[str, Any]:
    return {"machine": msgspec.structs.replace(WELL, **changed)}


def member(**changed: Any) -> dict[str, Any]:
    return {"member": msgspec.structs.replace(MEMBER, **changed)}


def heard(*voices: Voice, **ear: Any) -> dict[str, Any]:
    return {"hearing": Hearing(seconds=3.0, ears=(Ear(interface="eth0", **ear),), voices=voices)}


def peer(known: Peer = ATTIC, **changed: Any) -> dict[str, Any]:
    return {"peers": (msgspec.structs.replace(known, **changed),)}


def tries(*outcomes: Any) -> tuple[Try, ...]:
    return tuple(Try(address="/ip4/192.168.1.30/tcp/4001", outcome=outcome) for outcome in outcomes)


def test_a_device_that_is_well_is_told_so() -> None:
    said = found(**heard(OWN, HEARD))
    assert severe(said) == set()
    assert {"running", "grant", "clock", "listening", "heard", "announced", "peer-here", "reachable"} <= set(said)
    assert "attic" in said["heard"].what


@pytest.mark.parametrize(
    ("changed", "name", "severity", "words"),
    [
        ({"member": Member()}, "no-mesh", "note", "mesh create NAME"),
        (member(trouble="mesh.json is damaged"), "folder-damaged", "bad", "mesh.json is damaged"),
        (member(out="attic was revoked by kitchen"), "thrown-out", "bad", "revoked by kitchen"),
        ({"running": None}, "not-running", "warn", "lepton-node up"),
        (member(expires=int(NOW)), "grant-expired", "bad", "set the clock"),
        (member(expires=int(NOW + 10 * DAY)), "grant-ends-soon", "warn", "10 days"),
        (machine(newest_file_s=NOW + 3600), "clock-behind", "bad", "60 minutes behind"),
        (peer(skew_s=3600.0), "clock-differs", "warn", "60 minutes ahead"),
        (peer(skew_s=-90000.0), "clock-differs", "bad", "25 hours behind"),
        ({"running": None, "ports": (Port(wanted="0.0.0.0:1", what="listen", taken_by="taken by nginx"),)},
         "port-taken", "bad", "nginx"),
        ({"running": None, "ports": (Port(wanted="10.0.0.9:1", what="listen", trouble="no such address"),)},
         "port-unusable", "bad", "no such address"),
        ({"running": msgspec.structs.replace(UP, listening=("/ip4/127.0.0.1/tcp/1",))},
         "listens-inside", "warn", "127.0.0.1"),
        ({"interfaces": ()}, "no-network", "bad", "plug in"),
        ({"interfaces": (msgspec.structs.replace(ETH, mtu=1000),)}, "small-mtu", "warn", "1000"),
        ({"interfaces": (ETH, Interface(name="docker0", addresses=("172.17.0.1/16",), kind="container"))},
         "misleading-interface", "note", "docker0"),
        ({"interfaces": (ETH, Interface(name="wg0", addresses=("10.8.0.2/24",), kind="vpn"))},
         "misleading-interface", "note", "no multicast"),
        ({"interfaces": (Interface(name="eth0", addresses=("169.254.7.8/16", "fe80::1/64")),)},
         "self-assigned", "warn", "169.254.7.8"),
        (machine(in_container=True), "in-container", "note", "--network host"),
        (heard(trouble="no multicast: no such device"), "no-multicast", "warn", "--bootstrap"),
        (heard(echoed=False), "multicast-dropped-here", "bad", "5353"),
        (heard(), "not-announced", "bad", "interfaces"),
        (heard(OWN), "nobody-heard", "note", "client isolation"),
        (heard(OWN), "multicast-blocked", "warn", "attic: here over TCP"),
        (heard(OWN, msgspec.structs.replace(HEARD, peer="")), "other-mesh", "note", "192.168.1.30"),
        (peer(release="2"), "other-release", "note", "runs release 2"),
        (peer(answer_trouble="no such method"), "peer-mute", "note", "older release"),
        (peer(round_trip_ms=300.0), "far", "note", "300 ms"),
        (peer(segments_sent=1000, segments_repeated=50), "loss", "warn", "5%"),
        (peer(down_bytes_s=1e5, up_bytes_s=1e7), "slow-link", "warn", "167 minutes"),
        (peer(down_bytes_s=1e8, up_bytes_s=1e7), "bandwidth", "ok", "100 s"),
        (peer(measure_trouble="it is busy"), "not-measured", "note", "it is busy"),
        (peer(dial_back=tries("timed out")), "not-reachable", "warn", "timed out"),
        (machine(files_most=256), "few-files", "warn", "ulimit -n 4096"),
        (machine(disk_free_bytes=5 * 10**8), "disk-low", "warn", "500 MB"),
        (machine(disk_free_bytes=10**6), "disk-low", "bad", "1 MB"),
        (machine(memory_free_bytes=10**8), "memory-low", "warn", "100 MB"),
        (machine(load=20.0), "busy", "note", "4 cores"),
        (machine(speed=Speed(kernel=False, kernel_reason="no C compiler")), "no-kernel", "warn", "no C compiler"),
        (machine(speed=Speed(threads="16")), "many-threads", "warn", "16"),
        (machine(speed=Speed(int8_mib_ns=200_000, measured_at_s=int(NOW))), "speed", "ok", "191 ms"),
        ({"walls": (Wall(name="ufw", on=True, look="sudo ufw status"),)}, "firewall", "note", "sudo ufw status"),
        ({"walls": (Wall(name="nftables", look="nft"),)}, "firewall", "note", "may be on"),
    ],
)  # fmt: skip
def test_each_fact_has_its_finding(changed: dict[str, Any], name: str, severity: str, words: str) -> None:
    assert name not in found(**heard(OWN, HEARD)) or severity == "ok" or name == "speed"
    finding = found(**changed)[name]
    assert finding.severity == severity
    assert words in f"{finding.what} {finding.why} {finding.do}"


@pytest.mark.parametrize(
    ("known", "voices", "name", "severity"),
    [
        (AWAY, (), "dial-fails", "warn"),
        ({"tries": tries("refused")}, (), "peer-away", "note"),
        ({"tries": tries("refused")}, (HEARD,), "dial-refused", "bad"),
        ({"tries": tries("timed out")}, (HEARD,), "dial-times-out", "bad"),
        ({"tries": tries("no route")}, (HEARD,), "dial-no-route", "bad"),
        ({"tries": tries("open"), "trouble": "X lives there now."}, (HEARD,), "dial-fails", "bad"),
        ({"addresses": ()}, (), "peer-unheard", "note"),
        ({"revoked": "attic was revoked"}, (HEARD,), "revoked-heard", "note"),
        ({"refusal": "No words that are known"}, (HEARD,), "peer-refused", "bad"),
    ],
)
def test_why_a_peer_is_not_here(known: Any, voices: Sequence[Voice], name: str, severity: str) -> None:
    absent = known if isinstance(known, Peer) else msgspec.structs.replace(AWAY, **known)
    said = found(peers=(absent,), **heard(OWN, *voices))
    assert said[name].severity == severity
    assert "attic" in said[name].what


def test_who_was_revoked_and_is_silent_is_no_finding() -> None:
    said = found(**peer(AWAY, revoked="attic was revoked"), **heard(OWN))
    assert not [finding for finding in said.values() if "attic" in finding.what]


def test_a_device_that_was_thrown_out_is_not_told_of_every_peer_that_refuses_it() -> None:
    said = found(**member(out="revoked"), **peer(AWAY, refusal="me was revoked by attic"))
    assert not [name for name in said if name.startswith("refused")]


def test_most_clocks_against_one_are_believed() -> None:
    slow = [msgspec.structs.replace(ATTIC, device=name, skew_s=100.0) for name in "abc"]
    assert found(peers=tuple(slow))["clock-differs"].what == "This device's clock is 100 s behind."
    mixed = (*slow[:1], CELLAR, msgspec.structs.replace(CELLAR, device="hall"))
    assert found(peers=mixed)["clock-differs"].what == "The clock of a is 100 s ahead."
    vague = (msgspec.structs.replace(ATTIC, skew_s=35.0, skew_error_s=10.0),)
    assert "clock-differs" not in found(peers=vague)


def test_an_address_that_was_named_is_told_of() -> None:
    place = Place(address="/ip4/10.0.0.9/tcp/4001", peer="12D3attic")
    assert found(places=(place,))["place"].what == "attic is at /ip4/10.0.0.9/tcp/4001."
    nobody = msgspec.structs.replace(place, peer="", trouble="x", tries=tries("timed out"))
    assert found(places=(nobody,))["dial-times-out"].severity == "bad"


def test_the_worst_comes_last() -> None:
    said = diagnose(msgspec.structs.replace(GOOD, **machine(disk_free_bytes=1, load=50.0, files_most=10)))
    order = [SEVERITIES.index(finding.severity) for finding in said]
    assert order == sorted(order)
    assert said[-1].id == "disk-low"


def test_before_there_is_any_mesh_nothing_is_wrong() -> None:
    bare = Facts(taken_at_s=NOW, machine=WELL, interfaces=(ETH,), hearing=Hearing(seconds=3.0, ears=HEARS.ears))
    assert not severe({finding.id: finding for finding in diagnose(bare)})


def test_our_own_refusals_are_understood() -> None:
    root, ann, bob = Identity.generate(), Identity.generate(), Identity.generate()
    grant = issue(root, ann.peer_id, ROLES["admin"], expires=100, serial=secrets.token_bytes(16))

    def refusal(now: float, by: Identity, chain: tuple[Any, ...]) -> str:
        with pytest.raises(Refused) as error:
            authority_of(chain, root=by.peer_id, subject=ann.peer_id, now=now)
        return str(error.value)

    def named(sentence: str) -> tuple[str, str]:
        known = classified(sentence, ann.peer_id, "ann")
        assert known is not None
        return known[2], known[0]

    assert named(refusal(200.0, root, (grant,))) == (
        "grant-expired",
        "the grant of ann has expired, by one of the two clocks",
    )
    assert named(refusal(1.0, bob, (grant,)))[0] == "wrong-mesh"
    assert named(refusal(1.0, root, ()))[0] == "no-grant"
    revocations = Revocations(root.peer_id, [revoke(root, ann.peer_id, root=root.peer_id, reason="lost", now=1.0)])
    assert named(revocations.why_not((grant,))) == ("revoked", "ann was thrown out of the mesh")
    not_a_node = classified("/ip4/127.0.0.1/tcp/7533: The peer speaks something other than multistream-select.")
    assert not_a_node is not None
    assert not_a_node[::2] == ("what answers there is no node", "no-node")
    assert classified("What nobody says") is None


def test_facts_survive_being_written_and_read() -> None:
    assert msgspec.json.decode(msgspec.json.encode(GOOD), type=Facts) == GOOD


def test_nobody_takes_more_than_its_share_in_a_while() -> None:
    allowance = Allowance(each_max=10, all_max=15, window_s=60.0)
    ann, bob = Identity.generate().peer_id, Identity.generate().peer_id
    assert allowance.take(ann, 10, 100.0) == 0
    assert allowance.take(ann, 1, 110.0) == 50.0
    assert allowance.take(bob, 6, 110.0) > 0  # all together
    assert allowance.take(bob, 5, 110.0) == 0
    assert allowance.take(ann, 10, 160.0) == 0


def test_places_are_read() -> None:
    assert host_of("/ip6zone/eth0/ip6/fe80::1/tcp/4") == "fe80::1"
    assert host_of("[::1]:5") == "::1"
    assert is_near("/ip4/192.168.1.99/tcp/1", ETH)
    assert not is_near("/ip4/192.168.2.99/tcp/1", ETH)
    assert not is_near("/dns/kitchen/tcp/1", ETH)
    assert ports_at(("/ip4/0.0.0.0/tcp/1", "/ip6/::/tcp/2"), "10.0.0.1") == (1,)
    assert ports_at(("/ip4/0.0.0.0/tcp/1",), "somewhere") == ()
    assert outcome_of("connection refused") == "refused"
    assert outcome_of("no route to host") == "no route"
    assert outcome_of("what else") == "failed"
