"""Sharded text: what hops cost, what company brings, what a death costs. Real processes on loopback, one thread each.

Run ``make bench-shard`` or ``python -m tests.bench.shard`` from the root of the project (JSON=FILE writes the figures,
ROUNDS changes the effort). A Llama of 125 M parameters with random weights, float32, is served three times by the same
processes: whole by one, in two stages, in three (whose middle one has a replica). All that is compared is measured in
turns; of a few rounds the best counts, for other work on the machine only ever slows.
"""

import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
import numpy as np
import torch
from lepton.mesh.tensors import Array
from lepton.node.deployments import Activations
from lepton.node.generation.activations import position_bytes, read, write
from lepton.node.generation.engine import Piece
from lepton.node.language.config import parse_config
from lepton.node.language.engine import LanguageEngine, load_engine
from lepton.node.language.folder import read_config, read_layers
from lepton.node.language.layout import NORM, layer_shapes, layers, sizes
from lepton.node.language.tokenizer import LanguageTokenizer, read_files
from safetensors.torch import save_file

from . import place
from .language import STORIES, config_of, generate, transformers_model
from .members import Fleet, Member, enrol
from .stages import Setting

ROUNDS: Final = int(os.environ.get("ROUNDS", "5"))
COUNT: Final = 64  # tokens of a round
KILLED_COUNT, HALFWAY = 120, 40
PROMPT: Final = list(range(3, 35))
MODEL: Final = "125 M"

Figures = dict[str, float]


def write_model(folder: Path) -> None:
    config = parse_config(json.dumps(config_of(MODEL)))
    torch.manual_seed(0)
    tensors = {
        name: torch.randn(shape) * 0.02
        for at in range(layers(config) - 1)
        for name, shape in layer_shapes(config, at).items()
    }
    (folder / "config.json").write_text(json.dumps(config_of(MODEL)))
    save_file(tensors | {NORM: torch.ones(config.width)}, folder / "model.safetensors")


def cuts(count: int) -> list[tuple[int, int]]:
    """Split the layers into stages of about equal weights."""
    weights = sizes(parse_config(json.dumps(config_of(MODEL))), "float32").weights_bytes
    units = (0, *weights[1:])  # a step reads one row of the embedding
    runs, first, reached = list[tuple[int, int]](), 0, 0
    for index, unit in enumerate(units):
        reached += unit
        if len(runs) < count - 1 and reached >= sum(units) * (len(runs) + 1) / count:
            runs.append((first, index + 1))
            first = index + 1
    return [*runs, (first, len(units))]


class Stages:
    """The processes, and what can be asked of them. The first one asks."""

    def __init__(self, fleet: Fleet, homes: list[Path], served: dict[str, dict[str, tuple[int, int]]]) -> None:
        self._wanted = {name: len(runs) for name, runs in served.items()}
        self.fleet = fleet
        self.homes = homes
        self._count = 0

    @property
    def asker(self) -> Member:
        return self.fleet.members[0]

    def whole(self) -> bool:
        """Whether all stages are loaded and here, as the asker sees it."""
        return bool(self.asker.heard.get("served", {}).get("counts") == self._wanted)

    def until(self, condition: Any, what: str) -> None:
        if not self.fleet.until(condition, 300.0):
            logs = "".join((home / "bench.log").read_text()[-2000:] for home in self.homes)
            message = f"{what}\n{logs}"
            raise RuntimeError(message)

    def begin(self, name: str, **word: Any) -> str:
        self._count += 1
        tag = str(self._count)
        asked = {"do": "generate", "name": name, "tag": tag, "prompt": PROMPT, "count": COUNT} | word
        self.fleet.tell(self.asker, json.dumps(asked))
        return tag

    def end(self, tag: str) -> dict[str, Any]:
        self.until(lambda: self.asker.heard.get("generated", {}).get("tag") == tag, "no answer came")
        said = self.asker.heard["generated"]
        if failed := [answer["failed"] for answer in said["answers"] if answer["failed"]]:
            raise RuntimeError(failed[0])
        return said

    def counts(self, member: Member) -> dict[str, Any]:
        member.heard.pop("counts", None)
        self.fleet.tell(member, '{"do": "counts"}')
        self.until(lambda: "counts" in member.heard, "no counts came")
        return member.heard["counts"]


def token_ms(answer: dict[str, Any]) -> float:
    return 1e3 * statistics.median(after - before for before, after in pairwise(map(float, answer["times"])))


def pace(said: dict[str, Any]) -> float:
    """Tokens a second of all sessions, prompts included."""
    return float(sum(len(answer["ids"]) for answer in said["answers"]) / said["took_s"])


def steps(stages: Stages) -> Figures:
    """One session and eight, on one process, two and three stages, and transformers, in turns."""
    reference = transformers_model(config_of(MODEL))
    alone: dict[str, list[float]] = {"one": [], "two": [], "three": []}
    first: dict[str, list[float]] = {name: [] for name in alone}
    eight: dict[str, list[float]] = {"one": [], "three": []}
    single: dict[str, list[float]] = {"one": [], "three": []}
    theirs = []
    right: list[int] | None = None
    for _ in range(ROUNDS + 1):
        for name, found_ms in alone.items():
            said = stages.end(stages.begin(name))
            (answer,) = said["answers"]
            right = right or answer["ids"]
            if answer["ids"] != right:
                message = f"the text of {name!r} is another"
                raise RuntimeError(message)
            found_ms.append(token_ms(answer))
            first[name].append(answer["first_s"] * 1e3)
            if name in single:
                single[name].append(pace(said))
        for name, found in eight.items():
            found.append(pace(stages.end(stages.begin(name, sessions=8))))
        theirs.append(generate(reference))
    ms, begun = ({name: min(values) for name, values in found.items()} for found in (alone, first))
    most, least = ({name: max(values) for name, values in found.items()} for found in (eight, single))
    say(f"transformers, one process, float32:   {max(theirs):7.1f} tokens/s")
    for name, what in (("one", "our code, one process"), ("two", "two stages"), ("three", "three stages")):
        together = f", 8 sessions {most[name]:7.1f} tokens/s" if name in most else ""
        say(f"{what:24} {1e3 / ms[name]:7.1f} tokens/s, first token {begun[name]:6.1f} ms{together}")
    return {
        "hop_ms_2": ms["two"] - ms["one"],
        "hop_ms_3": ms["three"] - ms["one"],
        "decode_vs_transformers": 1e3 / ms["one"] / max(theirs),
        "sessions8_vs_1_on_1": most["one"] / least["one"],
        "sessions8_vs_1_on_3": most["three"] / least["three"],
        "sessions8_on_3_vs_on_1": most["three"] / most["one"],
        "first_token_ms_1": begun["one"],
        "first_token_ms_3": begun["three"],
    }


def traffic(stages: Stages) -> Figures:
    """What goes over the wire for a token."""
    before = [stages.counts(member)["sent_bytes"] for member in stages.fleet.members]
    stages.end(stages.begin("two", count=COUNT * 2))
    after = [stages.counts(member)["sent_bytes"] for member in stages.fleet.members]
    sent = sum(after) - sum(before) - len(PROMPT) * 768 * 4
    say(f"two stages, bytes a token, both ways: {sent / COUNT / 2:7.0f}")
    return {"bytes_per_token_2": sent / COUNT / 2}


def death(stages: Stages, what: signal.Signals, key: str) -> Figures:
    """The middle one of three stages is killed, or stopped, in mid-answer."""
    right = stages.end(stages.begin("three", count=KILLED_COUNT))["answers"][0]["ids"]
    tag = stages.begin("three", count=KILLED_COUNT, halfway=HALFWAY)
    stages.until(lambda: stages.asker.heard.get("halfway", {}).get("tag") == tag, "it never began")
    through = stages.asker.heard["halfway"]["route"][1]
    middle = next(one for one in stages.fleet.members if one.id == through)
    hit_at = stages.fleet.signal(middle, what)
    (answer,) = stages.end(tag)["answers"]
    wrong = sum(a != b for a, b in zip(answer["ids"], right, strict=True))
    last = max(at for at in answer["times"] if at <= hit_at)
    noticed_s, pause_s = max(0.0, last + sum(answer["noticed"]) - hit_at), sum(answer["pauses"])
    say(f"a stage gets {what.name}: noticed after {noticed_s:.3f} s, a token {pause_s:.3f} s later, {wrong} wrong")
    if what is signal.SIGSTOP:
        stages.fleet.signal(middle, signal.SIGCONT)
        stages.until(stages.whole, "it did not come back")
    return {f"{key}_detection_s": noticed_s, f"{key}_pause_s": pause_s, f"{key}_tokens_wrong": wrong}


def memory(folder: Path) -> Figures:
    """Peak memory of each stage of three beside base, its share of the weights and its caches (Linux)."""
    ratios = []
    for first, end in cuts(3):
        command = (sys.executable, "-m", "tests.bench.language", "stage", str(folder), str(first), str(end), "float32")
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        base, loading, running, share, caches = (int(figure) / 1e6 for figure in ran.stdout.split())
        ratios.append(max(loading / (base + share), running / (base + share + caches)))
        parts = f"base {base:.1f} MB, share {share:.1f} MB, caches {caches:.1f} MB"
        say(f"layers {first:2}:{end:2} peak {max(loading, running):6.1f} MB: {ratios[-1]:.2f} x the sum of {parts}")
    return {"stage_memory_vs_share": max(ratios)}


def rounding() -> Figures:
    """Perplexity of the trained model in three stages, by how activations travel between them."""
    if not (STORIES / "hf").exists():
        return {}
    folder = STORIES / "hf"
    config, tokenizer = read_config(folder), LanguageTokenizer(read_files(folder))
    texts = (STORIES / "tinystories_sample.txt").read_text().split("<|endoftext|>")
    stories = [tokenizer.encode(text.strip()) for text in texts]
    engines = [load_engine(config, *run, read_layers(folder, config)) for run in ((0, 3), (3, 5), (5, 7))]
    figures = {}
    for how in get_args(Activations):
        total = sum(_loss(engines, tokens, how) for tokens in stories)
        figures[f"perplexity_{how}"] = math.exp(total / sum(len(tokens) - 1 for tokens in stories))
        size = position_bytes(config.width, how)
        say(f"activations as {how:8}: {size:4} bytes a position, perplexity {figures[f'perplexity_{how}']:.4f}")
    return figures


def _loss(engines: list[LanguageEngine], tokens: list[int], how: Activations) -> float:
    total, caches = 0.0, [engine.new_cache() for engine in engines]
    for token, after in pairwise(tokens):
        x: Array = np.array([token], np.int32)
        for engine, cache in zip(engines, caches, strict=True):
            (y,) = engine.run([Piece(cache=cache, x=x, wants_logits=engine is engines[-1])])
            assert y is not None
            x = y if engine is engines[-1] else read(write(y, how), engine.width, how)
        scores = x.astype(np.float64)
        total += float(scores.max() + np.log(np.exp(scores - scores.max()).sum()) - scores[after])
    for cache in caches:
        cache.close()
    return total


def measured(folder: Path) -> Figures:
    write_model(folder)
    homes = enrol(folder / "homes", 4)
    two, three = cuts(2), cuts(3)
    count = three[-1][1]
    served = {
        "one": {"0": (0, count)},
        "two": {"0": two[0], "1": two[1]},
        "three": {"0": three[0], "1": three[1], "2": three[2], "3": three[1]},
    }
    setting = Setting(model=str(folder), layers=count, stages=served)
    (folder / "homes" / "shard.json").write_bytes(msgspec.json.encode(setting))
    with Fleet([Member(home, module="tests.bench.stages", interfaces=()) for home in homes]) as fleet:
        for member in fleet.members:
            fleet.start(member)
        stages = Stages(fleet, homes, served)
        stages.until(stages.whole, "not all is loaded")
        time.sleep(2.0)  # what starting left to do
        figures = steps(stages) | traffic(stages)
        figures |= death(stages, signal.SIGSTOP, "stop") | death(stages, signal.SIGKILL, "kill")
    return figures | memory(folder)


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - a bench prints


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = measured(Path(folder)) | rounding() | place.against_brute_force() | place.timed()
    figures = {key: round(value, 4) for key, value in figures.items()}
    say(json.dumps(figures, indent=1))
    if path := os.environ.get("JSON"):
        Path(path).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
