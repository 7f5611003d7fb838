"""The shell of the picture: carries out over real calls, and on a real disk, what `spreading.py` decides."""

import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

import trio

from .admission import Admission
from .calls import Answer, Calls, Incoming, Method
from .errors import LeptonError, PeerError
from .grants import Grant
from .identity import PeerId, short
from .messages import Message
from .records import Record, RecordStore, SignedRecord
from .spreading import (
    METHODS,
    Accuse,
    Answered,
    Asked,
    Call,
    Changed,
    Config,
    Event,
    Expired,
    Failed,
    Forgot,
    Heard,
    Offend,
    PeerGone,
    PeerHere,
    Published,
    Reply,
    Save,
    Spreading,
)

Keep = Callable[[list[SignedRecord]], None]

log = logging.getLogger(__name__)
T = TypeVar("T")


class Picture:
    """One node's copy of the picture, and its talk about it."""

    def __init__(
        self,
        store: RecordStore,
        admission: Admission,
        calls: Calls,
        *,
        present: Callable[[], Collection[PeerId]],
        spawn: Callable[..., None],
        heard: Callable[[PeerId, bool], None],
        offend: Callable[[PeerId, str], None],
        accuse: Callable[[PeerId, str], None],
        keep: Keep,
        rng: random.Random,
        config: Config,
    ) -> None:
        """``present`` are the members that count as being here. ``spawn`` starts a task of the node, as a nursery does.

        ``heard`` is told whether a peer answered in an exchange, ``offend`` who broke the protocol and how, ``accuse``
        whose records contradict each other; ``keep`` writes the durable records to the disk and returns once they are
        there.
        """
        self.store = store
        self._calls = calls
        self._present = present
        self._spawn, self._heard, self._offend, self._accuse = spawn, heard, offend, accuse
        self._machine = Spreading(admission.me.subject, store, _Proven(admission), rng, config)
        self._saving = _Saving(keep)
        self._changed = trio.Event()
        self._sooner = trio.Event()
        for takes, (name, _) in METHODS.items():
            calls.serve(Method(name=name, needs="mesh", takes=takes, handler=self._answer))

    async def run(self) -> None:
        """Do what is due, for as long as the node runs."""
        while True:
            self._sooner = trio.Event()
            with trio.move_on_at(self._machine.deadline):
                await self._sooner.wait()
            if trio.current_time() >= self._machine.deadline:
                self._note(Expired())

    def publish(self, kind: str, name: str, value: Message, *, durable: bool = False) -> Record:
        """State something about this node to all. Raises UsageError when it is too large or one too many.

        What is durable is on this node's disk when this returns. Raises LeptonError when it cannot be written there;
        it is said all the same, for it is in the store.
        """
        record = self.store.publish(kind, name, value, durable=durable)
        self._note(Published(record))
        if durable and self._saving.error is not None:
            raise self._saving.error
        return record

    def withdraw(self, kind: str, name: str) -> None:
        """Take a statement back."""
        if (record := self.store.withdraw(kind, name)) is not None:
            self._note(Published(record))

    def live(self, kind: str, value: type[T]) -> list[tuple[Record, T]]:
        """Return what members that are here say of one kind; a record whose value does not parse is passed over."""
        found = []
        for record in self.store.live(kind, self._present()):
            try:
                found.append((record, record.value(value)))
            except PeerError as error:
                log.warning("%s published a bad %s record: %s", short(record.owner), kind, error)
        return found

    @property
    def changed(self) -> trio.Event:
        """Set at the next change of the picture or of who is present. Take it *before* looking, then wait for it."""
        return self._changed

    def come(self, peer: PeerId) -> None:
        """Talk with a member that is connected from now on."""
        self._note(PeerHere(peer))

    def go(self, peer: PeerId) -> None:
        """Talk with it no longer."""
        self._note(PeerGone(peer))

    def forgot(self) -> None:
        """Act on it that the store has forgotten an owner."""
        self._note(Forgot())

    def notify(self) -> None:
        """Wake whoever waits for a change."""
        self._changed.set()
        self._changed = trio.Event()

    # -- driving the machine ------------------------------------------------------------------------------------------

    def _note(self, event: Event) -> Reply | Offend | None:
        """Hand the machine an event and do what follows; return its answer if it was asked something."""
        said: Reply | Offend | None = None
        for effect in self._machine.handle(event, trio.current_time()):
            match effect:
                case Save(records, first):
                    if first:
                        self._saving.now(records)
                    else:
                        self._spawn(self._saving.soon, records)
                case Changed():
                    self.notify()
                case Call():
                    self._spawn(self._call, effect)
                case Heard(peer, ok):
                    self._heard(peer, ok)
                case Accuse(owner, reason):
                    log.warning("%s %s", short(owner), reason)
                    self._accuse(owner, reason)
                case Offend(peer, reason) if not isinstance(event, Asked):
                    self._offend(peer, reason)
                case Reply() | Offend():
                    said = effect
        self._sooner.set()
        return said

    async def _call(self, call: Call) -> None:
        method, answers = METHODS[type(call.message)]
        event: Event = Failed(call.number)
        try:
            answer = await self._calls.call(call.peer, method, call.message, answers, timeout_s=call.timeout_s)
            event = Answered(call.number, answer.message)
        except LeptonError as error:
            log.debug("%s to %s: %s", method, short(call.peer), error)
            if isinstance(error, PeerError):
                self._offend(call.peer, str(error))
        self._note(event)

    async def _answer(self, call: Incoming[Any]) -> Answer[Any]:
        said = self._note(Asked(call.caller, call.message))
        if isinstance(said, Offend):
            raise PeerError(said.reason)
        assert said is not None
        return Answer(said.message)


class _Proven:
    """Admission as the machine needs it, with the clock that grants are held against."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def knows(self, peer: PeerId) -> bool:
        return self._admission.knows(peer)

    def learn(self, chains: Mapping[PeerId, tuple[Grant, ...]]) -> None:
        self._admission.learn(chains, time.time())

    def chains(self, peers: Iterable[PeerId]) -> dict[PeerId, tuple[Grant, ...]]:
        return self._admission.chains(peers)


class _Saving:
    """Writes to disk, the latest last: one that waits for a thread does not overwrite what was written meanwhile."""

    def __init__(self, keep: Keep) -> None:
        self.error: LeptonError | None = None  # why the last writing failed
        self._keep = keep
        self._lock = threading.Lock()
        self._asked = 0

    def now(self, records: list[SignedRecord]) -> None:
        self._asked += 1
        self._write_unless_newer(records, self._asked)

    async def soon(self, records: list[SignedRecord]) -> None:
        self._asked += 1
        await trio.to_thread.run_sync(self._write_unless_newer, records, self._asked)

    def _write_unless_newer(self, records: list[SignedRecord], asked: int) -> None:
        with self._lock:
            if asked != self._asked:
                return
            try:
                self._keep(records)
                self.error = None
            except LeptonError as error:
                self.error = error
                log.error("What is durable would not survive a crash of this node: %s", error)  # noqa: TRY400 - its text says all
