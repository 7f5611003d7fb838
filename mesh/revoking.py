"""The shell of revocations: hears of them, passes them on at first sight, ends the connections of whoever is out.

Whatever a node did not know it tells at once to all that it is connected to, so news cross a mesh in as many steps as
it is wide. Two nodes that greet each other make their sets equal before either serves the other; and now and then each
compares with one peer, should a word have got lost. What is heard is on disk before anything else is done about it.
"""

import logging
import math
import random
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

import trio

from . import limits
from .admission import Admission
from .calls import Answer, Calls, Incoming, Method, receive_frame
from .errors import Busy, LeptonError, UsageError
from .frames import encode
from .grants import Chain
from .identity import Identity, PeerId, short
from .messages import pack, unpack
from .records import RecordStore
from .revocations import Asker, Opened, Revocation, Said, answer_to, open_revocation, pages_of, revoke
from .transport import Stream

_REPAIR_INTERVAL_S = 10.0  # news come at once; this mends what a full queue or a lost connection kept from a peer
_TELL_TIMEOUT_S = 1.0  # who is thrown out is told why, but is not waited for
_TELL_TRIES_MAX = 5  # of a peer that is busy with this node's own calls

log = logging.getLogger(__name__)

Take = Callable[[Sequence[Revocation]], int]


class Revoking:
    """One node's part in throwing others out."""

    def __init__(
        self,
        admission: Admission,
        store: RecordStore,
        calls: Calls,
        *,
        connected: Callable[[], Collection[PeerId]],
        spawn: Callable[..., None],
        end: Callable[[PeerId, str], None],
        rng: random.Random,
    ) -> None:
        """``spawn`` starts a task of the node; ``end`` closes a peer's connection and notes why."""
        self._save: Callable[[tuple[Revocation, ...]], None] = lambda _all: None
        self.before_fall: Callable[[], None] = lambda: None  # the last moment to look at what will be forgotten
        self.on_revoked: Callable[[Opened], None] = lambda _opened: None  # each that is new here
        self.on_fall: Callable[[Collection[PeerId]], None] = lambda _peers: None  # these are out
        self._admission = admission
        self._revocations = admission.revocations
        self._store = store
        self._calls = calls
        self._connected = connected
        self._spawn = spawn
        self._end = end
        self._rng = rng
        calls.serve(Method(name="mesh.revocations", needs="mesh", takes=Said, handler=self._answer))
        self._forget(())  # the process may have died between keeping a revocation and forgetting what it is about

    def revoke(
        self,
        signer: Identity,
        subject: PeerId,
        *,
        reason: str,
        now: float,
        chain: Chain,
        keeps: tuple[bytes, ...],
        disowns: bool,
    ) -> None:
        """Revoke somebody and tell everybody. Raises Refused when the signer may not, UsageError when no more fit."""
        root = self._admission.root
        item = revoke(signer, subject, root=root, reason=reason, now=now, chain=chain, keeps=keeps, disowns=disowns)
        if not self.take([item]):
            msg = (
                f"No more revocations fit: {limits.REVOCATIONS_PER_BRANCH_MAX} were signed with this device's "
                "authority. Sign with the root key, on the device that made the mesh."
            )
            raise UsageError(msg)

    def keep(self, save: Callable[[tuple[Revocation, ...]], None]) -> None:
        """Have all revocations saved now and whenever there are new ones."""
        self._save = save
        if len(self._revocations):
            save(self._revocations.all)

    def take(self, items: Sequence[Revocation], source: PeerId | None = None) -> int:
        """Take in revocations, keep them, act on them and pass them on; return how many were new.

        Raises PeerError when one does not hold; those before it were taken.
        """
        known = self._revocations.ids
        try:
            self._revocations.merge(items)
        finally:
            if new := self._revocations.beyond(known):
                self._act(new, source)
        return len(new)

    def _act(self, new: Sequence[Revocation], source: PeerId | None) -> None:
        try:
            self._save(self._revocations.all)
            self.before_fall()
        except LeptonError as error:  # to throw somebody out now counts for more than to remember it
            log.error("revocations are not kept across a restart: %s", error)  # noqa: TRY400 - its text says it all
        for item in new:
            log.warning("%s.", opened := open_revocation(item, self._admission.root))
            self.on_revoked(opened)
        out = self._admission.falls()
        self._forget(out)
        for peer in sorted(self._connected()):
            why = self._admission.ended or out.get(peer, "")
            if why or peer != source:
                self._spawn(self._tell, peer, tuple(new), why)
        if self._admission.ended:
            log.error("This device was thrown out of the mesh: %s", self._admission.ended)
        self.on_fall(out.keys())

    def _forget(self, out: Iterable[PeerId]) -> None:
        """Drop the records of who is out, and of those too whom this node knows from its disk alone."""
        for peer in {*out, *self._admission.revoked_among(self._store.owners())} - {self._admission.me.subject}:
            self._store.forget(peer)

    async def _tell(self, peer: PeerId, new: tuple[Revocation, ...], why: str) -> None:
        """Pass news on to a peer; with a reason, hang up on it afterwards."""
        try:
            for page in pages_of(new):
                with trio.move_on_after(_TELL_TIMEOUT_S if why else math.inf):
                    await self._say(peer, Said(revocations=page))
        except LeptonError as error:  # the next comparison repeats it
            log.debug("telling %s of revocations: %s", short(peer), error)
        if why:
            self._end(peer, why)

    async def _say(self, peer: PeerId, said: Said) -> Said:
        for _ in range(_TELL_TRIES_MAX):
            try:
                return (await self._calls.call(peer, "mesh.revocations", said, Said)).message
            except Busy as error:
                await trio.sleep(error.retry_after_s)
        return (await self._calls.call(peer, "mesh.revocations", said, Said)).message

    async def _answer(self, call: Incoming[Said]) -> Answer[Said]:
        self.take(call.message.revocations, call.caller)
        return Answer(answer_to(call.message, self._revocations))

    # -- comparing ----------------------------------------------------------------------------------------------------

    async def repair(self) -> None:
        """Compare with one peer now and then, until cancelled."""
        while True:
            await trio.sleep(_REPAIR_INTERVAL_S * self._rng.uniform(0.8, 1.2))
            if peers := sorted(self._connected()):
                await self.compare(self._rng.choice(peers))

    async def compare(self, peer: PeerId) -> None:
        """Make this node's set and a peer's equal."""

        async def say(said: Said) -> Said:
            return await self._say(peer, said)

        try:
            await _ask_all(self._admission, say, lambda items: self.take(items, peer))
        except LeptonError as error:
            log.debug("comparing revocations with %s: %s", short(peer), error)


async def _ask_all(admission: Admission, say: Callable[[Said], Awaitable[Said]], take: Take) -> None:
    """Talk until both know the same. The last word wants no answer, but over calls it gets one."""
    asker = Asker(admission.revocations)
    said = asker.first()
    while not said.done:
        answer = await say(said)
        said = asker.heard(answer, take(answer.revocations))
    if said.revocations:
        await say(said)


async def ask_in_greeting(stream: Stream, admission: Admission, take: Take) -> None:
    """Make the sets equal, as the side that dialled, before anything is served."""

    async def say(said: Said) -> Said:
        await _write(stream, said)
        return await _read(stream)

    await _ask_all(admission, say, take)
    await _write(stream, Said(done=True))


async def answer_in_greeting(stream: Stream, admission: Admission, take: Take) -> None:
    """Make the sets equal, as the side that was dialled."""
    while not (said := await _read(stream)).done or said.revocations:
        take(said.revocations)
        await _write(stream, answer_to(said, admission.revocations))


async def _write(stream: Stream, said: Said) -> None:
    for piece in encode(pack(said)):
        await stream.send_all(piece)


async def _read(stream: Stream) -> Said:
    return unpack((await receive_frame(stream, body_bytes_max=0)).header, Said)
