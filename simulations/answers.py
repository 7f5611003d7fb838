"""What sessions were asked for and what they gave: each token is checked as it comes against what an engine alone says.

Invariants: a session's tokens are exactly those, in order; it ends once, finished or with a reason; once all have
ended, no device holds anything of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..mesh.identity import PeerId
from ..node.generation.asker import Tally
from ..node.generation.messages import BLOCK
from ..node.generation.sampling import Sampling
from .generating import Generating, Question
from .language import Language
from .toy import POSITION_BYTES, VOCABULARY, alone
from .world import Violation, World

_ALIKE = 2 * BLOCK + 2  # tokens with which most prompts begin: whole blocks are computed once
_WARM = 0.5  # of sessions are drawn at a temperature
_STOPS = 0.2  # of sessions have a token that ends them


@dataclass(slots=True)
class Answer:
    """One session, from its asking to its end."""

    asker: PeerId
    asked_s: float
    right: tuple[int, ...]
    finish: str
    prompt: int  # tokens of it
    tokens: int = 0
    outcomes: list[str] = field(default_factory=list)  # '' when it was finished, else the reason
    ended_s: float = 0.0
    tally: Tally | None = None
    abandoned: bool = False  # its asker crashed, or was thrown out

    @property
    def answered(self) -> bool:
        return self.outcomes == [""]

    @property
    def over(self) -> bool:
        return bool(self.outcomes) or self.abandoned


class Answers:
    """All sessions that devices took on."""

    def __init__(self, world: World, language: Language) -> None:
        self.all: dict[int, Answer] = {}
        self._world, self._language = world, language
        self._dice = world.dice("questions")
        self._begin = [self._dice.randrange(VOCABULARY) for _ in range(_ALIKE)]

    def ask(self, asker: PeerId, generating: Generating) -> None:
        """Let a device begin a session; one that knows no model yet takes none on."""
        question = self._question(len(self.all))
        if not generating.asks():
            return
        layers = self._language.layers
        right = tuple(alone(question.prompt, question.sampling, layers=layers, stop_ids=question.stop_ids))
        finish = "stop" if right[-1] in question.stop_ids else "length"
        self.all[question.number] = Answer(asker, self._world.now, right, finish, len(question.prompt))
        generating.ask(question)

    def _question(self, number: int) -> Question:
        dice = self._dice
        alike = dice.randrange(min(_ALIKE, self._language.prompt_tokens))
        rest = dice.randint(1, max(1, min(self._language.prompt_tokens - alike, 30)))
        warm = dice.random() < _WARM
        sampling = Sampling(
            temperature=0.8 if warm else 0.0,
            repetition_penalty=1.3 if warm else 1.0,
            seed=dice.randrange(2**32),
            tokens_max=dice.randint(1, self._language.tokens),
        )
        stop_ids = frozenset({dice.randrange(VOCABULARY)} if dice.random() < _STOPS else ())
        prompt = (*self._begin[:alike], *(dice.randrange(VOCABULARY) for _ in range(rest)))
        return Question(number=number, prompt=prompt, sampling=sampling, stop_ids=stop_ids)

    # -- what comes of it ---------------------------------------------------------------------------------------------

    def took(self, number: int, position: int, token: int) -> None:
        """Note a token. Raises Violation when it is not the one that comes next."""
        answer = self.all[number]
        place = answer.tokens
        if position != answer.prompt + place:
            raise Violation(f"session {number} gave token {position}; next is {answer.prompt + place}")
        if place >= len(answer.right) or token != answer.right[place]:
            right = answer.right[place] if place < len(answer.right) else "none"
            raise Violation(f"token {place} of session {number} is {token}; right is {right}")
        answer.tokens += 1

    def paused(self, number: int, reason: str) -> None:
        self._tell(number, f"pauses: {self._world.in_words(reason)}")

    def finished(self, number: int, finish: str, tally: Tally) -> None:
        """Note an end. Raises Violation when tokens are missing, or it ended for another reason than it says."""
        answer = self.all[number]
        if (answer.tokens, finish) != (len(answer.right), answer.finish):
            right = f"{len(answer.right)} and {answer.finish}"
            raise Violation(f"session {number} ended with {answer.tokens} tokens and {finish}; right is {right}")
        answer.tally = tally
        self._end(number, "")
        self._tell(number, f"gave {answer.tokens} tokens in {answer.ended_s - answer.asked_s:.3f} s")

    def failed(self, number: int, reason: str) -> None:
        """Note a failure. Raises Violation when no reason is given."""
        if not reason:
            raise Violation(f"session {number} failed without a reason")
        self._end(number, reason)
        self._tell(number, f"failed: {self._world.in_words(reason)}")

    def abandon(self, asker: PeerId) -> None:
        """Note that an asker is dead or thrown out, with all that it waited for."""
        for answer in self.all.values():
            answer.abandoned |= answer.asker == asker and not answer.outcomes

    def _end(self, number: int, outcome: str) -> None:
        answer = self.all[number]
        answer.outcomes.append(outcome)
        answer.ended_s = self._world.now
        if len(answer.outcomes) > 1:
            raise Violation(f"session {number} ended {len(answer.outcomes)} times")

    def _tell(self, number: int, what: str) -> None:
        self._world.tell(self._world.called(self.all[number].asker), f"session {number} {what}")

    # -- at the end ---------------------------------------------------------------------------------------------------

    def check_end(self) -> None:
        """Raises Violation unless every session ended exactly once, and few enough failed."""
        failed, most = [], self._language.failed_max
        for number, answer in self.all.items():
            if not answer.over:
                who = self._world.called(answer.asker)
                raise Violation(f"session {number} of {who}, asked at {answer.asked_s:.3f} s, never ended")
            failed += [f"session {number}: {why}" for why in answer.outcomes if why and not answer.abandoned]
        if len(failed) > most:
            raise Violation(f"{len(failed)} sessions failed, at most {most} may; {self._world.in_words(failed[0])}")


def check_given_back(devices: Iterable[tuple[str, Generating]]) -> None:
    """Raises Violation unless all stages have given back what sessions took; but for prompts kept for others."""
    for name, generating in devices:
        if generating.asking:
            raise Violation(f"{name} still asks in {generating.asking} sessions at the end")
        for loaded in generating.host.loaded:
            stage, where = loaded.stage, f"the stage of layers {loaded.run[0]} to {loaded.run[1] - 1} of {name}"
            if stage.sessions or stage.waiting:
                raise Violation(f"{where} holds {stage.sessions} sessions at the end; {stage.waiting} wait")
            if loaded.engine.open != loaded.worker.caches:
                raise Violation(f"{where} has {loaded.engine.open} caches, of which it knows {loaded.worker.caches}")
            if stage.promised_bytes != loaded.worker.cache_bytes:
                kept = f"has promised {stage.promised_bytes} B, and caches take {loaded.worker.cache_bytes} B"
                raise Violation(f"{where} {kept} at the end")


def check_promises(devices: Iterable[tuple[str, Generating]]) -> None:
    """Raises Violation when a stage has promised more than it has."""
    for name, generating in devices:
        for loaded in generating.host.loaded:
            record = generating.view.deployments().get(loaded.name)
            if record is None or record.version != loaded.version:
                continue
            pages = -(-record.positions // BLOCK) * BLOCK
            most = record.sessions * pages * POSITION_BYTES
            if loaded.stage.promised_bytes > most:
                raise Violation(f"{name} has promised {loaded.stage.promised_bytes} B of {most} B for caches")
