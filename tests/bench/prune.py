"""What pruning costs and gains on real weights: perplexity, decisions, accuracy, bytes on disk, time.

Run ``python -m tests.bench.prune`` from the root of the project, or parts of it: stories, resnet, digits (JSON=FILE
writes the figures as flat JSON). The TinyStories model learns from texts that it writes itself, seed 0, and is measured
on its five sample stories. Of the ResNet-20 no images are among the data here: it learns to answer as before on pieces
of one photograph, and is measured in how many of 228 pieces of another it decides as before, which is another thing
than accuracy. The digits' classifier is that of the demo, with labels. Bytes are those of `model.safetensors` as `save`
writes it, times the best of several turns on one thread.
"""

import json
import math
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from lepton.node.compression import Compressed, Fit, prune, prune_folder, quantise, save
from lepton.node.compression.decoder import read_decoder
from lepton.node.compression.measured import perplexity, tokens_per_s
from lepton.node.compression.pruning.folder import like
from lepton.node.compression.texts import written_by
from lepton.node.language.engine import load_engine
from lepton.node.language.folder import read_config, read_layers
from lepton.node.language.layout import layers
from lepton.node.language.tokenizer import LanguageTokenizer, read_files
from lepton.node.learning.data import digits
from lepton.node.learning.trainer import settings_for, train_alone
from lepton.node.models import build
from lepton.node.shapes import ModelSpec
from torch import Tensor, nn
from torch.nn import functional as F

from ..node.compression.networks import RESNET, photo_pieces, trained_resnet
from .compress import loaded
from .language import STORIES, say

Figures = dict[str, float]
Measure = Callable[[nn.Module], float]

STEPS: Final = int(os.environ.get("STEPS", "400"))
TEXTS: Final = 256


def told(figures: Figures, name: str, small: Compressed, measure: Measure) -> None:
    """Note what a pruned module says, what its file takes, and how quick it is."""
    with tempfile.TemporaryDirectory() as place:
        save(small, Path(place))
        size = (Path(place) / "model.safetensors").stat().st_size
    figures[f"{name}_kept"] = measure(small.module)
    figures[f"{name}_bytes"] = size
    if small.taken_s and small.taken_s_before:
        figures[f"{name}_speedup"] = small.taken_s_before / small.taken_s
    rest = "".join(f" {key.removeprefix(name + '_')} {figures[key]:.4g}" for key in figures if key.startswith(name))
    say(f"{name:32}{rest}")


def stories() -> Figures:
    folder = STORIES / "hf"
    tokenizer, config = LanguageTokenizer(read_files(folder)), read_config(folder)
    texts = [tokenizer.encode(one.strip()) for one in sample().split("<|endoftext|>")]
    decoder = read_decoder(folder)
    data = written_by(load_engine(config, 0, layers(config), read_layers(folder, config)), config.bos, texts=TEXTS)
    fit = Fit(steps=STEPS, batch_size=8, rate=1e-3)
    figures: Figures = {"stories_whole": text_perplexity(decoder, texts)}
    for share in (0.3, 0.5):
        for name, said in (("alone", None), ("tuned", fit)):
            small = prune(decoder, share=share, kind="layer", data=data, loss=like(decoder), fit=said)
            told(figures, f"stories_{share:.0%}_{name}", small, lambda module: text_perplexity(module, texts))
        for bits in (8, 4):
            rounded = quantise(small.module, bits=8 if bits == 8 else 4, data=data[:32], form="unpacked", error_max=0.9)
            name = f"stories_{share:.0%}_tuned_int{bits}"
            told(figures, name, rounded, lambda module: text_perplexity(module, texts))
    for share in (0.25, 0.5):
        with tempfile.TemporaryDirectory() as place:
            manifest = prune_folder(folder, Path(place) / "small", share=share)
            before, after = loaded(folder, "float32"), loaded(Path(place) / "small", "float32")
            name = f"stories_inner_{share:.0%}"
            figures[f"{name}_kept"] = perplexity(after, texts)
            figures[f"{name}_bytes"] = manifest.size_bytes
            figures[f"{name}_speedup"] = tokens_per_s(after, rounds=9) / tokens_per_s(before, rounds=9)
    return figures


def sample() -> str:
    return (STORIES / "tinystories_sample.txt").read_text()


def text_perplexity(module: nn.Module, texts: list[list[int]]) -> float:
    total, count = 0.0, 0
    with torch.inference_mode():
        for text in texts:
            tokens = torch.tensor([text])
            total += float(F.cross_entropy(module(tokens)[0, :-1], tokens[0, 1:], reduction="sum"))
            count += len(text) - 1
    return math.exp(total / count)


def resnet() -> Figures:
    network, test = trained_resnet(), photo_pieces("flower.jpg")
    seen = photo_pieces("china.jpg")
    seen = torch.cat([turned * light for turned in (seen, seen.flip(3)) for light in (1.0, 0.7)])
    fit = Fit(steps=STEPS // 2, batch_size=32, rate=float(os.environ.get("RATE", "3e-4")))

    def agreement(module: nn.Module) -> float:
        with torch.inference_mode():
            return float((module(test).argmax(1) == network(test).argmax(1)).float().mean())

    figures: Figures = {}
    kinds: list[tuple[Any, float]] = [
        ("layer", 0.3), ("layer", 0.5), ("layer", 0.7), ("n:m", 0.5), ("channels", 0.25), ("channels", 0.5),
    ]  # fmt: skip
    for kind, share in kinds:
        for name, said in (("alone", None), ("tuned", fit)):
            small = prune(network, share=share, kind=kind, data=seen, fit=said, samples=16)
            told(figures, f"resnet_{kind}_{share:.0%}_{name}", small, agreement)
        rounded = quantise(small.module, bits=8, data=seen[:64], form="resident", error_max=0.9)
        told(figures, f"resnet_{kind}_{share:.0%}_tuned_int8", rounded, agreement)
    return figures


def digits_classifier() -> Figures:
    spec, data = ModelSpec(architecture="mlp", inputs=(64,), classes=10), digits(0)
    assert data.x_test is not None
    assert data.y_test is not None
    model = build(spec)
    model.load_state_dict(train_alone(spec, data, settings_for(spec), 4000).tensors())
    x, y, test, labels = (torch.from_numpy(each) for each in (data.x, data.y, data.x_test, data.y_test))
    x, test = x.float().flatten(1), test.float().flatten(1)

    def accuracy(module: nn.Module) -> float:
        with torch.inference_mode():
            return float((module(test).argmax(1) == labels).float().mean())

    def loss(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return F.cross_entropy(module(batch[0]), batch[1])

    figures: Figures = {"digits_whole": accuracy(model)}
    kinds: list[tuple[Any, float]] = [("layer", 0.5), ("layer", 0.8), ("layer", 0.9), ("channels", 0.5)]
    for kind, share in kinds:
        for name, said in (("alone", None), ("tuned", Fit(steps=2 * STEPS, rate=3e-3))):
            small = prune(model, share=share, kind=kind, data=(x, y), loss=loss, fit=said)
            told(figures, f"digits_{kind}_{share:.0%}_{name}", small, accuracy)
        rounded = quantise(small.module, bits=8, data=x[:64], form="unpacked", error_max=0.9)
        told(figures, f"digits_{kind}_{share:.0%}_tuned_int8", rounded, accuracy)
    return figures


def main(names: list[str]) -> None:
    parts = {"digits": digits_classifier, "resnet": resnet, "stories": stories}
    missing = {"stories": not STORIES.exists(), "resnet": not RESNET.exists()}
    figures: Figures = {}
    for name in names or parts:
        if missing.get(name):
            say(f"{name}: left out, its weights are not in ../shared/data")
            continue
        figures |= parts[name]()
    for key, value in figures.items():
        say(f"{key:40} {value:12.4f}")
    if path := os.environ.get("JSON"):
        rounded = {key: round(value, 4) for key, value in figures.items()}
        Path(path).write_text(json.dumps(rounded, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
