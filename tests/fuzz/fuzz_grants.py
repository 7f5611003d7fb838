"""Fuzz chains of grants and revocations: authority comes only of what the root's key signed, or Refused."""

from .fuzzing import Data, main, watched

with watched("lepton.mesh.grants", "lepton.mesh.revocations", "lepton.mesh.identity"):
    from lepton.mesh.errors import PeerError, Refused
    from lepton.mesh.grants import Chain, Grant, Statement, authority_of
    from lepton.mesh.messages import encoded, unpack
    from lepton.mesh.protocol import Hello
    from lepton.mesh.revocations import Revocation, Revocations, revoke

from ..mesh.fakes import NOW, ROOT, credentials, grant, identity

ANN, BEN = identity("ann"), identity("ben")
GOOD: Chain = (grant(ROOT, BEN, role="admin"), grant(BEN, ANN))
ISSUERS = [ROOT, ANN, BEN]


def _chain(data: Data) -> Chain:
    if data.flag():
        return unpack(data.rest(), Hello).chain
    made = []
    for _ in range(data.integer(0, 4)):
        signer, flips = data.pick(ISSUERS), data.flag()
        statement = data.take(data.integer(0, 255)) if data.flag() else data.pick(GOOD).statement
        if flips and statement:
            at = data.integer(0, len(statement) - 1)
            statement = statement[:at] + data.take(1) + statement[at + 1 :]
        made.append(Grant(statement=statement, signature=signer.sign("grant", statement)))
    return tuple(made)


def one(raw: bytes) -> bool:
    data = Data(raw)
    try:
        if data.pick([0, 0, 0, 1]):
            return _revokes(data)
        chain = _chain(data)
        authority = authority_of(chain, root=ROOT.peer_id, subject=ANN.peer_id, now=NOW)
    except (PeerError, Refused):
        return False
    first, last = (unpack(each.statement, Statement) for each in (chain[0], chain[-1]))
    assert ROOT.peer_id == first.issuer
    assert ANN.peer_id == last.subject == authority.subject
    assert NOW < authority.expires <= first.expires
    return True


def _revokes(data: Data) -> bool:
    known = Revocations(ROOT.peer_id)
    if data.flag():
        item = unpack(data.rest(), Revocation)
    else:
        sentence = data.rest()
        item = Revocation(sentence=sentence, signature=ROOT.sign("revocation", sentence))
    known.merge([item])
    assert known.why(ROOT.peer_id) == ""
    known.why_not(GOOD)
    return bool(len(known))


_REVOKED = revoke(ROOT, BEN.peer_id, root=ROOT.peer_id, reason="lost", now=NOW)
SEEDS = [
    b"\x00\x01" + encoded(Hello(chain=GOOD)),
    b"\x00\x01" + encoded(Hello(chain=credentials(ANN).chain)),
    b"\x00\x00\x01\x00\x00\x00\x00\x00\x00",
    b"\x03\x01" + encoded(_REVOKED),
    b"\x03\x00" + _REVOKED.sentence,
]

if __name__ == "__main__":
    main(one, SEEDS)
