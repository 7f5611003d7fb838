"""The messages of membership: hello, join and part."""

from typing import Annotated

import msgspec

from . import limits
from .grants import Chain
from .identity import PeerId
from .messages import Message, Name, Text
from .pake import CONFIRMATION_BYTES, SHARE_BYTES
from .revocations import Revocation

HELLO = "/lepton/hello/1"
ADDRESS = "address"  # kind of the records that say where their owners can be dialled
JOIN = "/lepton/join/2"

SetDigest = Annotated[bytes, msgspec.Meta(max_length=32)]


class Hello(Message, frozen=True, kw_only=True):
    """First words on a connection, by the side that dialled: 'this is what proves that I belong'.

    Where the two digests of revocations differ, ``revocations.Said`` follows on this stream until the sets are equal.
    """

    chain: Chain
    revocations: SetDigest = b""


class HelloAnswer(Message, frozen=True, kw_only=True):
    """The other side's proof, or why it refuses: to whom was revoked, with the revocations that say so."""

    chain: Chain = ()
    refused: Text = ""
    revocations: SetDigest = b""
    proof: Annotated[tuple[Revocation, ...], msgspec.Meta(max_length=limits.GRANT_CHAIN_MAX)] = ()


class JoinAsk(Message, frozen=True, kw_only=True):
    """A stranger with an invite's code asks by its public name whether this node holds it."""

    nameplate: Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Z]{3}\Z")]


class JoinHeld(Message, frozen=True, kw_only=True):
    """The holder's share of the key exchange; nothing when this node does not hold it, or why it may not be tried."""

    share: Annotated[bytes, msgspec.Meta(max_length=SHARE_BYTES)] = b""
    refused: Text = ""


class JoinProof(Message, frozen=True, kw_only=True):
    """The stranger's share, and the proof that it knows the code."""

    share: Annotated[bytes, msgspec.Meta(min_length=SHARE_BYTES, max_length=SHARE_BYTES)]
    confirmation: Annotated[bytes, msgspec.Meta(min_length=CONFIRMATION_BYTES, max_length=CONFIRMATION_BYTES)]


class JoinGranted(Message, frozen=True, kw_only=True):
    """The holder's proof that it knows the code, and a sealed Verdict; or why it says no more."""

    confirmation: Annotated[bytes, msgspec.Meta(max_length=CONFIRMATION_BYTES)] = b""
    sealed: Annotated[bytes, msgspec.Meta(max_length=limits.BIN_BYTES_MAX)] = b""
    refused: Text = ""


class Welcome(Message, frozen=True, kw_only=True):
    """The mesh, and the new member's chain of grants; its last link is the issuer's, the ones before prove the issuer.

    ``revocations`` are those that the issuer knows, or as many as fit: the first greeting brings the rest.
    """

    mesh_name: Name
    root: PeerId
    chain: Chain
    revocations: Annotated[tuple[Revocation, ...], msgspec.Meta(max_length=limits.REVOCATIONS_MAX)] = ()


class Verdict(Message, frozen=True, kw_only=True):
    """What is sealed in JoinGranted: welcome, or why not."""

    welcome: Welcome | None = None
    refused: Text = ""


class Whereabouts(Message, frozen=True, kw_only=True):
    """The value of a record of kind ``ADDRESS``: where its owner can be dialled, as multiaddrs."""

    addresses: Annotated[tuple[Text, ...], msgspec.Meta(max_length=limits.HINTED_ADDRESSES_MAX)]


class Part(Message, frozen=True, kw_only=True):
    """'I give up our connection, and stay where I am': said before a connection is closed for want of use or room."""

    reason: Text
