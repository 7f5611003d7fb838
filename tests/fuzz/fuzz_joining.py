"""Fuzz what reads a stranger's bytes on the way in: typed codes, the four messages of joining, shares, announcements.

``python tests/fuzz/fuzz_joining.py -max_total_time=60``. Whatever comes gives one of our errors or nothing; nobody gets
in who does not know the code, and no invite is tried oftener than it may be.
"""

import random
import sys

import atheris

INCLUDE = ["lepton.mesh.codes", "lepton.mesh.pake", "lepton.mesh.invites", "lepton.mesh.applicant"]

with atheris.instrument_imports(include=[*INCLUDE, "lepton.mesh.announcements", "lepton.mesh.messages"]):
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


def decoders(data: atheris.FuzzedDataProvider) -> None:
    kind = data.PickValueInList([JoinAsk, JoinHeld, JoinProof, JoinGranted, Verdict])
    unpack(data.ConsumeBytes(data.remaining_bytes()), kind)


def codes(data: atheris.FuzzedDataProvider) -> None:
    code = read_code(data.ConsumeUnicode(80))
    assert read_code(str(code)) == code


def announcements(data: atheris.FuzzedDataProvider) -> None:
    length = SEALED_BYTES if data.ConsumeBool() else data.ConsumeIntInRange(0, 255)
    assert SEAL.open(data.ConsumeBytes(length), data.ConsumeIntInRange(0, 65535)) is None


def issuing(data: atheris.FuzzedDataProvider) -> None:
    """A stranger without the code tries as often as it likes."""
    dice, book = random.Random(1).randbytes, InviteBook()
    code = book.give(held=ROLES["admin"], now=NOW, entropy=dice(ENTROPY_BYTES))
    wrong = 0
    for _ in range(data.ConsumeIntInRange(1, 7)):
        ask = JoinAsk(nameplate=code.nameplate)
        _, side = book.receive(ask, joiner=EVE.peer_id, issuer=ADMIN.peer_id, entropy=dice)
        if side is None:
            continue
        share = b"A" + (side.share[1:] if data.ConsumeBool() else data.ConsumeBytes(SHARE_BYTES - 1))
        proof = JoinProof(share=share, confirmation=data.ConsumeBytes(CONFIRMATION_BYTES))
        try:
            answer = book.conclude(side, proof, joiner=EVE.peer_id, host=HOST, now=NOW, serial=bytes(16))
        except PeerError:
            continue
        assert not answer.message.sealed
        wrong += 1
    assert wrong <= limits.INVITE_TRIES_MAX


def joining(data: atheris.FuzzedDataProvider) -> None:
    """A stranger without the code answers a joiner as it likes."""
    code = read_code("0000-0000-0000")
    applicant = Applicant(code, me=EVE.peer_id, issuer=ADMIN.peer_id, entropy=random.Random(2).randbytes)
    share = b"B" + data.ConsumeBytes(SHARE_BYTES - 1)
    if applicant.prove(JoinHeld(share=share)) is None:
        return
    granted = JoinGranted(
        confirmation=data.ConsumeBytes(CONFIRMATION_BYTES), sealed=data.ConsumeBytes(data.remaining_bytes())
    )
    assert not isinstance(applicant.conclude(granted, NOW), Joined)


def test_one(raw: bytes) -> None:
    data = atheris.FuzzedDataProvider(raw)
    try:
        choice = data.ConsumeIntInRange(0, 127)  # seldom what does arithmetic on a curve in Python
        {101: issuing, 102: joining}.get(choice, (decoders, codes, announcements)[choice % 3])(data)
    except (PeerError, Refused, UsageError):
        return


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one)
    atheris.Fuzz()
