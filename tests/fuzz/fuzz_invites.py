"""Fuzz invite codes, peer ids and addresses: text that people and strangers give, read or refused in words."""

from .fuzzing import Data, main, watched

with watched("lepton.mesh.invites", "lepton.mesh.identity", "lepton.mesh.tcp"):
    from lepton.mesh.errors import PeerError, UsageError
    from lepton.mesh.identity import peer_id_of, public_key_of
    from lepton.mesh.invites import Invite, read_code
    from lepton.mesh.messages import encoded
    from lepton.mesh.tcp import parse_address, parse_listen

import base58

from ..mesh.fakes import NOW, ROOT

INVITE = Invite(mesh_name="home", root_key=public_key_of(ROOT.peer_id), secret=bytes(16), expires=2_000_000_000)


def _code(text: str) -> None:
    invite = read_code(text, NOW)
    assert read_code(invite.code(), NOW) == invite


def _checked(text: str) -> None:
    """A code whose checksum holds, whatever it says."""
    _code(base58.b58encode_check(text.encode("latin-1")).decode())


def _peer(text: str) -> None:
    assert peer_id_of(public_key_of(text)) == text


def _address(text: str) -> None:
    address, _ = parse_address(text)
    assert parse_address(str(address))[0] == address


def _listen(text: str) -> None:
    str(parse_listen(text))


WAYS = [_code, _checked, _peer, _address, _listen]


def one(raw: bytes) -> bool:
    data = Data(raw)
    way = data.pick(WAYS)
    try:
        way(data.rest().decode("latin-1"))
    except (UsageError, PeerError):
        return False
    return True


SEEDS = [
    b"\x00" + INVITE.code().encode(),
    b"\x01" + encoded(INVITE),
    b"\x02" + ROOT.peer_id.encode(),
    b"\x03/ip4/127.0.0.1/tcp/4001/p2p/" + ROOT.peer_id.encode(),
    b"\x03/ip6zone/eth0/ip6/fe80::1/tcp/1",
    b"\x04[::1]:4001",
]

if __name__ == "__main__":
    main(one, SEEDS)
