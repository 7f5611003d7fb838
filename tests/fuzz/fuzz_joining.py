"""Fuzz what reads a stranger's bytes on the way in: typed codes, the four messages of joining, shares, announcements.

``python -m tests.fuzz.fuzz_joining -max_total_time=60``. Whatever comes gives one of our errors or nothing; nobody gets
in who does not know the code, and no invite is tried oftener than it may be.
"""

import random
from typing import Any

from .fuzzing import Data, main, watched

INCLUDE = ["lepton.mesh.codes", "lepton.mesh.pake", "lepton.mesh.invites", "lepton.mesh.applicant"]

with watched(*INCLUDE, "lepton.mesh.announcements", "lepton.mesh.messages"):
    from lepton.mesh import limits
    from lepton.mesh.announcements import SEALED_BYTES, Seal
    from lepton.mesh.applicant import Applicant, Joined
    from lepton.mesh.codes import ENTROPY_BYTES, read_code
    from lepton.mesh.errors import PeerError, Refused, UsageError
    from lepton.mesh.grants import ROLES, issue
    from lepton.mesh.identity import Identity
    from lepton.mesh.invites import Host, InviteBook
    from lepton.mesh.messages import unpack
    from lepton.mesh.pake import CONFIRMATION_BYTES, SHARE_BYTES
    from lepton.mesh.protocol import JoinAsk, JoinGranted, JoinHeld, JoinProof, Verdict
    from lepton.mesh.revocations import Revocations

ROOT, ADMIN, EVE = (Identity(bytes([n] * 32)) for n in (1, 2, 3))
CHAIN = (issue(ROOT, ADMIN.peer_id, ROLES["admin"], expires=2e9, serial=bytes(16)),)
HOST = Host(mesh_name="home", root=ROOT.peer_id, identity=ADMIN, chain=CHAIN, revocations=Revocations(ROOT.peer_id))
SEAL = Seal(ROOT.peer_id)
NOW = 1.8e9


def decoders(data: Data) -> None:
    kind: type[Any] = data.pick([JoinAsk, JoinHeld, JoinProof, JoinGranted, Verdict])
    unpack(data.rest(), kind)


def codes(data: Data) -> None:
    code = read_code(data.take(80).decode("latin-1"))
    assert read_code(str(code)) == code


def announcements(data: Data) -> None:
    length = SEALED_BYTES if data.flag() else data.integer(0, 255)
    assert SEAL.open(data.take(length), data.integer(0, 65535)) is None


def issuing(data: Data) -> None:
    """A stranger without the code tries as often as it likes."""
    dice, book = random.Random(1).randbytes, InviteBook()
    code = book.give(held=ROLES["admin"], now=NOW, entropy=dice(ENTROPY_BYTES))
    wrong = 0
    for _ in range(data.integer(1, 7)):
        ask = JoinAsk(nameplate=code.nameplate)
        _, side = book.receive(ask, joiner=EVE.peer_id, issuer=ADMIN.peer_id, entropy=dice)
        if side is None:
            continue
        share = b"A" + (side.share[1:] if data.flag() else data.take(SHARE_BYTES - 1))
        proof = JoinProof(share=share, confirmation=data.take(CONFIRMATION_BYTES))
        try:
            answer = book.conclude(side, proof, joiner=EVE.peer_id, host=HOST, now=NOW, serial=bytes(16))
        except PeerError:
            continue
        assert not answer.message.sealed
        wrong += 1
    assert wrong <= limits.INVITE_TRIES_MAX


def joining(data: Data) -> None:
    """A stranger without the code answers a joiner as it likes."""
    code = read_code("0000-0000-0000")
    applicant = Applicant(code, me=EVE.peer_id, issuer=ADMIN.peer_id, entropy=random.Random(2).randbytes)
    share = b"B" + data.take(SHARE_BYTES - 1)
    if applicant.prove(JoinHeld(share=share)) is None:
        return
    granted = JoinGranted(confirmation=data.take(CONFIRMATION_BYTES), sealed=data.rest())
    assert not isinstance(applicant.conclude(granted, NOW), Joined)


def one(raw: bytes) -> bool:
    data = Data(raw)
    try:
        choice = data.integer(0, 127)  # seldom what does arithmetic on a curve in Python
        {101: issuing, 102: joining}.get(choice, (decoders, codes, announcements)[choice % 3])(data)
    except (PeerError, Refused, UsageError):
        return False
    return True


SEEDS = [
    b"\x01" + str(read_code("0000-0000-0000")).encode(),
    b"\x00\x00\x81\xa9nameplate\xa3A1B",
    b"\x02\x01",
    b"\x65\x03\x01",
    b"\x66",
]

if __name__ == "__main__":
    main(one, SEEDS)
