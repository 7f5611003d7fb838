"""Which bundles a device runs: what the mesh allows their signers, and what its own configuration admits. Pure.

Invariant: nothing is admitted whose signer may not deploy that service in this mesh now, whatever the configuration
says. The configuration only narrows: each of its words admits some of what is left.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

import msgspec

from ....mesh.errors import PeerError, UsageError
from ....mesh.grants import DEPLOY, Authority
from ....mesh.identity import PeerId, public_key_of, short
from ....mesh.messages import Name
from ..records import Release
from .signing import verify_release

ADMIN: Final = "admin"  # whatever an admin of the mesh has signed
DEPLOYER: Final = "deploy"  # whatever somebody has signed who may deploy it
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_WORDS_MAX: Final = 2  # of a device's list that are told
_WORD_MAX: Final = 24
_SIGNATURES_KEPT: Final = 1024  # all are looked at whenever a record changes, and one takes 0.1 ms to check

AuthorityOf = Callable[[PeerId], Authority]  # raises KeyError for who was never met


def may_deploy(authority_of: AuthorityOf, peer: PeerId, service: str) -> bool:
    """Whether the mesh lets a peer say what runs as this service. A revoked one may nothing."""
    try:
        return authority_of(peer).allows(f"{DEPLOY}:{service}")
    except KeyError:
        return False


def refusal(service: str, release: Release, *, mesh: PeerId, authority_of: AuthorityOf, allow: Sequence[str]) -> str:
    """Say why a release must not run here, and what would let it; nothing when it may."""
    signer = release.signer
    if wrong := _wrong_signature(mesh, service, release):
        return f"The bundle {release.bundle.digest[:12]} is not signed as it should be: {wrong}"
    if not may_deploy(authority_of, signer, service):
        return (
            f"{short(signer)}, who signed it, may not deploy {service!r} in this mesh (any more): that takes the "
            f"capability {DEPLOY}:{service}, or the role admin."
        )
    if any(_admits(word, service, release, authority_of) for word in allow):
        return ""
    return (
        f"The configuration of this device does not admit it: [services] allow = {_shown(allow)}. Add {service!r}, the "
        f"signer {signer!r} or the digest {release.bundle.digest!r}."
    )


def _shown(allow: Sequence[str]) -> str:
    """Return a list short enough that what stands behind it is read too: others see some hundred characters."""
    words = ", ".join(repr(word if len(word) <= _WORD_MAX else f"{word[:12]}…") for word in allow[:_WORDS_MAX])
    return f"[{words}{', …' if len(allow) > _WORDS_MAX else ''}]"


def check_allow(allow: Sequence[str]) -> None:
    """Raise UsageError for a word of the configuration that could admit nothing: it would be a slip of the pen."""
    for word in allow:
        if not (_DIGEST.fullmatch(word) or _is_name(word) or _is_peer(word)):
            raise UsageError(
                f"[services] allow: {word[:80]!r} is neither 'admin' nor 'deploy', nor the name of a service, a peer "
                "id or the digest of a bundle."
            )


@lru_cache(_SIGNATURES_KEPT)
def _wrong_signature(mesh: PeerId, service: str, release: Release) -> str:
    try:
        verify_release(mesh, service, release)
    except PeerError as error:
        return str(error)
    return ""


def _admits(word: str, service: str, release: Release, authority_of: AuthorityOf) -> bool:
    if word == ADMIN:
        return authority_of(release.signer).allows(ADMIN)
    return word in {DEPLOYER, service, release.signer, release.bundle.digest}


def _is_name(word: str) -> bool:
    try:
        msgspec.convert(word, Name)
    except msgspec.ValidationError:
        return False
    return True


def _is_peer(word: str) -> bool:
    try:
        public_key_of(word)
    except PeerError:
        return False
    return True
