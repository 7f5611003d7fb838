"""The asking side of one session: finds a route, takes the tokens, and mends the route when something of it fails.

It holds the prompt and all tokens so far, which is enough to have any cache rebuilt. Every attempt is an epoch: what
stages say of an older one is passed over. An epoch is begun by opening the session along a route, the same or another;
the stages find out among themselves what of their caches still counts (`stage.py`).

Invariants: each token is given out once and in order; the session ends exactly once, finished, failed or closed, and
all who may hold a cache of it are then told; while it lives, its deadline is finite.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ...mesh.identity import PeerId, short
from .apart import Apart, find_gap
from .events import Came, Expired, Lost, Send
from .messages import (
    FRAME_POSITIONS_MAX,
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
from .prefixes import block_hashes
from .route import Choose, Route, Run, Serving, reached
from .sampling import Sampling

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AskerConfig:
    """How patient an asker is."""

    # Without a token for this long the stages are asked whether they are there: many steps of a laptop, some of a Pi.
    token_s_min: float = 0.5
    token_factor: float = 8.0  # the same in mean steps of this session
    probe_s: float = 0.5  # in which a stage answers that is there: it does so beside its arithmetic
    retry_pause_s: float = 0.1  # when there is no route: the picture may change without telling
    unserved_s: float = (
        5.0  # before it is believed that nobody is about to serve it: a newcomer's picture grows so long
    )
    trouble_s: float = 60.0  # in which a route must be found that brings a token: layers are loaded elsewhere meanwhile
    stuck_s: float = 120.0  # a stage that says it works, and nothing moves: a long prompt on a Pi moves every second
    quiet_max: int = 2  # times that all stages are there and none has anything to do: then something was lost


@dataclass(frozen=True, slots=True)
class Picture:
    """Who serves what now."""

    serving: Serving
    lacking: str = ""  # why nobody is about to serve what is lacking, for people; empty where somebody is
    for_good: bool = False  # and nobody ever will: what is lacking is not wanted any more


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody wants the tokens any more."""


@dataclass(frozen=True, slots=True)
class Emit:
    """Give this token out."""

    position: int
    id: int


@dataclass(frozen=True, slots=True)
class Paused:
    """No token comes for now; the reason is for people."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    """All tokens were given out."""

    finish: Finish


@dataclass(frozen=True, slots=True)
class Failed:
    """There will be no more tokens; the reason is for people."""

    why: Why | Literal["link"]
    reason: str
    retry_after_s: float = 1.0


AskerEvent = Picture | Came | Lost | Cancel | Expired
AskerEffect = Send | Emit | Paused | Finished | Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked for."""

    session: bytes
    name: str
    version: int
    layers: int
    prompt: tuple[int, ...]
    positions: int  # at most, of prompt and answer
    stop_ids: frozenset[int]
    sampling: Sampling


@dataclass(slots=True)
class Tally:
    """How a session went, in seconds of the clock that its asker was given."""

    attempts: int = 0
    pauses: list[float] = field(default_factory=list)  # of each trouble: from when it was noticed to the next token
    noticed: list[float] = field(default_factory=list)  # of each trouble: since the token before it
    first_token_s: float = 0.0
    tokens: int = 0


class Asker:
    """One session. Start it with a `Picture`. ``deadline`` says when ``Expired`` is due."""

    def __init__(
        self,
        me: PeerId,
        asked: Asked,
        choose: Choose,
        now: float,
        config: AskerConfig | None = None,
        apart: Apart | None = None,
    ) -> None:
        """``apart`` is what all sessions of this node have found out."""
        self.tally = Tally()
        self.deadline = now
        self.over = False
        self.route = Route((), ())
        self.loads: dict[tuple[PeerId, Run], float] = {}  # what stages said a step takes
        self._me = me
        self._asked = asked
        self._choose = choose
        self._config = config or AskerConfig()
        self._tokens = list(asked.prompt)
        self._blocks = block_hashes(asked.prompt)
        self._serving: Serving = {}
        self._lacking, self._for_good = "", False
        self._epoch = 0
        self._given: int | None = None  # up to where the first stage has got tokens, once it said what it needs
        self._avoid: set[PeerId] = set()
        self._doubted: set[PeerId] = set()  # whom others could not reach
        self._apart = apart or Apart()
        self._holders: set[PeerId] = set()  # who may have a cache
        self._answers: dict[PeerId, Alive] | None = None  # to the probe that is out
        self._moved: tuple[object, ...] = ()  # how far the stages were at the last probe
        self._moved_at = now
        self._quiet = 0
        self._gap_s = 0.0  # mean time between tokens
        self._began = self._heard_at = now
        self._look_at = now  # for a route, when there is none
        self._trouble_since: float | None = now
        self._hopeless_at = now + self._config.trouble_s  # unless more was computed by then
        self._computed = 0  # positions on all stages since the last token, at most
        self._trouble = ""
        self._last_word: Failed | None = None  # of stages that are there and will not do it
        self._effects: list[AskerEffect] = []

    @property
    def session(self) -> bytes:
        """Its name on the wire."""
        return self._asked.session

    @property
    def tokens(self) -> Sequence[int]:
        """Prompt and answer so far."""
        return self._tokens

    def handle(self, event: AskerEvent, now: float) -> list[AskerEffect]:
        """Take one event; ``now`` in monotonic seconds."""
        if self.over:
            return []
        match event:
            case Picture(serving, lacking, for_good):
                self._serving, self._lacking, self._for_good = serving, lacking, for_good
            case Came(peer, said):
                self._receive(peer, said, now)
            case Lost(peer, reason, left):
                if left:  # the picture may be older than the news
                    self._serving = {run: [p for p in peers if p != peer] for run, peers in self._serving.items()}
                if peer in self.route.peers:
                    self._give_up({peer}, f"{short(peer)} {reason}", now)
            case Cancel():
                self._close()
            case Expired() if now >= self.deadline:
                self._expire(now)
        if not self.route.peers and (now >= self._look_at or isinstance(event, Picture)):
            self._find(now)
        effects, self._effects = self._effects, []
        return effects

    # -- what stages say ----------------------------------------------------------------------------------------------

    def _receive(self, peer: PeerId, said: Said, now: float) -> None:
        late = said.epoch < self._epoch and isinstance(said, Alive)  # the opening of this epoch has not come to it
        if (said.epoch != self._epoch and not late) or peer not in self.route.peers:
            return
        match said:
            case Token(_, _, position, id_) if peer == self.route.peers[-1] and position == len(self._tokens):
                self._take(id_, now)
            case Need(position=position, loads=loads) if peer == self.route.peers[0] and self._given is None:
                # Once in an epoch: each costs the whole prompt, and puts off the deadline.
                self._given = len(self._tokens)
                self.loads.update(zip(zip(*self.route, strict=True), loads, strict=False))
                self._give(position)
                self._wait(now)
            case Alive() if self._answers is not None:
                self._answers[peer] = said
                if len(self._answers) == len(self.route.peers):
                    self._judge(now)
            case Broke(peer=lost, reason=reason) if lost in self.route.peers and lost != peer:
                self._doubted.add(lost)
                self._apart.note(peer, lost, now)
                self._give_up(set(), f"{short(peer)} cannot reach {short(lost)}: {reason}", now)
            case Declined():
                self._declined(peer, said, now)

    def _take(self, id_: int, now: float) -> None:
        if self._trouble_since is not None and self.tally.tokens:
            self.tally.pauses.append(now - self._trouble_since)
        gap = now - self._heard_at
        if self.tally.tokens and self._trouble_since is None:
            self._gap_s = gap if not self._gap_s else 0.9 * self._gap_s + 0.1 * gap
        if not self.tally.tokens:
            self.tally.first_token_s = now - self._began
        self.tally.tokens += 1
        self._heard_at, self._trouble_since, self._last_word = now, None, None
        self._hopeless_at, self._computed = now + self._config.trouble_s, 0
        self._avoid.clear()
        self._doubted.clear()
        self._effects.append(Emit(len(self._tokens), id_))
        self._tokens.append(id_)
        if id_ in self._asked.stop_ids or len(self._tokens) >= self._asked.positions:
            self._effects.append(Finished("stop" if id_ in self._asked.stop_ids else "length"))
            self._close()
            return
        self._wait(now)

    def _give(self, position: int) -> None:
        """Send the first stage the tokens from a position on."""
        for begin in range(position, len(self._tokens), FRAME_POSITIONS_MAX):
            ids = tuple(self._tokens[begin : begin + FRAME_POSITIONS_MAX])
            self._send(self.route.peers[0], Data(self.session, self._epoch, begin, ids))

    def _declined(self, peer: PeerId, said: Declined, now: float) -> None:
        reason = f"{short(peer)}: {said.reason}"
        if said.why in {"usage", "refused"}:
            self._fail(Failed(said.why, said.reason))
            return
        if said.why != "gone":
            self._last_word = Failed(said.why, said.reason, said.retry_after_s)
        self._holders.discard(peer)
        self._give_up({peer}, reason, now)

    # -- time ---------------------------------------------------------------------------------------------------------

    def _wait(self, now: float) -> None:
        """Something moved: give the route its time again."""
        self._answers, self._quiet, self._moved, self._moved_at = None, 0, (), now
        self.deadline = now + self._patience_s

    @property
    def _patience_s(self) -> float:
        return max(self._config.token_s_min, self._config.token_factor * self._gap_s)

    def _expire(self, now: float) -> None:
        if not self.route.peers:
            return
        if self._answers is None:
            self._answers = {}
            for peer in self.route.peers:
                self._send(peer, Probe(session=self.session, epoch=self._epoch))
            self.deadline = now + self._config.probe_s
            return
        silent = set(self.route.peers) - set(self._answers)
        who = ", ".join(map(short, sorted(silent)))
        self._give_up(silent, f"{who} did not answer within {self._config.probe_s:g} s", now)

    def _judge(self, now: float) -> None:
        """All stages of the route are there: see whether there is anything to wait for."""
        answers, self._answers = self._answers or {}, None
        moved = tuple((peer, alive.epoch, alive.state, alive.length) for peer, alive in sorted(answers.items()))
        self.loads.update(
            {(p, run): answers[p].load_s for p, run in zip(*self.route, strict=True) if answers[p].state != "unknown"}
        )
        if (computed := sum(alive.length for alive in answers.values())) > self._computed:
            self._computed, self._hopeless_at = computed, now + self._config.trouble_s
        if moved != self._moved:
            self._moved, self._moved_at, self._quiet = moved, now, 0
        elif not any(alive.state in {"working", "waiting"} for alive in answers.values()):
            self._quiet += 1
        if self._quiet >= self._config.quiet_max:
            self._lost_something(answers, now)
        elif now - self._moved_at >= self._config.stuck_s:
            self._give_up(set(self.route.peers), f"nothing has moved for {self._config.stuck_s:g} s", now)
        else:
            self.deadline = now + self._patience_s

    def _lost_something(self, answers: dict[PeerId, Alive], now: float) -> None:
        """All are there, and none has anything to do: go on without the pair between which it stopped, if it shows."""
        given, tokens = self._given, len(self._tokens)
        gap = find_gap(self.route.peers, answers, epoch=self._epoch, given=given, tokens=tokens)
        if gap is not None:
            self._apart.note(gap.said, gap.missed, now)
            self._give_up(set(), str(gap), now)
            return
        again = self._trouble_since is not None and self.tally.attempts > 1
        self._give_up(set(self.route.peers) if again else set(), "something that was said got lost", now)

    # -- routes -------------------------------------------------------------------------------------------------------

    def _give_up(self, peers: set[PeerId], reason: str, now: float) -> None:
        """Leave this route, and these peers as long as there are others."""
        self._avoid |= peers
        self._trouble = reason.rstrip(".")
        self._effects.append(Paused(reason))
        if self._trouble_since is None:
            self._trouble_since = now
            self.tally.noticed.append(now - self._heard_at)
        self.route, self._answers, self._look_at = Route((), ()), None, now

    def _find(self, now: float) -> None:
        """Open the session along a new route, or look again in a moment."""
        if self.over:
            return
        if now >= self._hopeless_at:
            self._fail(Failed("link", self._diagnosis()))
            return
        apart = self._apart.pairs(now)
        found = self._choose(self._serving, self._avoid | self._doubted, self._holders, apart)
        if found is None and self._doubted:  # by some: others may reach them
            found = self._choose(self._serving, self._avoid, self._holders, apart)
        if found is None and self._last_word is not None:
            self._fail(self._last_word)
            return
        if found is None:
            self._wait_for_layers(now)
            return
        self._begin(found, now)

    def _wait_for_layers(self, now: float) -> None:
        """There is no route: say so, and look again later; once it is plain that there will be none, give up.

        A device that went may come back, so who had a route waits for the next one.
        """
        since = self._began if self._trouble_since is None else self._trouble_since
        waits_in_vain = self._lacking and (self._for_good or not self.tally.attempts)
        if waits_in_vain and now >= since + self._config.unserved_s:
            self._fail(Failed("link", f"{self._asked.name!r} cannot be answered from: {self._lacking}."))
            return
        if not self._trouble:
            self._trouble = self._unserved()
            self._effects.append(Paused(self._trouble + (f": {self._lacking}" if self._lacking else "")))
        self._relent()
        self._renew(now)

    def _unserved(self) -> str:
        layer, layers = reached(self._serving, self._asked.layers), self._asked.layers
        if layer == layers:
            return "there is no route through all layers"
        return f"nobody who is here serves layer {layer} of {layers} of {self._asked.name!r}"

    def _relent(self) -> None:
        """Let some be tried again after a pause: a pair if that may do, or else anybody, for who was stopped may go on.

        Pairs take turns, so that of several broken routes none is tried for ever while another is whole again.
        """
        self._doubted.clear()
        able = {run: [p for p in peers if p not in self._avoid] for run, peers in self._serving.items()}
        there = reached(able, self._asked.layers) == self._asked.layers
        if not there or not self._apart.forget_one({p for peers in able.values() for p in peers}):
            self._avoid.clear()

    def _renew(self, now: float) -> None:
        """Have those who hold a cache keep it while there is no route."""
        if now >= self.deadline:
            for peer in sorted(self._holders):
                self._send(peer, Probe(session=self.session, epoch=self._epoch))
        self.deadline = self._look_at = now + self._config.retry_pause_s

    def _begin(self, route: Route, now: float) -> None:
        for peer in sorted(self._holders - set(route.peers)):
            self._send(peer, Close(session=self.session, epoch=self._epoch))
        self._epoch += 1
        self._given = None
        self.tally.attempts += 1
        self.route, self._holders = route, set(route.peers)
        asked = self._asked
        opened = Open(
            session=asked.session,
            epoch=self._epoch,
            name=asked.name,
            version=asked.version,
            asker=self._me,
            route=route.peers,
            runs=route.runs,
            known=len(self._tokens),
            positions=asked.positions,
            blocks=self._blocks,
            stop_ids=tuple(sorted(asked.stop_ids)),
            sampling=asked.sampling,
        )
        self._send(route.peers[0], opened)
        self._wait(now)

    def _diagnosis(self) -> str:
        most = self._config.trouble_s
        if reached(self._serving, self._asked.layers) < self._asked.layers:
            lacking = self._unserved()
            more = f"; {self._trouble}." if self._trouble not in {"", lacking} else "."
            return f"No next token within {most:g} s: {lacking}{more}"
        return f"No next token within {most:g} s, in {self.tally.attempts} attempts; the last failed: {self._trouble}."

    # -- the end ------------------------------------------------------------------------------------------------------

    def _fail(self, failed: Failed) -> None:
        self._effects.append(failed)
        self._close()

    def _close(self) -> None:
        self.over = True
        for peer in sorted(self._holders):
            self._send(peer, Close(session=self.session, epoch=self._epoch))

    def _send(self, peer: PeerId, said: Said) -> None:
        self._effects.append(Send(peer, said))
