"""From a TCP connection to a sealed one: agree on security, prove identities, agree on the muxer.

Only ``/noise`` and ``/tls/1.0.0`` exist here: a peer that proposes plaintext or secio is answered 'na'. Nothing here
has a time limit of its own; whoever calls bounds it and closes the socket when it is cut off.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from . import noise, tls
from .errors import PeerError
from .multistream import Answering, Asking
from .records_layer import Records
from .tcp import Socket
from .yamux import PROTOCOL as YAMUX

MUXERS: Final = (YAMUX,)
# What a peer may send before we know who it is; a Noise handshake has 600 bytes, a TLS one 2 KiB.
HANDSHAKE_BYTES_MAX: Final = 64 * 1024

Handshake = noise.NoiseHandshake | tls.TlsHandshake


class Keys:
    """One node's keys for every security protocol, and the order in which it proposes them."""

    def __init__(self, identity: noise.KeyHolder, security: Sequence[str]) -> None:
        """``security`` lists protocol ids, the best first; what is missing is neither proposed nor accepted."""
        self.security = tuple(security)
        self._noise = noise.NoiseKeys(identity, list(MUXERS)) if noise.PROTOCOL in security else None
        self._tls = tls.TlsKeys(identity, list(MUXERS)) if tls.PROTOCOL in security else None

    def handshake(self, protocol: str, *, initiator: bool) -> Handshake:
        if protocol == noise.PROTOCOL and self._noise:
            return noise.NoiseHandshake(self._noise, initiator=initiator)
        assert protocol == tls.PROTOCOL
        assert self._tls
        return tls.TlsHandshake(self._tls, initiator=initiator)


@dataclass(frozen=True, slots=True)
class Secured:
    """Who is at the other end, how to talk to it, and what it said already."""

    peer_id: str
    records: Records
    early: bytes


def anybody(_peer_id: str) -> None:
    """Talk to whoever it is."""


async def secure(socket: Socket, keys: Keys, *, initiator: bool, check: Callable[[str], None] = anybody) -> Secured:
    """Upgrade one connection. Raises PeerError when the peer breaks the rules, LinkError when it leaves.

    ``check`` is given the peer's id as soon as it is proven. To whom it raises nothing more is said: where we dialled,
    that peer has not seen our own id yet.
    """
    budget = HANDSHAKE_BYTES_MAX
    handshake, data = await (_propose(socket, keys) if initiator else _respond(socket, keys))
    while handshake.records is None:
        answer = handshake.receive(data)
        if handshake.peer_id:
            check(handshake.peer_id)
        if answer:
            await socket.send_all(answer)
        if handshake.records is None:
            data = await socket.receive_some()
            budget -= len(data)
            if budget < 0:
                msg = f"The peer's handshake is longer than {HANDSHAKE_BYTES_MAX} bytes."
                raise PeerError(msg)
    records: Records = handshake.records
    early = b"".join(records.open(memoryview(handshake.rest)))
    if handshake.muxer not in MUXERS:
        early = await _agree_on_muxer(socket, records, early, initiator=initiator)
    return Secured(handshake.peer_id, records, early)


async def _propose(socket: Socket, keys: Keys) -> tuple[Handshake, bytes]:
    asking = Asking(keys.security)
    handshake: Handshake | None = None
    first = asking.start()
    if len(keys.security) == 1:  # nothing to fall back on, so the handshake need not wait for the answer
        handshake = keys.handshake(keys.security[0], initiator=True)
        first += handshake.start()
    await socket.send_all(first)
    while asking.chosen is None:
        answer = asking.receive(await socket.receive_some())
        if answer:
            await socket.send_all(answer)
    if handshake is None:
        handshake = keys.handshake(asking.chosen, initiator=True)
        await socket.send_all(handshake.start())
    return handshake, asking.rest


async def _respond(socket: Socket, keys: Keys) -> tuple[Handshake, bytes]:
    answering = Answering(keys.security)
    while answering.chosen is None:
        answer = answering.receive(await socket.receive_some())
        if answer:
            await socket.send_all(answer)
    return keys.handshake(answering.chosen, initiator=False), answering.rest


async def _agree_on_muxer(socket: Socket, records: Records, early: bytes, *, initiator: bool) -> bytes:
    negotiation: Asking | Answering
    if initiator:
        negotiation = asking = Asking(MUXERS)
        await socket.send_all(records.seal([asking.start()]))
    else:
        negotiation = Answering(MUXERS)
    data = early
    while True:
        answer = negotiation.receive(data)
        if answer:
            await socket.send_all(records.seal([answer]))
        if negotiation.chosen is not None:
            return negotiation.rest
        block = await socket.receive_some()
        data = b"".join(records.open(memoryview(block)))
        if records.ended:
            msg = "The peer ended the connection while agreeing on a muxer."
            raise PeerError(msg)
