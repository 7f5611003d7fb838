"""Our decoder beside transformers' on one process: tokens a second, perplexity at each precision, memory of a stage.

`python -m tests.bench.language [speed|perplexity|memory]...`; the model of 125 M parameters has random weights.
"""

import json
import math
import os
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
from lepton.node.deployments import Precision
from lepton.node.generation.engine import Piece
from lepton.node.language.config import LanguageConfig, parse_config
from lepton.node.language.engine import LanguageEngine, load_engine
from lepton.node.language.folder import read_config, read_layers
from lepton.node.language.layout import NORM, layer_shapes, layers, sizes
from lepton.node.language.tokenizer import LanguageTokenizer, read_files
from safetensors.torch import save_file

STORIES: Final = Path(__file__).parents[3] / "shared/data/models/stories260K"
COMMON: Final[dict[str, Any]] = {"model_type": "llama", "max_position_embeddings": 1024, "tie_word_embeddings": True}
MODELS: Final[dict[str, dict[str, Any]]] = {
    "15 M": {"hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6},
    "125 M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 14, "num_attention_heads": 12},
}
PROMPT: Final = 32
TOKENS: Final = 32
REPEATS: Final = 3  # the best of so many: other work on the machine only ever slows


def config_of(name: str) -> dict[str, Any]:
    return COMMON | {"vocab_size": 32_000} | MODELS[name]


def random_engine(config: LanguageConfig, precision: Precision) -> LanguageEngine:
    def tensors(layer: int) -> dict[str, torch.Tensor]:
        return {name: torch.randn(shape) * 0.02 for name, shape in layer_shapes(config, layer).items()}

    return load_engine(config, 0, layers(config), tensors, precision)


def decode(engine: LanguageEngine, sessions: int = 1) -> float:
    """Tokens a second of all sessions, behind their prompts."""
    caches = [engine.new_cache() for _ in range(sessions)]
    xs = [np.full(PROMPT, index, np.int32) for index in range(sessions)]
    begin = 0.0
    for _ in range(TOKENS + 1):
        pieces = [Piece(cache=cache, x=x, wants_logits=True) for cache, x in zip(caches, xs, strict=True)]
        xs = [np.array([int(np.argmax(logits))], np.int32) for logits in engine.run(pieces) if logits is not None]
        begin = begin or time.perf_counter()  # behind the prompt
    taken = time.perf_counter() - begin
    for cache in caches:
        cache.close()
    return sessions * TOKENS / taken


def prefill(engine: LanguageEngine) -> float:
    cache, x = engine.new_cache(), np.arange(256, dtype=np.int32)
    begin = time.perf_counter()
    engine.run([Piece(cache=cache, x=x, wants_logits=True)])
    return 256 / (time.perf_counter() - begin)


def transformers_model(fields: dict[str, Any]) -> Any:
    import transformers

    model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields))
    return model.eval()


def generate(model: Any) -> float:
    """Tokens a second of transformers' own loop, behind the prompt."""
    given = torch.ones((1, PROMPT), dtype=torch.long)
    settings = {"attention_mask": torch.ones_like(given), "do_sample": False, "pad_token_id": 0}

    def taken(count: int) -> float:
        begin = time.perf_counter()
        with torch.inference_mode():
            model.generate(given, min_new_tokens=count, max_new_tokens=count, **settings)
        return time.perf_counter() - begin

    return TOKENS / (taken(TOKENS + 1) - taken(1))


def speed() -> dict[str, float]:
    """Ratios to transformers; taken in turns, since other work on the machine comes and goes."""
    figures: dict[str, float] = {}
    for name in MODELS:
        reference = transformers_model(config_of(name))
        for precision in get_args(Precision):
            engine = random_engine(parse_config(json.dumps(config_of(name))), precision)
            rounds = [(decode(engine), decode(engine, 8), prefill(engine), generate(reference)) for _ in range(REPEATS)]
            alone, together, prompt, theirs = (max(values) for values in zip(*rounds, strict=True))
            figures[f"{name} {precision}"] = alone / theirs
            say(
                f"{name} {precision:9} {alone:7.1f} tokens/s, {alone / theirs:5.2f} x transformers in float32 "
                f"({theirs:.1f}); 8 sessions {together:7.1f}; a prompt of 256 {prompt:7.1f}"
            )
    return figures


def perplexity() -> dict[str, float]:
    """Of the trained model on its five stories, each a text of its own."""
    folder = STORIES / "hf"
    config, tokenizer = read_config(folder), LanguageTokenizer(read_files(folder))
    stories = (STORIES / "tinystories_sample.txt").read_text().split("<|endoftext|>")
    texts = [tokenizer.encode(story.strip()) for story in stories]
    count = sum(len(text) - 1 for text in texts)
    figures = {}
    for precision in get_args(Precision):
        engine = load_engine(config, 0, layers(config), read_layers(folder, config), precision)
        figures[precision] = math.exp(sum(loss(engine, text) for text in texts) / count)
        say(f"stories260K, {count} tokens, {precision:9} perplexity {figures[precision]:.3f}")
    return figures


def loss(engine: LanguageEngine, tokens: list[int]) -> float:
    total, cache = 0.0, engine.new_cache()
    for token, after in pairwise(tokens):
        (logits,) = engine.run([Piece(cache=cache, x=np.array([token], np.int32), wants_logits=True)])
        assert logits is not None
        scores = np.asarray(logits, np.float64)
        total += float(scores.max() + np.log(np.exp(scores - scores.max()).sum()) - scores[after])
    cache.close()
    return total


def memory() -> dict[str, float]:
    """Peak resident memory of a process that loads and runs a stage (Linux), beside its share, its caches and a base.

    The base is what a process takes that has imported torch and us and nothing more.
    """
    config = parse_config(json.dumps(config_of("125 M")))
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config_of("125 M")))
        tensors = {
            name: torch.randn(shape)
            for at in range(layers(config) - 1)
            for name, shape in layer_shapes(config, at).items()
        }
        save_file(tensors | {NORM: torch.ones(config.width)}, Path(folder) / "model.safetensors")
        del tensors
        for precision in get_args(Precision):
            for first, end in ((0, layers(config)), (0, 8), (1, 8), (8, layers(config))):
                part = ["stage", folder, str(first), str(end), precision]
                command = [sys.executable, "-m", "tests.bench.language", *part]
                ran = subprocess.run(command, capture_output=True, text=True, check=True)
                base, loading, running, share, caches = (int(figure) / 1e6 for figure in ran.stdout.split())
                ratio = max((loading / (base + share)), running / (base + share + caches))
                figures[f"{precision} {first}:{end}"] = ratio
                say(
                    f"125 M {precision:9} layers {first:2}:{end:2} base {base:5.1f} MB, share {share:5.1f} MB: peak of "
                    f"loading {loading:5.1f} MB ({(loading - base) / share:4.2f} x the share above the base); with "
                    f"{caches:4.1f} MB of caches {running:5.1f} MB; {ratio:4.2f} x the sum at most"
                )
    return figures


def stage(folder: str, first: int, end: int, precision: Precision) -> None:
    """Load a stage in this process and run it; print base, peaks of loading and of all, share and caches, in bytes.

    The share is what `sizes` promises, without the second of a tied matrix.
    """
    config = read_config(Path(folder))
    base_bytes = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew here
    engine = load_engine(config, first, end, read_layers(Path(folder), config), precision)
    loading_bytes = status_bytes("VmHWM")
    caches = [engine.new_cache() for _ in range(4)]
    for cache in caches:
        x = np.zeros(128, np.int32) if first == 0 else np.zeros((128, config.width), np.float32)
        engine.run([Piece(cache=cache, x=x, wants_logits=True)])
    said = sizes(config, precision)
    share = sum(said.weights_bytes[first:end]) - said.tied_bytes * ((first, end) == (0, layers(config)))
    say(base_bytes, loading_bytes, status_bytes("VmHWM"), share, sum(cache.size_bytes for cache in caches))


def status_bytes(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def say(*values: object) -> None:
    print(*values, flush=True)  # noqa: T201 - a bench prints


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["stage"]:
        stage(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), msgspec.convert(sys.argv[5], Precision))
    else:
        parts = {"perplexity": perplexity, "speed": speed, "memory": memory}
        figures = {part: parts[part]() for part in sys.argv[1:] or parts}
        if path := os.environ.get("JSON"):
            Path(path).write_text(json.dumps(figures, indent=1))
