"""Blobs between nodes: given to who may have them, chunk by chunk, and fetched from whoever has them, several at once.

The shell of `fetching`. A chunk is received into memory, checked, and written to its place; more than some of them are
never held. Who has the capability `infer:NAME` may fetch the blobs of the model of that name; those of services go by
the same way under other methods, and take `host:NAME`: who only calls a service need not have its code.
"""

import logging
import random
import secrets
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Final, Protocol, cast

import msgspec
import numpy as np
import trio

from ...mesh import limits, tensors
from ...mesh.calls import Answer, Empty, FilePart, Incoming, Method
from ...mesh.errors import Busy, LeptonError, LinkError, PeerError, UsageError
from ...mesh.grants import HOST
from ...mesh.identity import PeerId, short
from ...mesh.mesh import Mesh
from ...mesh.messages import Message
from ..deployments import BlobRef, Kind, Manifest
from .fetching import (
    Ask,
    Begin,
    Begun,
    Came,
    Config,
    Done,
    Drop,
    Effect,
    Event,
    Failed,
    Fetching,
    GaveUp,
    Get,
    Here,
    Passed,
    Told,
    Unanswered,
    Wrong,
    bitmap,
    read_bitmap,
)
from .hashing import HASH_BYTES, chunk_count
from .manifests import read_manifest
from .parts import Part
from .publishing import Published, publish_folder
from .store import BlobStore

_ASK_TIMEOUT_S: Final = 5.0  # for a peer to say what it has; it may have to look on its disk
_AT_ONCE: Final = 2  # blobs; so that a fetch leaves half of the calls that a peer takes at once to others
_EVENTS_MAX: Final = 64  # that wait for the machine; whoever brings more waits

log = logging.getLogger(__name__)


class BlobWanted(Message, frozen=True, kw_only=True):
    """Tell me which chunks of this blob you have, and if I ask for them their hashes."""

    ref: BlobRef
    hashes: bool = False


class BlobHeld(Message, frozen=True, kw_only=True):
    """I have these: all, or those in the bitmap that is the first tensor beside this. Hashes are the next."""

    whole: bool
    hashes: bool = False


class ChunkWanted(Message, frozen=True, kw_only=True):
    """Send me this chunk."""

    ref: BlobRef
    chunk: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]


class _Lent:
    """A chunk on its way out, as something to read from; its place is free again when nothing holds it any more."""

    def __init__(self, data: bytes) -> None:
        self._left = memoryview(data)

    def read(self, size: int) -> memoryview:
        part, self._left = self._left[:size], self._left[size:]
        return part


class Names(Protocol):
    """Which blobs belong to which model, or service."""

    def names(self, model: str, ref: BlobRef) -> bool:
        """Whether a model of that name is made of this blob."""

    def in_use(self) -> frozenset[str]:
        """Return the digests of all blobs that must not be removed, whatever they are for."""


@dataclass(frozen=True, slots=True)
class Ways:
    """By which methods blobs of one sort are asked for, and the capability that it takes."""

    have: str
    read: str
    needs: str


OF_MODELS: Final = Ways("blob.have", "blob.read", "infer")
OF_SERVICES: Final = Ways("bundle.have", "bundle.read", HOST)


class Blobs:
    """One node's store of blobs, and its way to those of others."""

    def __init__(
        self, mesh: Mesh, store: BlobStore, naming: Names, *, config: Config | None = None, ways: Ways = OF_MODELS
    ) -> None:
        self.store = store
        self.config = config or Config()
        self._ways = ways
        self._mesh = mesh
        self._naming = naming
        self._rng = random.Random(secrets.randbits(64))
        self._limiter = trio.CapacityLimiter(_AT_ONCE)
        self._under_way: dict[str, trio.Event] = {}
        self._lent = 0
        mesh.calls.serve(
            Method(name=ways.have, needs=ways.needs, takes=BlobWanted, handler=self._say_what_is_here),
            Method(name=ways.read, needs=ways.needs, takes=ChunkWanted, handler=self._give_chunk),
        )

    # -- fetching -----------------------------------------------------------------------------------------------------

    async def fetch(self, model: str, ref: BlobRef) -> None:
        """Make a blob of this model be here, whole and checked; what is here of it already is not fetched again.

        Raises LinkError that says who was asked when nobody has it, LeptonError from this disk: no room; PeerError for
        one that is larger than any may be.
        """
        if ref.size_bytes > limits.BLOB_BYTES_MAX:
            raise PeerError(f"a blob of {model!r} is said to have {ref.size_bytes:,} bytes, more than any may")
        while (under_way := self._under_way.get(ref.digest)) is not None:
            await under_way.wait()
        self._under_way[ref.digest] = done = trio.Event()
        try:
            if not await self._is_intact(ref):
                async with self._limiter:
                    self.refresh()
                    await self._fetch(model, ref)
        finally:
            del self._under_way[ref.digest]
            done.set()

    async def data(self, model: str, ref: BlobRef) -> bytes:
        """Return the bytes of a small blob, fetched if need be. Raises like `fetch`, UsageError for a large one."""
        if ref.size_bytes > self.store.in_memory_bytes_max:  # before anything of it is fetched
            raise UsageError(f"a blob of {ref.size_bytes:,} bytes is too large to be taken into memory at once")
        await self.fetch(model, ref)
        return await trio.to_thread.run_sync(self.store.get, ref)

    async def manifest(self, model: str, ref: BlobRef) -> Manifest:
        """Return a model's manifest, fetched if need be. Raises like `fetch`, PeerError for one that is not valid."""
        if ref.size_bytes > limits.MANIFEST_BYTES_MAX:
            raise PeerError(f"the manifest of {model!r} is said to have {ref.size_bytes:,} bytes, more than allowed")
        return read_manifest(await self.data(model, ref))

    async def fetch_layers(self, model: str, manifest: Manifest, layers: Iterable[int]) -> None:
        """Make all blobs of these layers be here, so that `open_layer` can open them. Raises like `fetch`."""
        refs = sorted({ref for index in layers for ref in manifest.layers[index]}, key=lambda ref: ref.digest)
        self._rng.shuffle(refs)  # several nodes that load the same soon have different ones to give each other
        try:
            async with trio.open_nursery() as nursery:
                for ref in refs:
                    nursery.start_soon(self.fetch, model, ref)
        except BaseExceptionGroup as group:
            raise _first(group) from None

    async def publish(
        self,
        folder: str | Path,
        layer_of: Callable[[str], Sequence[int]],
        layers: int,
        *,
        kind: Kind = "causal_lm",
        within: Path | None = None,
    ) -> Published:
        """Make a model's folder known here, for peers to fetch once a record names its manifest: `publish_folder`."""
        self.refresh()
        return await trio.to_thread.run_sync(
            lambda: publish_folder(self.store, folder, layer_of, layers, kind=kind, within=within)
        )

    def refresh(self) -> None:
        """Look which blobs must not be removed: before what takes room on the disk."""
        needed = self._naming.in_use()
        self.store.in_use = lambda: needed  # it is asked in a thread, where records cannot be read

    async def _is_intact(self, ref: BlobRef) -> bool:
        if not self.store.has(ref):
            return False
        try:
            await trio.to_thread.run_sync(self.store.require_intact, ref)
        except LeptonError as error:
            log.warning("%s; asking others for it", error)
            self.store.forget_virtual(ref)
        return self.store.has(ref)

    async def _fetch(self, model: str, ref: BlobRef) -> None:
        chunks = await trio.to_thread.run_sync(self.store.chunks, ref)
        machine = Fetching(ref, random.Random(self._rng.random()), chunks=chunks, config=self.config)
        work = _Fetch(self._mesh, self.store, model, machine, self._ways)
        try:
            async with trio.open_nursery() as nursery:
                await work.run(nursery)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise _first(group) from None
        finally:
            with trio.CancelScope(shield=True):  # a disk is no network: it does not take for ever
                await trio.to_thread.run_sync(work.close)
        for peer, why in machine.left_out.items():
            log.warning("%s was left out when the blob %s… was fetched: %s", short(peer), ref.digest[:8], why)

    # -- giving -------------------------------------------------------------------------------------------------------

    async def _say_what_is_here(self, call: Incoming[BlobWanted]) -> Answer[BlobHeld]:
        ref = self._allowed(call.scope, call.message.ref)
        have = await trio.to_thread.run_sync(self.store.held, ref)
        chunks = await trio.to_thread.run_sync(self.store.chunks, ref)
        whole = chunks is not None and len(have) == chunks.number
        if chunks is None or not have:
            return Answer(BlobHeld(whole=False), [_bytes(bitmap((), chunk_count(ref.size_bytes)))])
        arrays = [] if whole else [_bytes(bitmap(have, chunks.number))]
        if call.message.hashes:
            arrays.append(_bytes(chunks.hashes))
        return Answer(BlobHeld(whole=whole, hashes=call.message.hashes), arrays)

    async def _give_chunk(self, call: Incoming[ChunkWanted]) -> Answer[Empty]:
        ref, chunk = self._allowed(call.scope, call.message.ref), call.message.chunk
        if chunk not in await trio.to_thread.run_sync(self.store.held, ref):
            raise UsageError(f"this node has no chunk {chunk} of the blob {ref.digest[:8]}…")
        if self._lent >= limits.CHUNKS_SERVED_MAX:
            raise Busy(f"{self._lent} chunks wait to be sent here already", limits.BUSY_RETRY_S)
        self._lent += 1
        try:
            data = await trio.to_thread.run_sync(self.store.read_chunk, ref, chunk)
        except BaseException as error:
            self._lent -= 1
            if isinstance(error, LeptonError):
                log.warning("a peer asked for a chunk: %s", error)
            raise
        lent = _Lent(data)
        weakref.finalize(lent, self._give_back)
        return Answer(Empty(), (), FilePart(cast("BinaryIO", lent), len(data)))

    def _give_back(self) -> None:
        self._lent -= 1

    def _allowed(self, model: str, ref: BlobRef) -> BlobRef:
        if ref.size_bytes > limits.BLOB_BYTES_MAX:
            raise PeerError(f"a blob of {ref.size_bytes:,} bytes is larger than any may be")
        if not self._naming.names(model, ref):
            raise UsageError(f"this node knows no blob {ref.digest[:8]}… of {model!r}")
        return ref


class _Fetch:
    """One machine at work: its effects are tasks, and what becomes of them is its next events."""

    def __init__(self, mesh: Mesh, store: BlobStore, model: str, machine: Fetching, ways: Ways) -> None:
        self._mesh = mesh
        self._ways = ways
        self._store = store
        self._model = model
        self._machine = machine
        self._nursery: trio.Nursery
        self._part: Part | None = None
        self._flights: dict[tuple[str, int], trio.CancelScope] = {}
        self._tell, self._events = trio.open_memory_channel[Event](_EVENTS_MAX)

    async def run(self, nursery: trio.Nursery) -> None:
        """Return when every chunk is in its place. Raises LinkError, LeptonError."""
        self._nursery = nursery
        nursery.start_soon(self._watch)
        while True:
            event: Event = Passed()
            with trio.move_on_at(self._machine.deadline):
                event = await self._events.receive()
            for effect in self._machine.handle(event, trio.current_time()):
                match effect:
                    case Done():
                        return
                    case GaveUp(why):
                        raise LinkError(f"{why} of {self._model!r}; start a node that has it")
                    case _:
                        await self._do(effect)

    async def _do(self, effect: Effect) -> None:
        match effect:
            case Ask(peer, hashes):
                self._nursery.start_soon(self._ask, PeerId(peer), hashes)
            case Begin(chunks):
                self._part = await trio.to_thread.run_sync(self._store.begin, self._machine.ref, chunks)
                self._nursery.start_soon(self._tell.send, Begun(frozenset(self._part.have)))
            case Get(peer, chunk):
                scope = self._flights[peer, chunk] = trio.CancelScope()
                self._nursery.start_soon(self._get, PeerId(peer), chunk, scope)
            case Drop(peer, chunk):
                if (flight := self._flights.get((peer, chunk))) is not None:
                    flight.cancel()

    def close(self) -> None:
        """Let go of the file, which is a blob if it is whole. Raises LeptonError from the disk."""
        if (part := self._part) is not None:
            (self._store.adopt if part.is_whole else self._store.leave)(part)

    async def _watch(self) -> None:
        while True:
            changed = self._mesh.changed
            await self._tell.send(Here(frozenset(self._mesh.present)))
            await changed.wait()

    async def _ask(self, peer: PeerId, hashes: bool) -> None:  # noqa: FBT001 - as the machine says it
        wanted = BlobWanted(ref=self._machine.ref, hashes=hashes)
        try:
            answer = await self._mesh.calls.call(
                peer, self._ways.have, wanted, BlobHeld, scope=self._model, timeout_s=_ASK_TIMEOUT_S
            )
            event: Event = _told(peer, answer, chunk_count(self._machine.ref.size_bytes))
        except PeerError as error:
            event = Wrong(peer, str(error))
        except UsageError:  # it does not know the model, or not yet
            event = Told(peer, frozenset())
        except LeptonError as error:
            event = Unanswered(peer, str(error), error.retry_after_s if isinstance(error, Busy) else 0.0)
        await self._tell.send(event)

    async def _get(self, peer: PeerId, chunk: int, scope: trio.CancelScope) -> None:
        try:
            with scope:
                await self._tell.send(await self._got(peer, chunk))
        finally:
            if self._flights.get((peer, chunk)) is scope:
                del self._flights[peer, chunk]

    async def _got(self, peer: PeerId, chunk: int) -> Event:
        assert self._part is not None
        ref, chunks = self._machine.ref, self._part.chunks
        buffer = bytearray(chunks.size(chunk))
        try:
            await self._mesh.calls.fetch(
                peer,
                self._ways.read,
                ChunkWanted(ref=ref, chunk=chunk),
                Empty,
                memoryview(buffer),
                scope=self._model,
                size_bytes_max=len(buffer),
                timeout_s=2 * self._machine.config.give_up_s,  # the machine gives up before
            )
        except PeerError as error:
            return Wrong(peer, str(error))
        except LeptonError as error:
            return Failed(peer, chunk, str(error), error.retry_after_s if isinstance(error, Busy) else 0.0)
        try:
            await trio.to_thread.run_sync(self._part.write, chunk, buffer)
        except PeerError as error:
            return Wrong(peer, str(error))
        return Came(peer, chunk)


def _told(peer: PeerId, answer: Answer[BlobHeld], number: int) -> Told:
    arrays = [tensors.buffer_of(array).tobytes() for array in answer.arrays]
    expected = (0 if answer.message.whole else 1) + answer.message.hashes
    if len(arrays) != expected:
        raise PeerError(f"{expected} tensors belong to what a peer says of a blob, not {len(arrays)}")
    hashes = arrays.pop() if answer.message.hashes else None
    if hashes is not None and len(hashes) != number * HASH_BYTES:
        raise PeerError(f"{len(hashes)} bytes are not the hashes of {number} chunks")
    return Told(peer, None if answer.message.whole else read_bitmap(arrays[0], number), hashes)


def _bytes(data: bytes) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.frombuffer(data, dtype=np.uint8)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
