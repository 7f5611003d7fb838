"""Fuzz codes, peer ids and addresses, which people and strangers give as text, and what a mesh welcomes with."""

import random

from .fuzzing import Data, main, watched

with watched(
    "lepton.mesh.codes", "lepton.mesh.pake", "lepton.mesh.applicant", "lepton.mesh.identity", "lepton.mesh.tcp"
):
    from lepton.mesh.applicant import Applicant
    from lepton.mesh.codes import code_of, read_code
    from lepton.mesh.errors import PeerError, Refused, UsageError
    from lepton.mesh.identity import peer_id_of, public_key_of
    from lepton.mesh.messages import pack
    from lepton.mesh.pake import Side
    from lepton.mesh.protocol import JoinGranted, JoinHeld, Verdict, Welcome
    from lepton.mesh.tcp import parse_address, parse_listen

from ..mesh.fakes import NOW, ROOT, credentials, identity

ANN, BEN = identity("ann"), identity("ben")
CODE = code_of(1234, 987654321)


def _code(text: str) -> None:
    code = read_code(text)
    assert read_code(str(code)) == code


def _sealed(text: str) -> None:
    """Somebody who does know the code, and welcomes with anything."""
    applicant = Applicant(CODE, me=ANN.peer_id, issuer=BEN.peer_id, entropy=random.Random(1).randbytes)
    side = Side(CODE, joiner=ANN.peer_id, issuer=BEN.peer_id, joins=False, entropy=random.Random(2).randbytes)
    proof = applicant.prove(JoinHeld(share=side.share))
    assert proof is not None
    side.receive(proof.share)
    granted = JoinGranted(confirmation=side.confirmation, sealed=side.seal(text.encode("latin-1")))
    got = applicant.conclude(granted, NOW)
    if isinstance(got, Refused):
        raise got


def _peer(text: str) -> None:
    assert peer_id_of(public_key_of(text)) == text


def _address(text: str) -> None:
    address, _ = parse_address(text)
    assert parse_address(str(address))[0] == address


def _listen(text: str) -> None:
    str(parse_listen(text))


WAYS = [_code, _peer, _address, _listen] * 8 + [_sealed]  # seldom what does arithmetic on a curve in Python


def one(raw: bytes) -> bool:
    data = Data(raw)
    way = data.pick(WAYS)
    try:
        way(data.rest().decode("latin-1"))
    except (UsageError, PeerError, Refused):
        return False
    return True


_WELCOME = Welcome(mesh_name="home", root=ROOT.peer_id, chain=credentials(ANN).chain)
SEEDS = [
    b"\x00" + str(CODE).encode(),
    b"\x01" + ROOT.peer_id.encode(),
    b"\x02/ip4/127.0.0.1/tcp/4001/p2p/" + ROOT.peer_id.encode(),
    b"\x02/ip6zone/eth0/ip6/fe80::1/tcp/1",
    b"\x03[::1]:4001",
    b"\x20" + pack(Verdict(welcome=_WELCOME)),
    b"\x20" + pack(Verdict(refused="no")),
]

if __name__ == "__main__":
    main(one, SEEDS)
