"""One loaded run of layers and the sessions on it: a machine that forms batches, keeps to its memory and moves caches.

A session goes along its route as follows. Its asker opens it at the first stage, which passes the opening on; the last
says from which position on it needs input, and so does each stage before it, back to the asker. A stage that is asked
for more than it kept of its outputs forgets its cache from there on and needs input itself. So whatever was lost, on
however many stages, one pass there and one back settle what has to be computed again, and the least of it is.

Invariants: a cache holds exactly the positions in ``ids``, run in order; a session computes only for its latest epoch;
what sessions and prefixes were promised never exceeds the budget; each session is in one place: open or waiting.
"""

import hashlib
import math
from collections import deque
from dataclasses import dataclass

from ...mesh.identity import PeerId, short
from .events import Came, Expired, Lost, Ran, Send
from .held import Held
from .kept import Kept
from .messages import (
    BLOCK,
    BLOCK_HASH_BYTES,
    Ack,
    Alive,
    Broke,
    Close,
    Data,
    Declined,
    Need,
    Open,
    Probe,
    Said,
    Token,
    Why,
)
from .prefixes import Prefix, Prefixes, block_hashes
from .steps import CacheOp, Draw, Drop, Fork, New, Result, Step, Truncate, Work

_MIB = 1024 * 1024
_CLOSED_MAX = 4096  # sessions that are over and whose late openings are known for what they are
_DEFERRED_MAX = 16  # messages for a session whose step is under way; an asker sends two or three
_FEW = 2  # positions that may always wait: a step of decoding and the next
_WINDOWS_LEAST = 32  # of prompts that may wait, however wide the layers
_SMOOTHING = 0.2  # of the step time: the last five or so steps


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """How much one stage takes on, and for how long."""

    cache_bytes_max: int
    kept_bytes_max: int = 64 * _MIB  # of outputs for replays: 20,000 positions of a model of 125 M parameters
    chunk: int = 128  # positions of prompts in one step: on a laptop they take as long as some steps of decoding
    window: int = 512  # positions that may be ahead of what the next stage has run
    batch_max: int = 64
    waiting_max: int = 64
    page: int = BLOCK  # positions by which caches grow
    inbox_bytes_max: int = 256 * _MIB  # of what waits for its step: windows of 32 prompts of a model of 7 B parameters
    wait_s: float = 30.0  # for memory; then its asker is told that this stage is busy
    lease_s: float = 30.0  # a session of which nothing is heard; an asker that waits says so every few seconds
    prefixes_max: int = 32


Event = Came | Lost | Ran | Expired
Effect = Send | Step


@dataclass(slots=True)
class Counts:
    """What a stage has done."""

    steps: int = 0
    positions: int = 0
    largest_batch: int = 0
    shared_positions: int = 0  # that were not computed, because another prompt began alike
    resent_positions: int = 0  # of replays
    declined: int = 0
    expired: int = 0


class Stage:
    """One run of layers, ``first`` up to ``end`` of ``layers``. ``deadline`` says when ``Expired`` is due."""

    def __init__(self, me: PeerId, config: StageConfig, *, position_bytes: int, input_bytes: int | None) -> None:
        """``position_bytes`` are those of a cache; ``input_bytes`` travel for each position, None on the first."""
        self.counts = Counts()
        self.deadline = math.inf
        self.step_s = 0.0  # of late
        self.draining: str = ""  # why no new session is taken
        self._me = me
        self._config = config
        self._position_bytes = position_bytes
        self._input_bytes = input_bytes
        self._sessions: dict[bytes, Held] = {}
        self._waiting: dict[bytes, tuple[Open, float]] = {}
        self._closed: dict[tuple[PeerId, bytes], int] = {}  # the last epoch of those that an asker has ended
        self._prefixes = Prefixes(config.prefixes_max)
        self._ready: dict[Held, None] = {}
        self._ops: list[CacheOp] = []
        self._batch: list[Held] | None = None  # under way
        self._step_began = 0.0
        self._promised = 0  # positions, of sessions
        self._kept_bytes = 0  # at most: what ended since it was last counted is still in it
        self._next_key = 0
        self._now = 0.0
        self._effects: list[Effect] = []

    # -- what others ask ----------------------------------------------------------------------------------------------

    @property
    def sessions(self) -> int:
        """How many are open."""
        return len(self._sessions)

    @property
    def waiting(self) -> int:
        """How many wait for memory."""
        return len(self._waiting)

    @property
    def promised_bytes(self) -> int:
        """Of caches, to sessions and kept prefixes."""
        return (self._promised + self._prefixes.positions) * self._position_bytes

    @property
    def load_s(self) -> float:
        """How long a step takes now, with the wait for the one under way."""
        return self.step_s * (1.5 if self._batch else 1.0)

    def holds(self, session: bytes) -> bool:
        """Whether a session is open or waits here."""
        return session in self._sessions or session in self._waiting

    @property
    def peers(self) -> set[PeerId]:
        """Whom its sessions have to do with."""
        return {peer for session in self._sessions.values() for peer in (*session.opened.route, session.opened.asker)}

    # -- events -------------------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float, *, more: bool = False) -> list[Effect]:
        """Take one event; ``now`` in monotonic seconds.

        With ``more`` others follow at once, and no step begins before: what came together runs as one batch.
        """
        self._now = now
        match event:
            case Came(peer, said):
                self._receive(peer, said)
            case Ran(results):
                self._ran(results)
            case Lost(peer, reason, left):
                self._lose(peer, reason, left=left)
            case Expired():
                self._expire()
        if not more:
            self._start_step()
        effects, self._effects = self._effects, []
        return effects

    def settle(self, now: float) -> list[Effect]:
        """Begin a step, if one is due, behind events that had ``more``."""
        self._now = now
        self._start_step()
        effects, self._effects = self._effects, []
        return effects

    def close_all(self, now: float, reason: str) -> list[Effect]:
        """End every session here, and tell their askers."""
        self._now = now
        for session in list(self._sessions.values()):
            self._decline(session.opened, "gone", reason)
            self._end(session)
        for opened, _ in self._waiting.values():
            self._decline(opened, "gone", reason)
        self._waiting.clear()
        for prefix in iter(self._prefixes.oldest, None):
            self._drop_prefix(prefix)
        self._start_step()
        effects, self._effects = self._effects, []
        return effects

    def _receive(self, peer: PeerId, said: Said) -> None:
        session = self._sessions.get(said.session)
        if isinstance(said, Data) and session is not None:
            self._take(session, peer, said)
            return
        if isinstance(said, Probe):
            self._answer(peer, said, session)
            return
        if session is not None and session.running is not None:
            if len(session.deferred) < _DEFERRED_MAX:
                session.deferred.append(Came(peer, said))
            return  # nothing may change the session of a step that is under way
        match said:
            case Open():
                self._open(peer, said, session)
            case Close():
                self._close(peer, said, session)
            case Need() if session is not None and not session.is_last and peer == session.behind:
                self._needed(session, said)
            case Ack() if session is not None and not session.is_last and peer == session.behind:
                self._acked(session, said)

    def _lose(self, peer: PeerId, reason: str, *, left: bool) -> None:
        for session in list(self._sessions.values()):
            opened = session.opened
            if peer == opened.asker and left:
                self._end(session)
            elif peer in opened.route and peer != self._me:
                near = {session.before} if session.is_last else {session.before, session.behind}
                near |= {opened.route[0]} if session.is_last else set()
                if peer in near:
                    broke = Broke(session=opened.session, epoch=opened.epoch, peer=peer, reason=reason[:500])
                    self._send(opened.asker, broke)
        for opened, _ in list(self._waiting.values()):
            if peer == opened.asker and left:
                del self._waiting[opened.session]

    def _expire(self) -> None:
        for opened, until in list(self._waiting.values()):
            if until <= self._now:
                del self._waiting[opened.session]
                self._decline(opened, "busy", self._full(opened))
        for session in list(self._sessions.values()):
            if session.used_at + self._config.lease_s <= self._now and session.running is None:
                self.counts.expired += 1
                self._end(session)
        lease_s = self._config.lease_s
        self.deadline = min(
            (
                *(until for _, until in self._waiting.values()),
                *(max(session.used_at + lease_s, self._now + 0.1) for session in self._sessions.values()),
            ),
            default=math.inf,
        )

    # -- sessions come and go -----------------------------------------------------------------------------------------

    def _open(self, peer: PeerId, opened: Open, session: Held | None) -> None:
        sender = opened.route[opened.index - 1] if opened.index else opened.asker
        waits = self._waiting.get(opened.session)
        known = session.opened if session is not None else waits[0] if waits is not None else None
        if peer != sender or opened.route[opened.index] != self._me:
            return
        if opened.epoch <= self._closed.get((opened.asker, opened.session), -1) or not _continues(opened, known):
            return
        if session is not None:
            self._begin(session, opened)
        elif waits is not None:
            self._waiting[opened.session] = (opened, waits[1])
        else:
            self._open_new(opened)

    def _open_new(self, opened: Open) -> None:
        if self.draining:
            self._decline(opened, "gone", self.draining)
        elif self._pages(opened) * self._position_bytes > self._config.cache_bytes_max:
            self._decline(opened, "usage", self._too_large(opened))
        elif not self._waiting and self._make_room(self._pages(opened)):
            self._admit(opened)
        elif len(self._waiting) < self._config.waiting_max:
            until = self._now + self._config.wait_s
            self._waiting[opened.session] = (opened, until)
            self.deadline = min(self.deadline, until)
        else:
            self._decline(opened, "busy", self._full(opened))

    def _pages(self, opened: Open) -> int:
        """For how many positions memory is set aside."""
        return -(-opened.positions // self._config.page) * self._config.page

    def _make_room(self, positions: int) -> bool:
        """Set memory aside, for which kept prefixes go if need be."""
        free = self._config.cache_bytes_max // max(self._position_bytes, 1) - self._promised - positions
        if free < 0:
            return False
        while self._prefixes.positions > free and (prefix := self._prefixes.oldest()) is not None:
            self._drop_prefix(prefix)
        return True

    def _admit(self, opened: Open) -> None:
        key = self._new_key()
        found = self._prefixes.find(_named(opened.blocks, opened), opened.known - 1)
        length = 0 if found is None else found[1]
        session = Held(opened, key, self._now, Kept(length))
        if found is None:
            self._ops.append(New(key))
        else:
            prefix, length = found
            self._ops.append(Fork(key, prefix.key, length))
            session.ids = list(prefix.ids[:length])
            self.counts.shared_positions += length
        self._sessions[opened.session] = session
        self._promised += self._pages(opened)
        self.deadline = min(self.deadline, self._now + self._config.lease_s)
        self._begin(session, opened)

    def _begin(self, session: Held, opened: Open) -> None:
        """Enter an epoch: forget what the asker does not know of, and pass it on."""
        index = opened.index
        session.mixed |= opened.route[:index] != session.opened.route[: session.index] and bool(session.ids)
        session.opened, session.asked, session.used_at = opened, False, self._now
        session.sent = session.acked = 0
        self._truncate(session, opened.known - session.is_last)
        if session.is_last:
            self._need(session, ())
        else:
            self._send(session.behind, _passed_on(opened))

    def _close(self, peer: PeerId, said: Close, session: Held | None) -> None:
        waits = self._waiting.get(said.session)
        opened = session.opened if session is not None else waits[0] if waits is not None else None
        if opened is not None and peer != opened.asker:
            return
        if opened is None or said.epoch >= opened.epoch:
            closed = (peer, said.session)
            self._closed[closed] = max(said.epoch, self._closed.pop(closed, 0))
            while len(self._closed) > _CLOSED_MAX:
                del self._closed[next(iter(self._closed))]
            self._waiting.pop(said.session, None)
            if session is not None:
                self._share(session, len(session.ids))
                self._end(session)
            self._admit_waiting()

    def _end(self, session: Held) -> None:
        """Drop a session whose step is not under way, or mark it so that its result is dropped."""
        if self._sessions.pop(session.opened.session, None) is None:
            return
        self._ops.append(Drop(session.key))
        self._ready.pop(session, None)
        session.inbox.clear()
        session.deferred.clear()
        self._promised -= self._pages(session.opened)
        self._admit_waiting()

    def _admit_waiting(self) -> None:
        while self._waiting:
            opened, _ = next(iter(self._waiting.values()))
            if not self._make_room(self._pages(opened)):
                return
            del self._waiting[opened.session]
            self._admit(opened)

    # -- who has what -------------------------------------------------------------------------------------------------

    def _needed(self, session: Held, need: Need) -> None:
        if need.epoch != session.opened.epoch or session.asked:
            return
        session.asked, session.used_at = True, self._now
        if need.position < min(session.kept.first, len(session.ids)):
            self._truncate(session, need.position)
        session.sent = session.acked = need.position
        self.counts.resent_positions += max(len(session.ids) - need.position, 0)
        self._need(session, need.loads)
        self._pump(session)

    def _need(self, session: Held, loads: tuple[float, ...]) -> None:
        session.end = len(session.ids)
        opened = session.opened
        need = Need(
            session=opened.session, epoch=opened.epoch, position=session.end, loads=(round(self.load_s, 6), *loads[:63])
        )
        self._send(session.before, need)

    def _acked(self, session: Held, ack: Ack) -> None:
        if ack.epoch == session.opened.epoch:
            self._ran_behind(session, ack.position)

    def _ran_behind(self, session: Held, position: int) -> None:
        if position > session.acked:
            session.acked = position
            self._pump(session)
            self._see_whether_ready(session)

    def _truncate(self, session: Held, length: int) -> None:
        session.inbox.clear()
        self._ready.pop(session, None)
        if length < len(session.ids):
            del session.ids[length:]
            session.kept.truncate(length)
            self._ops.append(Truncate(session.key, length))
        session.end = len(session.ids)

    def _pump(self, session: Held) -> None:
        """Send the next stage what it lacks, as far as the window reaches."""
        length, window = len(session.ids), self._config.window
        while session.asked and session.sent < length and session.sent < session.acked + window:
            data = session.kept.read(session.sent, self._config.chunk, session.opened.epoch)
            self._send(session.behind, data)
            session.sent = data.end

    def _keep_within_bounds(self) -> None:
        """When outputs for replays grow over their bound, those go that the most is kept of; tokens remain."""
        if self._kept_bytes <= self._config.kept_bytes_max:
            return
        total = sum(session.kept.size_bytes for session in self._sessions.values())
        most = sorted(self._sessions.values(), key=lambda session: -session.kept.size_bytes)
        self._kept_bytes = total
        for session in most:
            if total <= self._config.kept_bytes_max:
                return
            total -= session.kept.forget_before(min(session.sent, len(session.ids)) if session.asked else 0)
            self._kept_bytes = total

    # -- steps --------------------------------------------------------------------------------------------------------

    def _take(self, session: Held, peer: PeerId, data: Data) -> None:
        opened, end = session.opened, session.end
        wrong = data.epoch != opened.epoch or not session.takes_from(peer) or data.end > opened.positions
        if wrong or (session.index > 0) != (data.x is not None) or not (session.is_last or session.asked):
            return
        if data.position > end or data.end <= end:
            return  # something before it was lost, and the asker will notice; or it was here before
        if data.x is not None and (
            data.x.shape[1] != self._input_bytes
            or end - len(session.ids) > 2 * self._config.window
            or self._is_flooded(session, data)
        ):
            return  # nobody who means well sends so
        session.used_at = self._now
        if data.position < end:
            data = data.part(end, data.end)
            data = data._replace(x=None if data.x is None else data.x.copy())  # else all of the frame stays in memory
        session.inbox.append(data)
        session.end = data.end
        if data.position >= opened.known and not session.is_last:
            self._ran_behind(session, data.position)  # or nobody could have drawn this token
        self._see_whether_ready(session)

    def _is_flooded(self, session: Held, data: Data) -> bool:
        """Whether too much waits for its step, and this session has more than its share of it."""
        size, waiting = self._input_bytes or 0, data.end - len(session.ids)
        if waiting <= _FEW:
            return False
        most = max(self._config.inbox_bytes_max, _WINDOWS_LEAST * self._config.window * size)
        total = sum(one.end - len(one.ids) for one in self._sessions.values()) + data.end - session.end
        return total * size > most and waiting * size > most // len(self._sessions)

    def _see_whether_ready(self, session: Held) -> None:
        """A session runs when something is here for it, and the next stage is not too far behind."""
        if session.inbox and session.running is None:
            ahead = 0 if session.is_last else len(session.ids) - session.acked
            if ahead < self._config.window:
                self._ready.setdefault(session)

    def _start_step(self) -> None:
        if self._batch is not None or not (self._ready or self._ops):
            return
        batch, left = list[Held](), self._config.chunk  # positions of prompts that may be in it
        for session in list(self._ready):
            is_prompt = len(session.inbox[0].ids) > 1
            if len(batch) >= self._config.batch_max or (is_prompt and left < 2):
                continue
            del self._ready[session]
            running = session.running = _pulled(session.inbox, left if is_prompt else 1)
            left -= len(running.ids) if is_prompt else 0
            batch.append(session)
        ops, self._ops = tuple(self._ops), []
        self._batch, self._step_began = batch, self._now
        self._effects.append(Step(ops, tuple(map(self._work, batch))))
        self.counts.steps += 1
        self.counts.largest_batch = max(self.counts.largest_batch, len(batch))

    def _work(self, session: Held) -> Work:
        data, opened = session.running, session.opened
        assert data is not None
        draw = None
        if session.is_last and data.end >= opened.known:
            penalised = opened.sampling.repetition_penalty != 1.0
            draw = Draw(opened.sampling, (*session.ids, *data.ids) if penalised else (), data.end)
        return Work(session.key, data.ids, data.x, draw)

    def _ran(self, results: tuple[Result, ...]) -> None:
        batch, self._batch = self._batch or [], None
        if batch:
            took = self._now - self._step_began
            self.step_s = took if not self.step_s else self.step_s + _SMOOTHING * (took - self.step_s)
        for session, result in zip(batch, results, strict=True):
            data, session.running = session.running, None
            assert data is not None
            if self._sessions.get(data.session) is session:
                self._ran_one(session, data, result)
        self._keep_within_bounds()

    def _ran_one(self, session: Held, data: Data, result: Result) -> None:
        self.counts.positions += len(data.ids)
        if result.error:
            self._decline(session.opened, "usage" if result.asked_wrongly else "failed", result.error)
            self._end(session)
            return
        session.ids += data.ids
        session.used_at = self._now
        opened = session.opened
        if session.is_last:
            if result.token is not None:
                self._drawn(session, result.token)
        else:
            session.kept.add(data._replace(x=result.x))
            self._kept_bytes += 0 if result.x is None else result.x.nbytes
            self._pump(session)
        if len(data.ids) > 1 and session.index > 0:
            ack = Ack(session=opened.session, epoch=opened.epoch, position=len(session.ids))
            self._send(session.before, ack)
        if not session.shared and len(session.ids) >= opened.known - 1:
            self._share(session, opened.known - 1)
        deferred, session.deferred = session.deferred, []
        for came in deferred:
            self._receive(came.peer, came.said)
        self._see_whether_ready(session)

    def _drawn(self, session: Held, token: int) -> None:
        opened, position = session.opened, len(session.ids)
        self._send(opened.asker, Token(opened.session, opened.epoch, position, token))
        if position + 1 < opened.positions and token not in opened.stop_ids:
            self._send(opened.route[0], Data(opened.session, opened.epoch, position, (token,)))

    # -- prompts that begin alike -------------------------------------------------------------------------------------

    def _share(self, session: Held, length: int) -> None:
        """Keep the whole blocks of a session for others, where there is room without pushing anybody out."""
        session.shared = True
        if session.mixed:
            return  # what came along one route must not be found along another
        hashes = _named(block_hashes(session.ids[:length]), session.opened)
        length = len(hashes) * BLOCK
        found = self._prefixes.find(hashes, length)
        free = self._config.cache_bytes_max - self.promised_bytes
        if not hashes or (found is not None and found[1] == length) or length * self._position_bytes > free:
            return
        prefix = Prefix(self._new_key(), tuple(session.ids[:length]), hashes)
        self._ops.append(Fork(prefix.key, session.key, length))
        self._ops.extend(Drop(gone.key) for gone in self._prefixes.keep(prefix))

    def _drop_prefix(self, prefix: Prefix) -> None:
        self._prefixes.drop(prefix)
        self._ops.append(Drop(prefix.key))

    # -- words --------------------------------------------------------------------------------------------------------

    def _answer(self, peer: PeerId, probe: Probe, session: Held | None) -> None:
        waits = self._waiting.get(probe.session)
        alive = Alive(session=probe.session, epoch=probe.epoch, state="waiting" if waits else "unknown")
        if session is not None and peer == session.opened.asker:
            session.used_at = self._now
            busy = session.running is not None or session in self._ready
            alive = Alive(
                session=probe.session,
                epoch=session.opened.epoch,
                state="working" if busy else "idle",
                length=len(session.ids),
                asked=session.asked,
                load_s=round(self.load_s, 6),
            )
        self._send(peer, alive)

    def _decline(self, opened: Open, why: Why, reason: str) -> None:
        self.counts.declined += 1
        declined = Declined(session=opened.session, epoch=opened.epoch, why=why, reason=reason[:1000])
        self._send(opened.asker, declined)

    def _full(self, opened: Open) -> str:
        asked, most = opened.positions * self._position_bytes / _MIB, self._config.cache_bytes_max / _MIB
        return (
            f"{short(self._me)} has no memory for {asked:.1f} MiB of caches of layers "
            f"{_layers(opened)}: {len(self._sessions)} sessions have {self.promised_bytes / _MIB:.1f} of {most:.1f} MiB"
        )

    def _too_large(self, opened: Open) -> str:
        asked, most = opened.positions * self._position_bytes / _MIB, self._config.cache_bytes_max / _MIB
        return (
            f"{opened.positions} positions take {asked:.1f} MiB of caches of layers {_layers(opened)} on "
            f"{short(self._me)}, which has {most:.1f} MiB for all sessions; ask for fewer tokens"
        )

    def _send(self, peer: PeerId, said: Said) -> None:
        self._effects.append(Send(peer, said))

    def _new_key(self) -> int:
        self._next_key += 1
        return self._next_key


def _continues(opened: Open, known: Open | None) -> bool:
    """Whether this is a later epoch of the session that is known, or none is."""
    if known is None:
        return True
    same = (opened.asker, opened.positions) == (known.asker, known.positions)
    return same and opened.epoch > known.epoch


def _named(hashes: tuple[bytes, ...], opened: Open) -> tuple[bytes, ...]:
    """Name blocks by the stages before too, who made what is computed on here: they may lie about what it is."""
    before = "\n".join(opened.route[: opened.index]).encode()
    if not before:
        return hashes  # token ids are what they are
    return tuple(hashlib.blake2b(hash_ + before, digest_size=BLOCK_HASH_BYTES).digest() for hash_ in hashes)


def _passed_on(opened: Open) -> Open:
    return Open(
        session=opened.session, epoch=opened.epoch, name=opened.name, version=opened.version, asker=opened.asker,
        route=opened.route, runs=opened.runs, index=opened.index + 1, known=opened.known, positions=opened.positions,
        blocks=opened.blocks, stop_ids=opened.stop_ids, sampling=opened.sampling,
    )  # fmt: skip


def _pulled(inbox: deque[Data], count_max: int) -> Data:
    """Take what runs next out of an inbox: a step of decoding, or as much of a prompt as fits."""
    head = inbox.popleft()
    cut = head.position + count_max
    if head.end > cut:
        inbox.appendleft(head.part(cut, head.end))
        head = head.part(head.position, cut)
    return head


def _layers(opened: Open) -> str:
    first, end = opened.runs[opened.index]
    return f"{first} to {end - 1}"
