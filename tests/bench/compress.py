"""What compression costs and gains on real weights: perplexity, decisions, bytes, and tokens a second.

Run ``python -m tests.bench.compress`` from the root of the project, or parts of it: stories, resnet, speed, and the
searches of ``smaller.py``: digits, mnist, search (JSON=FILE writes the figures as flat JSON). The TinyStories model is
calibrated on texts that it writes itself, seed 0, and measured on its five sample stories (1,804 tokens), by the engine
that serves it. The ResNet-20 was trained on CIFAR-10, whose images are not among the data here: so it is said in how
many of 228 pieces of a photograph it decides as the float one (calibrated on pieces of another), and `mnist` puts it to
another task. Speed: a decoder of 125 M parameters with random weights, one thread, one session; what is compared runs
in turns, and the best of each counts, since other work only ever slows.

Aims: int4 within 6 % of float32's perplexity 3.548, int8 3.56; int8 reads 80 % of what memory gives.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, get_args
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from lepton.node.compression import quantise, quantise_folder
from lepton.node.compression.manifest import Bits
from lepton.node.compression.measured import perplexity, tokens_per_s
from lepton.node.deployments import Precision
from lepton.node.kernels import Capabilities, available
from lepton.node.language.config import parse_config
from lepton.node.language.engine import LanguageEngine, load_engine
from lepton.node.language.folder import read_config, read_layers
from lepton.node.language.layout import layers
from lepton.node.language.tokenizer import LanguageTokenizer, read_files

from ..node.compression.networks import RESNET, photo_pieces, trained_resnet
from .language import STORIES, config_of, random_engine, say
from .smaller import MNIST, classifier, resnet_on_mnist, stories_as_asked

WIDTHS: Final[tuple[Bits, ...]] = (8, 4)
ROUNDS: Final = int(os.environ.get("ROUNDS", "5"))
READ_BYTES: Final = 256 * 1024 * 1024  # far beyond any cache
TOKENS: Final = {"kernel": 48, "torch": 12}  # behind each other; torch needs some tenths of a second for one
COMPARED: Final[tuple[Precision, ...]] = ("float32", "bfloat16", "int8", "int4")


def stories() -> dict[str, float]:
    folder = STORIES / "hf"
    tokenizer = LanguageTokenizer(read_files(folder))
    texts = [
        tokenizer.encode(one.strip()) for one in (STORIES / "tinystories_sample.txt").read_text().split("<|endoftext|>")
    ]
    figures = {f"stories_ppl_nearest_{each}": perplexity(loaded(folder, each), texts) for each in COMPARED}
    figures["stories_ppl_float32"] = figures.pop("stories_ppl_nearest_float32")
    del figures["stories_ppl_nearest_bfloat16"]
    with tempfile.TemporaryDirectory() as place:
        for bits in WIDTHS:
            begin = time.process_time()
            manifest = quantise_folder(folder, Path(place) / str(bits), bits=bits)
            say(f"int{bits}: rounded in {time.process_time() - begin:.1f} s of CPU")
            figures[f"stories_ppl_int{bits}"] = perplexity(loaded(Path(place) / str(bits), f"int{bits}"), texts)
            figures[f"stories_size_ratio_int{bits}"] = manifest.size_bytes_before / manifest.size_bytes
    return figures


def loaded(folder: Path, name: str) -> LanguageEngine:
    config = read_config(folder)
    precision = next(each for each in get_args(Precision) if each == name)
    return load_engine(config, 0, layers(config), read_layers(folder, config), precision)


def resnet() -> dict[str, float]:
    network, seen, test = trained_resnet(), photo_pieces("china.jpg"), photo_pieces("flower.jpg")
    figures: dict[str, float] = {}
    for bits in WIDTHS:
        small = quantise(network, bits=bits, data=seen, error_max=0.5)
        with torch.inference_mode():
            agreed = small.module(test).argmax(1) == network(test).argmax(1)
        figures[f"resnet20_agreement_int{bits}"] = float(agreed.float().mean())
        figures[f"resnet20_quantised_size_ratio_int{bits}"] = (
            small.manifest.size_bytes_before / small.manifest.size_bytes
        )
    return figures


def speed() -> dict[str, float]:
    """Tokens a second with and without the compiled kernel, and int8's share of the bandwidth of memory."""
    figures: dict[str, float] = {}
    for name in ("kernel", "torch") if available().native else ("torch",):
        without = Capabilities(native=False, reason="left out, to compare")
        with mock.patch(
            "lepton.node.kernels.packing.available", return_value=available() if name == "kernel" else without
        ):
            figures |= compared(name)
    main = "kernel" if available().native else "torch"
    return {
        **figures,
        **{key: figures[f"{key}_{main}"] for key in ("int8_vs_bf16", "int8_vs_float32", "int8_bandwidth_share")},
    }


def compared(name: str) -> dict[str, float]:
    config = parse_config(json.dumps(config_of("125 M")))
    engines = {precision: random_engine(config, precision) for precision in COMPARED}
    best, bandwidth = dict.fromkeys(engines, 0.0), 0.0
    for _ in range(ROUNDS):
        bandwidth = max(bandwidth, bytes_per_s())  # in turns as well: a share is of what there was meanwhile
        for precision, engine in engines.items():
            best[precision] = max(best[precision], tokens_per_s(engine, rounds=1, tokens=TOKENS[name]))
    say(f"one thread reads {bandwidth / 1e9:.1f} GB/s")
    figures = {f"bandwidth_gb_per_s_{name}": bandwidth / 1e9}
    for precision, tokens in best.items():
        read = tokens * engines[precision].weights_bytes / bandwidth  # the embedding is the head: all is read
        say(f"125 M {name:6} {precision:9} {tokens:7.1f} tokens/s, {100 * read:5.1f} % of the bandwidth")
        figures |= {f"{precision}_tokens_per_s_{name}": tokens, f"{precision}_bandwidth_share_{name}": read}
    figures[f"int8_vs_bf16_{name}"] = best["int8"] / best["bfloat16"]
    figures[f"int8_vs_float32_{name}"] = best["int8"] / best["float32"]
    return figures


def bytes_per_s() -> float:
    """How fast one thread reads memory: a sum of products, which is far quicker than what it reads comes in."""
    x = torch.ones(READ_BYTES // 4)
    taken = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        torch.dot(x, x)
        taken.append(time.perf_counter() - begin)
    return READ_BYTES / min(taken)


def main(names: list[str]) -> None:
    parts = {
        "stories": stories, "resnet": resnet, "speed": speed, "digits": classifier, "mnist": resnet_on_mnist,
        "search": stories_as_asked,
    }  # fmt: skip
    missing = {
        "stories": not STORIES.exists(), "resnet": not RESNET.exists(), "search": not STORIES.exists(),
        "mnist": not (RESNET.exists() and MNIST.exists()),
    }  # fmt: skip
    figures: dict[str, float] = {}
    for name in names or parts:
        if missing.get(name):
            say(f"{name}: left out, its weights are not in ../shared/data")
            continue
        figures |= parts[name]()
    for key, value in figures.items():
        say(f"{key:36} {value:10.3f}")
    if path := os.environ.get("JSON"):
        rounded = {key: round(value, 4) for key, value in figures.items()}
        Path(path).write_text(json.dumps(rounded, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
