"""One device's data folder: identity, credentials, open invites, records, blobs. Everything secret is mode 0600.

identity.key    the node's seed, with a checksum       mesh.json      which mesh, and the chain of grants
root.key        only where the mesh was made           invites.json   invites given and not yet used
records.msgpack durable records                        state.json     how often the node has started
members.msgpack what devices are called and their grants   revocations.msgpack  who was thrown out
blobs/          weights by hash                        tasks/NAME/    checkpoints
programs/       models traced here, to be served       web.token      what clients of the endpoint have to know
services/       bundles of services, unpacked
node.toml       the configuration                      lock           held while a node runs
"""

import fcntl
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import base58
import msgspec

from ..mesh.admission import Credentials
from ..mesh.errors import LeptonError, PeerError, UsageError
from ..mesh.grants import GRANT_LIFETIME_S, ROLES, Grant, issue
from ..mesh.identity import Identity, PeerId, public_key_of
from ..mesh.invites import InviteBook, OpenInvite
from ..mesh.messages import NAME_PATTERN
from ..mesh.records import SignedRecord, open_record
from ..mesh.revocations import Revocation, Revocations
from .files import write_whole
from .members import KnownMember

log = logging.getLogger(__name__)
_T = TypeVar("_T")
_KEY_PREFIX = "lepton-ed25519-1:"


class _SavedMesh(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    root: str
    chain: tuple[Grant, ...]


class _SavedState(msgspec.Struct, frozen=True):
    incarnation: int = 0


class Home:
    """Reads and writes one data folder. Every damaged file gives a UsageError that names it and what to do."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()

    def make(self) -> None:
        """Create the folder, for its owner alone. Raises UsageError when that is not possible."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            msg = f"Cannot make the data folder {self.path}: {error.strerror}. Choose another with --home."
            raise UsageError(msg) from error

    # -- identity -----------------------------------------------------------------------------------------------------

    def identity(self) -> Identity:
        """Return this node's identity, making it on first use."""
        if not self._file("identity.key").exists():
            self.make()
            self._write_key("identity.key", Identity.generate())
        return self._read_key("identity.key")

    def root(self) -> Identity | None:
        """Return the mesh's root key if it was made here."""
        return self._read_key("root.key") if self._file("root.key").exists() else None

    def _write_key(self, name: str, identity: Identity) -> None:
        text = _KEY_PREFIX + base58.b58encode_check(identity.seed).decode() + "\n"
        write_whole(self._file(name), text.encode())

    def _read_key(self, name: str) -> Identity:
        path = self._file(name)
        try:
            text = path.read_text("ascii").strip()
            if not text.startswith(_KEY_PREFIX):
                msg = "it does not begin as one"
                raise ValueError(msg)
            identity = Identity(base58.b58decode_check(text.removeprefix(_KEY_PREFIX)))
        except (ValueError, UsageError, UnicodeDecodeError) as error:
            msg = (
                f"The identity file {path} is damaged ({error}). Restore it from a backup; or move it away, and this "
                "device joins again as a new node with a new invite."
            )
            raise UsageError(msg) from error
        except OSError as error:
            msg = f"Cannot read the identity file {path}: {error.strerror}."
            raise UsageError(msg) from error
        path.chmod(0o600)  # it may have been restored from a backup with wider rights
        return identity

    # -- membership ---------------------------------------------------------------------------------------------------

    def create_mesh(self, name: str) -> Credentials:
        """Make a mesh whose root key stays here, and this node its first admin. Raises UsageError if it is in one."""
        if not re.fullmatch(NAME_PATTERN, name):
            msg = f"{name!r} cannot name a mesh: use 1 to 64 of a-z, 0-9, '.', '_' and '-', a letter or digit first."
            raise UsageError(msg)
        self._require_no_mesh()
        return self._begin(self.identity(), Identity.generate(), name)

    def _begin(self, identity: Identity, root: Identity, name: str) -> Credentials:
        """Make this node an admin by the root's own word, and keep the root's key."""
        grant = issue(
            root,
            identity.peer_id,
            ROLES["admin"],
            expires=time.time() + GRANT_LIFETIME_S,
            serial=secrets.token_bytes(16),
        )
        self._write_key("root.key", root)
        credentials = Credentials(mesh_name=name, root=root.peer_id, chain=(grant,))
        self.save_credentials(credentials)
        return credentials

    def save_credentials(self, credentials: Credentials) -> None:
        """Keep what makes this node a member. Raises UsageError when it is a member of another mesh."""
        self._require_no_mesh()
        self._write_json("mesh.json", _SavedMesh(credentials.mesh_name, credentials.root, credentials.chain))

    def save_chain(self, chain: tuple[Grant, ...]) -> None:
        """Keep a newer grant of the same mesh."""
        held = self.credentials()
        self._write_json("mesh.json", _SavedMesh(held.mesh_name, held.root, chain))

    def rejoin(self, credentials: Credentials) -> None:
        """Keep a new grant in place of one that expired. Raises UsageError when it is of another mesh."""
        held = self.credentials()
        if credentials.root != held.root:
            msg = (
                f"The node in {self.path} was in the mesh {held.mesh_name!r}, and this invite is of another. Use "
                "another folder with --home."
            )
            raise UsageError(msg)
        self.save_chain(credentials.chain)

    def take_root(self, root: Identity, mesh_name: str) -> None:
        """Keep the root key of this folder's mesh; a folder in no mesh becomes an admin of the root's.

        Raises UsageError when the folder is in another mesh.
        """
        if self.in_mesh:
            held = self.credentials()
            if held.root != root.peer_id:
                msg = (
                    f"The node in {self.path} is in the mesh {held.mesh_name!r} ({held.root}), and this is the root "
                    f"key of another: {mesh_name!r} ({root.peer_id})."
                )
                raise UsageError(msg)
            self._write_key("root.key", root)
        else:
            self._begin(self.identity(), root, mesh_name)

    def credentials(self) -> Credentials:
        """Return what makes this node a member. Raises UsageError when it is none."""
        if not self.in_mesh:
            msg = (
                f"The node in {self.path} belongs to no mesh yet. Make one (`lepton-node mesh create NAME`) or join "
                "one (`lepton-node join CODE`)."
            )
            raise UsageError(msg)
        saved = self._read_json("mesh.json", _SavedMesh)
        try:
            public_key_of(saved.root)
        except PeerError as error:
            raise self._damaged("mesh.json", error) from error
        return Credentials(mesh_name=saved.name, root=PeerId(saved.root), chain=saved.chain)

    @property
    def in_mesh(self) -> bool:
        return self._file("mesh.json").exists()

    def _require_no_mesh(self) -> None:
        if self.in_mesh:
            name = self.credentials().mesh_name
            msg = f"The node in {self.path} is already in the mesh {name!r}. Use another folder with --home."
            raise UsageError(msg)

    # -- revocations --------------------------------------------------------------------------------------------------

    def revocations(self) -> list[Revocation]:
        """Return the revocations that this node has heard of. Raises UsageError when any of them does not verify.

        To go on without them would let in who was thrown out: a damaged file is not passed over, as with records.
        """
        path = self._file("revocations.msgpack")
        if not path.exists():
            return []
        try:
            kept = msgspec.msgpack.decode(path.read_bytes(), type=list[Revocation])
            Revocations(self.credentials().root, kept)
        except (msgspec.MsgspecError, PeerError, OSError) as error:
            msg = (
                f"The list of revoked devices {path} is damaged ({error}). Restore it from a backup; or move it away, "
                "and the node hears of it again from the first peer that it meets."
            )
            raise UsageError(msg) from error
        return kept

    def add_revocations(self, items: Sequence[Revocation]) -> None:
        """Keep these beside those that are kept already. Raises PeerError when one of them does not verify."""
        both = Revocations(self.credentials().root, self.revocations())
        both.merge(items)
        self.save_revocations(both.all)

    def save_revocations(self, revocations: Sequence[Revocation]) -> None:
        write_whole(self._file("revocations.msgpack"), msgspec.msgpack.encode(list(revocations)))

    def members(self) -> list[KnownMember]:
        """Return the members that this node knew when it last ran; a damaged file costs only what they are called.

        It stays where it is: commands that only look read it too.
        """
        data = self._read("members.msgpack")
        try:
            return [] if data is None else msgspec.msgpack.decode(data, type=list[KnownMember])
        except msgspec.MsgspecError as error:
            log.warning("%s is damaged (%s): the peers tell it again", self._file("members.msgpack"), error)
            return []

    def save_members(self, members: list[KnownMember]) -> None:
        self._read_or_set_aside("members.msgpack", list[KnownMember])  # never overwrite what nobody could read
        write_whole(self._file("members.msgpack"), msgspec.msgpack.encode(members))

    # -- state across restarts ----------------------------------------------------------------------------------------

    def next_incarnation(self) -> int:
        """Count a start: versions of records must never repeat."""
        state = self._read_json("state.json", _SavedState) if self._file("state.json").exists() else _SavedState()
        self._write_json("state.json", _SavedState(state.incarnation + 1))
        return state.incarnation + 1

    def invites(self) -> InviteBook:
        if not self._file("invites.json").exists():
            return InviteBook()
        return InviteBook(self._read_json("invites.json", tuple[OpenInvite, ...]))

    def save_invites(self, book: InviteBook) -> None:
        self._write_json("invites.json", book.snapshot())

    def records(self) -> list[SignedRecord]:
        """Return the durable records kept at the last stop; a damaged file only costs them, peers have them too."""

        def check(kept: list[SignedRecord]) -> None:
            for signed in kept:
                open_record(signed)

        return self._read_or_set_aside("records.msgpack", list[SignedRecord], check)

    def save_records(self, records: list[SignedRecord]) -> None:
        write_whole(self._file("records.msgpack"), msgspec.msgpack.encode(records))

    def folder(self, *names: str) -> Path:
        """Return a folder inside this one, made if it is missing. Names are checked by whoever took them in."""
        path = self.path.joinpath(*names)
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise LeptonError(f"Cannot make the folder {path}: {error.strerror}. Move away what is there.") from error
        return path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder: two nodes with one identity would contradict each other. Raises UsageError if it is held."""
        self.make()
        try:
            descriptor = os.open(self._file("lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            msg = f"Cannot hold the data folder {self.path}: {error.strerror}. Mend its permissions, or use another."
            raise UsageError(msg) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                msg = f"A node already runs with the folder {self.path}. Stop it first, or use another with --home."
                raise UsageError(msg) from error
            yield
        finally:
            os.close(descriptor)

    # -- files --------------------------------------------------------------------------------------------------------

    def _file(self, name: str) -> Path:
        return self.path / name

    def _write_json(self, name: str, value: object) -> None:
        self.make()
        write_whole(self._file(name), msgspec.json.format(msgspec.json.encode(value)) + b"\n")

    def _read_json(self, name: str, kind: type[_T]) -> _T:
        try:
            return msgspec.json.decode(self._file(name).read_bytes(), type=kind)
        except (msgspec.MsgspecError, OSError) as error:
            raise self._damaged(name, error) from error

    def _read_or_set_aside(
        self, name: str, kind: type[list[_T]], check: Callable[[list[_T]], None] = lambda _kept: None
    ) -> list[_T]:
        """Return a list that peers tell again should it be damaged; then it is moved aside."""
        data = self._read(name)
        try:
            kept = [] if data is None else msgspec.msgpack.decode(data, type=kind)
            check(kept)
        except (msgspec.MsgspecError, LeptonError) as error:
            path = self._file(name)
            log.warning("%s is damaged (%s): moved aside; the peers tell it again", path, error)
            path.rename(path.with_suffix(".damaged"))
            return []
        return kept

    def _read(self, name: str) -> bytes | None:
        """Return what is in a file, None where there is none. Raises UsageError when it cannot be read."""
        try:
            return self._file(name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._damaged(name, error) from error

    def _damaged(self, name: str, error: Exception) -> UsageError:
        return UsageError(
            f"The file {self._file(name)} is damaged ({error}). Restore it from a backup or move it away."
        )
