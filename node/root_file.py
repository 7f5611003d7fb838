"""The root key in a file under a passphrase: what brings a mesh back whose first device is lost or broken.

Argon2id (RFC 9106) makes the passphrase a key, XSalsa20-Poly1305 (NaCl's secretbox) seals. What each guess costs is
fixed here and not read from the file, which may be anybody's.
"""

from typing import Annotated, Final

import msgspec
import nacl.exceptions
import nacl.pwhash.argon2id as argon
import nacl.secret
import nacl.utils

from ..mesh.errors import UsageError
from ..mesh.identity import SEED_BYTES, Identity

MAGIC: Final = b"lepton-root-1\n"
FILE_BYTES_MAX: Final = 1024  # one takes under 200
PASSPHRASE_CHARACTERS_MIN: Final = 12  # guesses are made offline, at about one a second and core: 12 of them hold
# libsodium's "moderate": 256 MiB and 3 passes, 0.7 s on a laptop. A Raspberry Pi with 1 GiB can still do it.
_PASSES: Final = argon.OPSLIMIT_MODERATE
_MEMORY_BYTES: Final = argon.MEMLIMIT_MODERATE


class _Content(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    mesh_name: Annotated[str, msgspec.Meta(max_length=64)]
    seed: Annotated[bytes, msgspec.Meta(min_length=SEED_BYTES, max_length=SEED_BYTES)]


def seal_root(root: Identity, mesh_name: str, passphrase: str) -> bytes:
    """Return the file's bytes. Raises UsageError for a passphrase that is too short."""
    if len(passphrase) < PASSPHRASE_CHARACTERS_MIN:
        msg = f"A passphrase for the root key has {PASSPHRASE_CHARACTERS_MIN} characters or more; take four words."
        raise UsageError(msg)
    salt = nacl.utils.random(argon.SALTBYTES)
    content = msgspec.msgpack.encode(_Content(mesh_name, root.seed))
    return MAGIC + salt + bytes(_box(passphrase, salt).encrypt(content))


def open_root(data: bytes, passphrase: str) -> tuple[Identity, str]:
    """Return the root key and the mesh's name. Raises UsageError for another file or a wrong passphrase."""
    least = len(MAGIC) + argon.SALTBYTES + nacl.secret.SecretBox.NONCE_SIZE
    if not data.startswith(MAGIC) or not least < len(data) <= FILE_BYTES_MAX:
        msg = "This is not a root key as `lepton-node mesh export-root` writes it."
        raise UsageError(msg)
    salt, sealed = data[len(MAGIC) :][: argon.SALTBYTES], data[len(MAGIC) + argon.SALTBYTES :]
    try:
        content = msgspec.msgpack.decode(_box(passphrase, salt).decrypt(sealed), type=_Content)
    except (nacl.exceptions.CryptoError, msgspec.MsgspecError) as error:
        msg = "The passphrase is wrong, or the file was damaged."
        raise UsageError(msg) from error
    return Identity(content.seed), content.mesh_name


def _box(passphrase: str, salt: bytes) -> nacl.secret.SecretBox:
    size = nacl.secret.SecretBox.KEY_SIZE
    key = argon.kdf(size, passphrase.encode(), salt, opslimit=_PASSES, memlimit=_MEMORY_BYTES)
    return nacl.secret.SecretBox(key)
