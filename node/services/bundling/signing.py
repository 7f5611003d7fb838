"""Who vouches for a bundle: a signature over what it is, in which mesh and under which name and version. Pure.

The signature is its deployer's own, for this purpose alone. It names the mesh, so that a bundle that was signed for one
is worth nothing in another; the name and the version, so that an old one cannot pass for a new one or for another
service; and the needs, so that nobody who scales a service gives it more of a device than its deployer asked for.
"""

from typing import Final

from ....mesh.identity import Identity, PeerId, verify
from ....mesh.messages import Message, Name, pack
from ...deployments import BlobRef
from ..records import Release
from ..spec import Needs, VersionText

PURPOSE: Final = "service-release"


class Sentence(Message, frozen=True, kw_only=True):
    """What is signed."""

    mesh: PeerId  # its root
    service: Name
    version: VersionText
    bundle: BlobRef
    needs: Needs


def sentence(mesh: PeerId, service: str, version: str, bundle: BlobRef, needs: Needs) -> bytes:
    """Return the bytes to be signed: the same for equal values."""
    return pack(Sentence(mesh=mesh, service=service, version=version, bundle=bundle, needs=needs))


def sign_release(identity: Identity, mesh: PeerId, service: str, version: str, bundle: BlobRef, needs: Needs) -> bytes:
    """Vouch for a bundle."""
    return identity.sign(PURPOSE, sentence(mesh, service, version, bundle, needs))


def verify_release(mesh: PeerId, service: str, release: Release) -> None:
    """Check who vouched for a release. Raises PeerError when its signer did not, for just this."""
    said = sentence(mesh, service, release.version, release.bundle, release.needs)
    verify(release.signer, PURPOSE, said, release.signature)
