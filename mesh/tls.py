"""The TLS 1.3 handshake of libp2p as a machine: bytes in, bytes out, and at the end who the peer is and its records.

Source: libp2p ``tls/tls.md``. Both sides show a self-signed certificate that carries the identity's signature; OpenSSL
checks the certificate's own key, the extension's signature is checked here, before anything that the peer says is used.
The muxer is agreed on in the ALPN; a peer that offers only ``libp2p`` there is asked by multistream-select as ever.
"""

import ssl
import tempfile
from pathlib import Path
from typing import Final

from cryptography import x509

from .errors import PeerError
from .noise import KeyHolder
from .records_layer import TlsRecords
from .stock import (
    ALPN_PROTOCOL,
    ID,
    Ed25519PrivateKey,
    create_cert_template,
    generate_certificate,
    install_skip_pkix_peer_verification,
    verify_certificate_chain,
)

PROTOCOL: Final = "/tls/1.0.0"


class TlsKeys:
    """What all handshakes of one node share: a certificate, and one context for each role."""

    def __init__(self, identity: KeyHolder, muxers: list[str]) -> None:
        key = Ed25519PrivateKey.from_bytes(identity.seed)
        certificate, private = generate_certificate(key, create_cert_template())
        alpn = [*muxers, ALPN_PROTOCOL]
        with tempfile.TemporaryDirectory(prefix="lepton-tls-") as folder:
            path = Path(folder) / "identity.pem"  # Python's ssl reads certificates from files only
            path.touch(mode=0o600)
            path.write_text(certificate + private)
            self.client = _context(ssl.PROTOCOL_TLS_CLIENT, path, alpn)
            self.server = _context(ssl.PROTOCOL_TLS_SERVER, path, alpn)
        self.server.verify_mode = ssl.CERT_OPTIONAL
        install_skip_pkix_peer_verification(self.server)  # self-signed is the rule here; see ``_identify``
        self.server.num_tickets = 0  # sessions are not resumed


def _context(kind: int, path: Path, alpn: list[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(kind)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(path)
    context.set_alpn_protocols(alpn)
    return context


class TlsHandshake:
    """One handshake. Feed it until ``records`` is set; then ``peer_id``, ``muxer`` and ``rest`` are, too."""

    def __init__(self, keys: TlsKeys, *, initiator: bool) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        context = keys.client if initiator else keys.server
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_side=not initiator)
        self._initiator = initiator
        self.rest = b""  # stays empty: what came behind the handshake lies in the session already
        self.records: TlsRecords | None = None
        self.peer_id = ""
        self.muxer: str | None = None

    def start(self) -> bytes:
        """What to send first, which is nothing for the responder."""
        return self.receive(b"")

    def receive(self, data: bytes) -> bytes:
        """Take bytes, return the answer. Raises PeerError when the peer is not who its certificate says."""
        self._incoming.write(data)
        try:
            self._session.do_handshake()
        except ssl.SSLWantReadError:
            return self._outgoing.read()
        except ssl.SSLError as error:
            msg = f"The TLS handshake failed: {error.reason or error}."
            raise PeerError(msg) from error
        self._identify(self._session.getpeercert(binary_form=True))
        self.records = TlsRecords(self._session, self._incoming, self._outgoing)
        return self._outgoing.read()

    def _identify(self, certificate: bytes | None) -> None:
        if not certificate:
            msg = "The peer showed no certificate; libp2p demands one of both sides."
            raise PeerError(msg)
        try:
            key = verify_certificate_chain([x509.load_der_x509_certificate(certificate)])
            self.peer_id = ID.from_pubkey(key).to_base58()
        except Exception as error:  # ValueError, InvalidSignature, ASN.1, protobuf: no common base
            msg = f"The peer's certificate does not prove an identity: {error}."
            raise PeerError(msg) from error
        agreed = self._session.selected_alpn_protocol()
        self.muxer = agreed if agreed != ALPN_PROTOCOL else None
