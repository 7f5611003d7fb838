"""What a teacher gives a small model on real data, with labels and without, alone and among nodes.

Run ``python -m tests.bench.distil`` from the root of the project, or parts of it: mnist, few, rounded, spoken, stories
(JSON=FILE writes the figures as flat JSON; SEEDS=N changes how many students each figure is the mean of).

`mnist`: 30,000 images, an MLP of 800 teaches one of 16, beside the same one with labels alone, as many steps.
`few`: the same student has 100 labels, alone or with what the teacher says of all images, which have none.
`rounded`: a student of 16 whose weights have 4 bits: rounded after training, and trained so (`quantise_aware`), as many
steps. `spoken`: four speakers' nodes, really four, learn from a teacher that the mesh serves, without a label, beside
the same task with all labels; the teacher was trained on half of the recordings, the nodes have the other half, and the
worst node on the official test counts. `stories`: the TinyStories model of 5 layers teaches one of 3 of its layers on
256 texts that it wrote itself; perplexity on five other stories, 1,804 tokens.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
import trio
from lepton.node.compression import Fit, distil, quantise_aware
from lepton.node.compression.decoder import read_decoder
from lepton.node.compression.fitting import fit
from lepton.node.compression.straight import Straight
from lepton.node.compression.students import shorter
from lepton.node.compression.texts import written_by
from lepton.node.language.tokenizer import LanguageTokenizer, read_files
from lepton.node.learning.data import Dataset, unlabelled
from lepton.node.learning.losses import labels_loss
from lepton.node.learning.task import task_from
from lepton.node.models import Chain, build
from lepton.node.shapes import ModelSpec, layer_sizes_bytes
from torch import Tensor, nn

from ..node.together.fakes import running
from .compress import loaded
from .language import STORIES, say
from .silos import DATA, speech

SEEDS: Final = int(os.environ.get("SEEDS", "3"))
STEPS: Final = 2000
NEW: Final = Fit(steps=STEPS, rate=1e-2)
FEW: Final = 100
WRITTEN: Final = 256
SPEAKERS: Final = "abcd"

Images = tuple[Tensor, Tensor, Tensor, Tensor]


def by_labels(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return labels_loss("cross_entropy", module(batch[0]), batch[1])


def images() -> Images:
    with np.load(DATA / "mnist" / "mnist_30k.npz") as file:
        x, y, x_test, y_test = (torch.from_numpy(file[n]) for n in ("x_train", "y_train", "x_test", "y_test"))
    return x.flatten(1) / 255, y.long(), x_test.flatten(1) / 255, y_test.long()


def right(module: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.inference_mode():
        return float((module.eval()(x).argmax(1) == y).float().mean())


def mlp(hidden: int, seed: int = 0) -> Chain:
    return build(
        ModelSpec(architecture="mlp", inputs=(784,), classes=10, hidden=hidden, hidden_activation="relu", seed=seed)
    )


def large(x: Tensor, y: Tensor) -> Chain:
    module = mlp(800)
    fit(module, (x, y), by_labels, Fit(steps=STEPS, rate=2e-3, batch_size=128))
    return module


def mean(measure: Callable[[int], float]) -> float:
    return float(np.mean([measure(seed) for seed in range(SEEDS)]))


def mnist() -> dict[str, float]:
    x, y, x_test, y_test = images()
    teacher = large(x, y)

    def labels(seed: int) -> float:
        module = mlp(16, seed)
        fit(module, (x, y), by_labels, NEW)
        return right(module, x_test, y_test)

    def taught(seed: int, weight: float = 0.0) -> float:
        answers = distil(
            teacher, mlp(16, seed), x, labels=y, labels_weight=weight, fit=NEW
        )  # fmt: skip
        return right(answers.module, x_test, y_test)

    return {
        "mnist_teacher": right(teacher, x_test, y_test),
        "mnist_labels": mean(labels),
        "mnist_taught": mean(taught),
        "mnist_taught_and_labels": mean(lambda seed: taught(seed, 0.1)),
        "mnist_size_ratio": sum(layer_sizes_bytes(teacher.spec)) / sum(layer_sizes_bytes(mlp(16).spec)),
    }


def few() -> dict[str, float]:
    x, y, x_test, y_test = images()
    teacher = large(x, y)
    some = torch.full_like(y, -1)
    some[:FEW] = y[:FEW]

    def labels(seed: int) -> float:
        module = mlp(16, seed)
        fit(module, (x[:FEW], y[:FEW]), by_labels, NEW)
        return right(module, x_test, y_test)

    def taught(seed: int) -> float:
        found = distil(teacher, mlp(16, seed), x, labels=some, labels_weight=0.1, fit=NEW)
        return right(found.module, x_test, y_test)

    return {"few_labels": mean(labels), "few_labels_and_taught": mean(taught)}


def rounded() -> dict[str, float]:
    x, y, x_test, y_test = images()
    totals = np.zeros(3)
    for seed in range(SEEDS):
        module = mlp(16, seed)
        fit(module, (x, y), by_labels, NEW)
        aware = quantise_aware(module, (x, y), by_labels, 4, Fit(steps=STEPS // 2, rate=1e-3))
        fit(module, (x, y), by_labels, Fit(steps=STEPS // 2, rate=1e-3))
        floats = right(module, x_test, y_test)
        Straight(module, 4).settle()
        totals += floats, right(module, x_test, y_test), right(aware.module, x_test, y_test)
    names = ("rounded_float32", "rounded_after_int4", "rounded_aware_int4")
    return dict(zip(names, (totals / SEEDS).tolist(), strict=True))


def spoken() -> dict[str, float]:
    """Four nodes in one process; the teacher lies on whichever of them the mesh puts it."""
    silos = speech(seed=0).silos
    halves = [_halves(silo) for silo in silos]
    first = [half for half, _ in halves]
    x = torch.from_numpy(np.concatenate([half.x for half in first]))
    y = torch.from_numpy(np.concatenate([half.y for half in first]).astype(np.int64))
    spec = ModelSpec(architecture="cnn", inputs=tuple(x.shape[1:]), classes=10, hidden=64)
    teacher = build(spec)
    fit(teacher, (x, y), by_labels, Fit(steps=400, rate=3e-3))
    figures = {"spoken_teacher": right(teacher, *_test(silos[0]))}
    for name, teaches in (("labels", False), ("taught", True)):
        own = [half if not teaches else unlabelled(half.x, 10, half.x_test, half.y_test) for _, half in halves]
        with tempfile.TemporaryDirectory() as folder:
            figures[f"spoken_{name}"] = trio.run(_learned, Path(folder), own, teacher if teaches else None)
        say(f"spoken, {name}: {figures[f'spoken_{name}']:.4f}")
    return figures


async def _learned(folder: Path, silos: Sequence[Dataset], teacher: Chain | None) -> float:
    data = {name: {"spoken": silo} for name, silo in zip(SPEAKERS, silos, strict=True)}
    said = {
        "name": "small", "data": "spoken", "model": {"architecture": "cnn", "hidden": 16, "classes": 10},
        "budget": {"rounds": 30}, "train": {"clip_norm": 1.0}, "averaging": {"members": len(SPEAKERS)},
        **({"distil": {"teacher": "large"}} if teacher else {}),
    }  # fmt: skip
    async with running(folder, *SPEAKERS, data=data, memory="600kB") as world:
        a = world.nodes["a"]
        if teacher is not None:
            a.weights.publish("large", teacher.spec, teacher, version=1, copies=1)
            await a.wait_served("large")
        return (await a.train(task_from(said, "the bench's task"))).accuracy_worst


def _halves(silo: Dataset) -> tuple[Dataset, Dataset]:
    order = np.random.default_rng(0).permutation(len(silo.y))
    parts = np.array_split(order, 2)
    one, other = (
        Dataset(x=silo.x[part], y=silo.y[part], classes=10, x_test=silo.x_test, y_test=silo.y_test) for part in parts
    )
    return one, other


def _test(silo: Dataset) -> tuple[Tensor, Tensor]:
    assert silo.x_test is not None
    assert silo.y_test is not None
    return torch.from_numpy(silo.x_test), torch.from_numpy(silo.y_test.astype(np.int64))


def stories() -> dict[str, float]:
    folder = STORIES / "hf"
    tokenizer = LanguageTokenizer(read_files(folder))
    found = (STORIES / "tinystories_sample.txt").read_text().split("<|endoftext|>")
    tests = [tokenizer.encode(one.strip()) for one in found]
    tests = [tokens for tokens in tests if len(tokens) > 1]
    teacher = read_decoder(folder)
    texts = written_by(loaded(folder, "float32"), teacher.config.bos, seed=0, texts=WRITTEN)
    figures = {"stories_ppl_teacher": perplexity(teacher, tests)}
    said = Fit(steps=200, batch_size=16, rate=3e-3)
    for layers in (3,):
        begin = time.process_time()
        student = shorter(teacher, layers=layers)
        figures[f"stories_ppl_{layers}_layers_untaught"] = perplexity(student, tests)
        by_logits = distil(teacher, student, texts, temperature=1.0, fit=said)
        figures[f"stories_ppl_{layers}_layers_logits"] = perplexity(by_logits.module, tests)
        say(f"{layers} layers by logits: {time.process_time() - begin:.0f} s of CPU")
        fit(student, (texts[:, :-1], texts[:, 1:]), by_labels, said)  # what is written, without logits
        figures[f"stories_ppl_{layers}_layers_texts"] = perplexity(student, tests)
        parameters = [sum(p.numel() for p in module.parameters()) for module in (teacher, student)]
        figures[f"stories_size_ratio_{layers}_layers"] = parameters[0] / parameters[1]
    return figures


def perplexity(decoder: nn.Module, texts: Sequence[Sequence[int]]) -> float:
    total, count = 0.0, 0
    with torch.inference_mode():
        for text in texts:
            tokens = torch.tensor([text])
            total += float(by_labels(decoder.eval(), (tokens[:, :-1], tokens[:, 1:]))) * (len(text) - 1)
            count += len(text) - 1
    return float(np.exp(total / count))


def main(names: list[str]) -> None:
    parts = {"mnist": mnist, "few": few, "rounded": rounded, "spoken": spoken, "stories": stories}
    figures: dict[str, float] = {}
    if not DATA.is_dir():
        say("left out: the data are not in ../shared/data")
        return
    for name in names or parts:
        figures |= parts[name]()
    for key, value in figures.items():
        say(f"{key:36} {value:10.4f}")
    if path := os.environ.get("JSON"):
        Path(path).write_text(json.dumps({key: round(value, 4) for key, value in figures.items()}, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
