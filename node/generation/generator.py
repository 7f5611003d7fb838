"""The shell of askers: sessions of this node, each an asynchronous iterator over its tokens."""

import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Final, NamedTuple, Self

import msgspec
import trio

from ...mesh.errors import Busy, LeptonError, LinkError, Refused, UsageError
from ...mesh.identity import PeerId
from ...mesh.mesh import Mesh
from ..config import did_you_mean
from ..deployments import DeploymentRecord
from ..seeing.measures import Measures
from ..seeing.request import session_id
from .alike import Alike
from .apart import Apart, Pair
from .asker import (
    Asked,
    Asker,
    AskerConfig,
    AskerEvent,
    Cancel,
    Emit,
    Failed,
    Finish,
    Finished,
    Paused,
    Picture,
    Tally,
)
from .events import Came, Expired, Lost
from .events import Send as SendEffect
from .messages import POSITIONS_MAX, STOP_IDS_MAX, Said, Send
from .outlook import Pictured, outlook
from .route import Load, Route, Run, Serving, choose
from .sampling import Sampling

SESSIONS_MAX: Final = 1024  # of one node's askers at once: as many as a deployment can promise
_LOAD_LASTS_S: Final = 60.0  # what a stage said of its load; older, it is taken for one that nobody knows
_CROWD: Final = 0.25  # how much longer a step takes for each session more in it: measured 0.2 to 0.3 on laptops

log = logging.getLogger(__name__)


class GeneratedToken(NamedTuple):
    """One token and its place, the prompt's tokens counted."""

    id: int
    position: int


class Generation:
    """One session: iterate over it. Leave it by ``async with`` when not all tokens are wanted.

    Iterating raises LinkError when nobody brought the next token in time, Busy when the stages have no memory for it,
    Refused without the grant, UsageError for tokens that the model does not have, LeptonError when a stage failed.
    """

    def __init__(self, asker: Asker, cancel: Callable[[], None]) -> None:
        self.finish: Finish | None = None  # why it ended, when it has
        self.paused = ""  # why no token comes just now
        self.notices: list[str] = []  # what may have made the text another one; see `alike`
        self.on_pause: Callable[[str], None] | None = None  # is told when a pause begins, and of notices
        self._asker = asker
        self._cancel = cancel
        self._tokens: deque[GeneratedToken] = deque()
        self._failed: LeptonError | None = None
        self._moved = trio.Event()

    def notice(self, text: str) -> None:
        """Note what its user ought to know."""
        self.notices.append(text)
        log.warning("a session %s", text)
        if self.on_pause is not None:
            self.on_pause(text)

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return self._failed is not None

    @property
    def tally(self) -> Tally:
        """How it went: attempts, pauses, times."""
        return self._asker.tally

    @property
    def route(self) -> Route:
        """The stages that it goes through now."""
        return self._asker.route

    def close(self) -> None:
        """End it, on all stages too."""
        self._cancel()
        self._moved.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def aclose(self) -> None:
        """End it, as an asynchronous generator is ended."""
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> GeneratedToken:
        try:
            await trio.lowlevel.checkpoint()
            while not self._tokens:
                if self._failed is not None:
                    raise self._failed
                if self._asker.over:
                    raise StopAsyncIteration
                self._moved = trio.Event()
                await self._moved.wait()
        except trio.Cancelled:
            self.close()
            raise
        return self._tokens.popleft()

    def take(self, effect: Emit | Paused | Finished | Failed) -> None:
        """What the machine has for its user."""
        match effect:
            case Emit(position, id_):
                self.paused = ""
                self._tokens.append(GeneratedToken(id_, position))
            case Paused(reason):
                self.paused = reason
                log.info("a session pauses: %s", reason)
                if self.on_pause is not None:
                    self.on_pause(reason)
            case Finished(finish):
                self.finish = finish
            case Failed():
                self._failed = _error(effect)
        self._moved.set()


class Generator:
    """The sessions that this node asks for."""

    def __init__(
        self,
        mesh: Mesh,
        view: Pictured,
        send: Send,
        soon: Callable[[float], None],
        config: AskerConfig | None = None,
        measures: Measures | None = None,
    ) -> None:
        """``soon`` is told when `tick` is due."""
        self._measures = measures or Measures()
        self._mesh = mesh
        self._view = view
        self._send = send
        self._soon = soon
        self._config = config
        self._apart = Apart()
        self._live: dict[bytes, tuple[Asker, Generation, str, int]] = {}
        self._rng = random.Random()
        self._loads: dict[tuple[str, PeerId, Run], tuple[float, float]] = {}  # seconds a step, and when that was said

    def generate(
        self,
        name: str,
        prompt_ids: Sequence[int],
        sampling: Sampling | None = None,
        stop_ids: Collection[int] = frozenset(),
    ) -> Generation:
        """Begin a session that goes on from a prompt, ``sampling.tokens_max`` tokens at most.

        Raises UsageError for an unknown model or a prompt that is empty or too long, Refused without the grant, Busy
        when this node has as many sessions as it takes.
        """
        sampling = sampling or Sampling()
        record = self._deployment(name)
        self._mesh.authority(self._mesh.me).require(f"infer:{name}", time.time())
        if len(self._live) >= SESSIONS_MAX:
            raise Busy(f"This node has {SESSIONS_MAX} sessions already.")
        asked = Asked(
            session=session_id(),
            name=name,
            version=record.version,
            layers=len(record.weights_bytes),
            prompt=_checked(prompt_ids, record),
            positions=min(len(prompt_ids) + sampling.tokens_max, record.positions, POSITIONS_MAX),
            stop_ids=frozenset(stop_ids),
            sampling=msgspec.structs.replace(sampling, stop=()),  # the stages know tokens, not text
        )
        if len(asked.stop_ids) > STOP_IDS_MAX:
            raise UsageError(f"At most {STOP_IDS_MAX} stop tokens can be named, not {len(asked.stop_ids)}.")
        return self._begin(asked)

    @property
    def live(self) -> int:
        """How many sessions this node has."""
        return len(self._live)

    @property
    def tokens(self) -> int:
        """How many tokens came to this node's sessions since it started."""
        under_way = sum(generation.tally.tokens for _, generation, *_ in self._live.values())
        return under_way + int(sum(self._measures.tokens.counts.values()))

    def uses(self, peer: PeerId) -> bool:
        """Whether sessions of this node go through a peer."""
        return any(peer in asker.route.peers for asker, *_ in self._live.values())

    def _deployment(self, name: str) -> DeploymentRecord:
        deployments = {n: d for n, d in self._view.deployments().items() if d.kind == "causal_lm"}
        if name not in deployments:
            raise UsageError(
                f"No language model {name!r} is served in this mesh.{did_you_mean(name, sorted(deployments))}"
            )
        return deployments[name]

    def _begin(self, asked: Asked) -> Generation:
        def chosen(
            serving: Serving, avoid: Collection[PeerId], keep: Collection[PeerId], apart: Collection[Pair]
        ) -> Route | None:
            load = partial(self._load, asked.name)
            find = partial(choose, layers=asked.layers, rng=self._rng, avoid=avoid, keep=keep, apart=apart, load=load)
            arithmetic = self._view.arithmetics(asked.name, asked.version)
            return alike.choose(find, serving, arithmetic, begun=asker.tally.tokens > 0)

        now = trio.current_time()
        asker = Asker(self._mesh.me, asked, chosen, now, self._config, self._apart)
        generation = Generation(asker, lambda: self._tell(asked.session, Cancel()))
        alike = Alike(generation.notice)
        self._live[asked.session] = (asker, generation, asked.name, asked.version)
        self._tell(asked.session, outlook(self._view, asked.name, asked.version))
        return generation

    # -- events -------------------------------------------------------------------------------------------------------

    def receive(self, peer: PeerId, said: Said) -> None:
        """Take what a stage said."""
        if said.session in self._live:
            self._tell(said.session, Came(peer, said))

    def lost(self, peer: PeerId, reason: str, *, left: bool) -> None:
        """A peer is gone from the mesh, or from this node's sight."""
        for session in list(self._live):
            self._tell(session, Lost(peer, reason, left))

    def look(self) -> None:
        """Show all sessions the new picture: those that wait for a route seek one, others when they lose theirs."""
        pictures = dict[tuple[str, int], Picture]()
        for session, (_, _, name, version) in list(self._live.items()):
            if (name, version) not in pictures:
                pictures[name, version] = outlook(self._view, name, version)
            self._tell(session, pictures[name, version])

    def tick(self, now: float) -> None:
        """Let deadlines that have come do what they do."""
        for session, (asker, _, name, version) in list(self._live.items()):
            if asker.deadline <= now:
                self._tell(session, Expired() if asker.route.peers else outlook(self._view, name, version))

    @property
    def deadline(self) -> float:
        """When the next is due."""
        return min((asker.deadline for asker, *_ in self._live.values()), default=math.inf)

    def _tell(self, session: bytes, event: AskerEvent) -> None:
        live = self._live.get(session)
        if live is None:
            return
        asker, generation, name, _ = live
        for effect in asker.handle(event, trio.current_time()):
            if isinstance(effect, SendEffect):
                self._send(effect.peer, effect.said)
            else:
                generation.take(effect)
        if asker.loads:
            self._note_loads(name, asker)
        if asker.over:
            self._live.pop(session, None)
            self._measure(generation)
        else:
            self._soon(asker.deadline)

    def _measure(self, generation: Generation) -> None:
        measures, tally = self._measures, generation.tally
        measures.sessions.add("failed" if generation.failed else generation.finish or "cancelled")
        measures.tokens.add(by=tally.tokens)
        if tally.tokens:
            measures.first_token_seconds.observe(tally.first_token_s)

    # -- loads --------------------------------------------------------------------------------------------------------

    def _note_loads(self, name: str, asker: Asker) -> None:
        now = trio.current_time()
        for (peer, run), step_s in asker.loads.items():
            self._loads[name, peer, run] = (step_s, now)
        asker.loads.clear()
        for key in [key for key, (_, at) in self._loads.items() if now > at + _LOAD_LASTS_S]:
            del self._loads[key]

    def _load(self, name: str, peer: PeerId, run: Run) -> Load | None:
        """What a step of a stage takes, this node's own sessions on it counted."""
        said = self._loads.get((name, peer, run))
        age_s = 0.0 if said is None else trio.current_time() - said[1]
        if said is None or age_s > _LOAD_LASTS_S:
            return None
        own = sum(peer in asker.route.peers for asker, *_ in self._live.values())
        return Load(said[0] * (1 + _CROWD * own), age_s)


def _checked(prompt_ids: Sequence[int], record: DeploymentRecord) -> tuple[int, ...]:
    with suppress(TypeError, ValueError):
        prompt = tuple(map(int, prompt_ids))
        if not prompt:
            raise UsageError("The prompt is empty; a session goes on from at least one token.")
        if len(prompt) >= record.positions:
            most = f"sessions of this model hold {record.positions}, answer included"
            raise UsageError(f"The prompt has {len(prompt)} tokens; {most}.")
        if min(prompt) >= 0 and max(prompt) < 2**31:
            return prompt
    raise UsageError("A prompt is a sequence of token ids, whole numbers from 0 on.")


def _error(failed: Failed) -> LeptonError:
    match failed.why:
        case "busy":
            return Busy(failed.reason, failed.retry_after_s)
        case "refused":
            return Refused(failed.reason)
        case "usage":
            return UsageError(failed.reason)
        case "link":
            return LinkError(failed.reason)
        case _:
            return LeptonError(failed.reason)
