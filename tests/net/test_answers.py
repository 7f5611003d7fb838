"""Text from a model that is split over devices, while the network between them falls apart: every token is right."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from lepton.node.generation.engine import Piece
from lepton.node.language.engine import load_engine
from lepton.node.language.folder import read_config, read_layers
from lepton.node.language.tokenizer import LanguageTokenizer, read_files

from ..node.processes.fakes import Process
from .lan import Lan
from .nodes import Member, mesh_of, together, until

MODEL = Path(__file__).parents[3] / "shared/data/models/stories260K/hf"
ONCE, COUNT = "Once upon a time", 200
BEGUN = 20  # pieces of text: by then it shows which way the session goes, and most of the answer is to come
HOP_S = 0.002  # on every line, so that an answer takes seconds in which something can happen
PART = "1.5MB"  # of 2.4 MB of weights and caches

pytestmark = [
    pytest.mark.net,
    pytest.mark.slow,  # five nodes that load torch take twenty seconds to come up; the machines alone: test_apart.py
    pytest.mark.skipif(not MODEL.exists(), reason="the trained model of ../shared/data is not here"),
]


class House:
    """A desk that asks, and four devices that have half of the model each: two copies."""

    def __init__(self, air: Lan, members: list[Member]) -> None:
        self.air = air
        self.members = members
        self.desk = members[0]

    @property
    def names(self) -> set[str]:
        return {member.name for member in self.members}

    def halves(self) -> list[set[str]]:
        """Who has which part of the layers, in their order, as the desk sees it."""
        status = self.desk.status()
        names = {peer["id"]: peer["device"] for peer in status["peers"]}
        return [
            {names.get(peer, peer) for peer in stage["loaded"]}
            for one in status["deployments"]
            for stage in one["stages"]
        ]

    def is_whole(self) -> bool:
        return [len(half) for half in self.halves()] == [2, 2] and together(self.members)

    def cut(self, source: str, to: str) -> None:
        """Let nothing more come from one device to another."""
        self.air.change(source, to, cut=True)


class Answer:
    """A text that comes, and through whom it comes: first and second are the stages of its route."""

    def __init__(self, house: House) -> None:
        firsts, seconds = house.halves()
        pairs = [(one, other) for one in firsts for other in seconds]
        before = {pair: house.air.carried(*pair) for pair in pairs}
        self._process: Process = house.desk.begin("generate", "tales", ONCE, "--max-tokens", str(COUNT), "--json")
        try:
            self._process.until(lambda: self._process.out.count("\n") > BEGUN)
        except BaseException:
            self._process.end()
            raise
        self.first, self.second = max(pairs, key=lambda pair: house.air.carried(*pair) - before[pair])
        self.text = ""
        self.pauses: list[str] = []
        self.tokens_s = 0.0
        self.longest_s = 0.0  # without another piece of text
        self._count, self._at = 0, time.monotonic()

    def _is_over(self) -> bool:
        count, now = self._process.out.count('"pause": ""'), time.monotonic()
        self.longest_s = max(self.longest_s, now - self._at)
        if count != self._count:
            self._count, self._at = count, now
        return '"seconds"' in self._process.out

    def read(self) -> None:
        """Wait for the rest."""
        try:
            self._process.until(self._is_over)
            assert self._process.ended() == 0, self._process.err
        finally:
            self._process.end()
        *pieces, result = map(json.loads, self._process.out.splitlines())
        assert (result["finish"], result["tokens"]) == ("length", COUNT)
        self.text = "".join(piece["text"] for piece in pieces)
        self.pauses = [piece["pause"] for piece in pieces if piece["pause"]]
        self.tokens_s = result["seconds"]


@pytest.fixture(scope="module")
def air(possible: None, seed: int) -> Iterator[Lan]:
    with Lan(seed) as lan:
        yield lan


@pytest.fixture(scope="module")
def house(air: Lan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    names = ["desk", "attic", "cellar", "kitchen", "study"]
    own = {name: ("--memory", PART if name != "desk" else "1kB") for name in names}
    terms = ("--name", "tales", "--replicas", "2", "--sessions", "2", "--context", "512", "--precision", "float32")
    with mesh_of(air, tmp_path_factory.mktemp("house"), names, own=own, ipv6=False) as members:
        until(lambda: together(members), *members)
        house = House(air, members)
        house.desk.said("serve", str(MODEL), *terms)
        until(house.is_whole, *members)
        yield house


@pytest.fixture(autouse=True)
def calm(air: Lan, house: House) -> Iterator[None]:
    """Every test begins with all of them together, and two copies of the model loaded."""
    air.heal()
    air.change_all(delay_s=HOP_S, loss=0.0)
    until(house.is_whole, *house.members)
    yield
    air.heal()


@pytest.fixture(scope="module")
def right() -> str:
    """What one process says, greedily."""
    config = read_config(MODEL)
    engine = load_engine(config, 0, config.blocks + 2, read_layers(MODEL, config))
    tokenizer = LanguageTokenizer(read_files(MODEL), config.eos)
    tokens, cache = tokenizer.encode(ONCE), engine.new_cache()
    for _ in range(COUNT):
        (logits,) = engine.run([Piece(cache=cache, x=np.array(tokens[cache.length :], np.int32), wants_logits=True)])
        assert logits is not None
        tokens.append(int(np.argmax(logits)))
    return tokenizer.decode(tokens)[len(ONCE) :]


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Callable[[Answer], None]:
    """Show how long an answer took: a figure for people, on which no test depends."""

    def show(answer: Answer) -> None:
        with capsys.disabled():
            why = "; ".join(answer.pauses) or "without a pause"
            took = f"{COUNT} tokens in {answer.tokens_s:.1f} s, {answer.longest_s:.1f} s at most for one"
            print(f"\n{request.node.name}: {took} ({why})")  # noqa: T201

    return show


Tell = Callable[[Answer], None]


def test_an_answer_goes_on_when_its_two_stages_do_not_reach_each_other(house: House, right: str, tell: Tell) -> None:
    answer = Answer(house)
    house.cut(answer.first, answer.second)
    house.cut(answer.second, answer.first)
    answer.read()
    tell(answer)
    assert answer.text == right
    assert answer.pauses


@pytest.mark.parametrize("way", ["there", "back"])
def test_an_answer_goes_on_when_one_stage_does_not_hear_the_other(
    house: House, right: str, tell: Tell, way: str
) -> None:
    answer = Answer(house)
    house.cut(*((answer.first, answer.second) if way == "there" else (answer.second, answer.first)))
    answer.read()
    tell(answer)
    assert answer.text == right
    assert answer.pauses


def test_a_stage_that_only_the_asker_reaches_is_left(house: House, right: str, tell: Tell) -> None:
    answer = Answer(house)
    house.air.split(house.names - {answer.first}, {answer.first, "desk"})
    answer.read()
    tell(answer)
    assert answer.text == right
    assert answer.pauses


def test_an_answer_goes_on_without_its_first_stage_which_comes_back(house: House, right: str, tell: Tell) -> None:
    answer = Answer(house)
    house.air.split(house.names - {answer.first}, {answer.first})
    answer.read()
    tell(answer)
    assert answer.text == right
    assert answer.pauses
    after = Answer(house)
    house.air.heal()
    after.read()
    assert after.text == right
    until(house.is_whole, *house.members)
    last = Answer(house)
    last.read()
    assert last.text == right


def test_an_answer_over_bad_radio_is_right(house: House, right: str, tell: Tell) -> None:
    house.air.change_all(delay_s=0.03, loss=0.05)
    lost = house.air.counted["lost"]
    answer = Answer(house)
    answer.read()
    tell(answer)
    assert answer.text == right
    assert house.air.counted["lost"] > lost + 10
