"""The only file that imports libp2p: every name of it that Lepton uses, all of them public, in one list.

Used are its keys and peer ids, the signed payloads of its Noise handshake and the certificates of its TLS. Its Swarm,
its hosts, its muxers and its record layers are not: what is built from these parts instead speaks the same protocols
(``/multistream/1.0.0``, ``/noise``, ``/tls/1.0.0``, ``/yamux/1.0.0``).

The import takes a second, configures logging and may add handlers to the root logger; the latter is undone here.
"""

import logging

_handlers = logging.getLogger().handlers[:]
_level = logging.getLogger().level

from libp2p.crypto.ed25519 import Ed25519PrivateKey  # noqa: E402  the root logger is to be seen before
from libp2p.crypto.keys import PublicKey  # noqa: E402
from libp2p.crypto.x25519 import X25519PublicKey  # noqa: E402
from libp2p.peer.id import ID  # noqa: E402
from libp2p.security.noise.messages import (  # noqa: E402
    NoiseExtensions,
    NoiseHandshakePayload,
    make_handshake_payload_sig,
    verify_handshake_payload_sig,
)
from libp2p.security.tls.certificate import (  # noqa: E402
    ALPN_PROTOCOL,
    generate_certificate,
    verify_certificate_chain,
)
from libp2p.security.tls.openssl_verify import install_skip_pkix_peer_verification  # noqa: E402

logging.getLogger().handlers[:] = _handlers
logging.getLogger().setLevel(_level)

__all__ = [
    "ALPN_PROTOCOL",
    "ID",
    "Ed25519PrivateKey",
    "NoiseExtensions",
    "NoiseHandshakePayload",
    "PublicKey",
    "X25519PublicKey",
    "generate_certificate",
    "install_skip_pkix_peer_verification",
    "make_handshake_payload_sig",
    "verify_certificate_chain",
    "verify_handshake_payload_sig",
]
