"""Searches for smaller models on real weights: the demo's classifier, a ResNet-20, and the TinyStories model.

There are no images of CIFAR-10 here, for which the ResNet-20 was trained. So its trained body is put to MNIST: a new
head, and all of it fine-tuned on 4,000 train images of 32 x 32 in 3 equal channels. That is the float reference. The
search fits and calibrates on the same images and chooses by 1,000 other train images; what is reported is measured
once, on the 5,000 test images, by the folder that was saved and as a node runs it. `resnet20_accuracy_loss` is that of
MNIST, and not of CIFAR-10.
"""

import math
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np
import torch
from lepton.node.compression import Found, compress
from lepton.node.compression.fitting import Fit, fit
from lepton.node.compression.search.drawing import table_of
from lepton.node.compression.search.recipes import Prune, Recipe, Round
from lepton.node.learning.data import Dataset, digits
from lepton.node.models import Chain, build
from lepton.node.programs.folder import open_folder
from lepton.node.programs.run import Stage
from lepton.node.shapes import ModelSpec
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..node.compression.networks import ResNet20, trained_resnet
from .language import STORIES, say

MNIST: Final = Path(__file__).parents[3] / "shared/data/mnist/mnist_30k.npz"
TRAIN, CHOOSE, AT_ONCE = 4000, 1000, 250
ENDLESS: Final = math.inf  # a slow machine tries what a quick one tries, and takes the same
FINE_TUNED: Final = Fit(steps=300)
# What can become 8 times smaller; the trained ones are a minute's work each.
RECIPES: Final[tuple[Recipe, ...]] = (
    (Round(bits=8),),
    (Round(bits=4),),
    (Prune(kind="channels", share=0.25), Round(bits=4)),
    (Prune(kind="channels", share=0.25), Round(bits=4, trained=True)),
    (Prune(kind="channels", share=0.5), Round(bits=8)),
    (Prune(kind="global", share=0.75), Round(bits=8)),
)


def resnet_on_mnist() -> dict[str, float]:
    x, y, x_test, y_test = mnist()
    network = fine_tuned(x[:TRAIN], y[:TRAIN])
    before = right(network, x_test, y_test)
    say(f"ResNet-20 on MNIST, float32: {before:.2f} % of the test images")
    part = slice(TRAIN, TRAIN + CHOOSE)
    data = Dataset(x=x[:TRAIN].numpy(), y=y[:TRAIN].numpy(), classes=10, x_test=x[part].numpy(), y_test=y[part].numpy())
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "small"
        found = compress(
            network,
            target="size=0.125x,accuracy=-0.5",
            data=data,
            out=out,
            recipes=RECIPES,
            steps=200,
            budget_s=ENDLESS,
        )
        shown(found, f"ResNet-20 on MNIST, {time.monotonic() - begin:.0f} s")
        after = right(served(out), x_test, y_test)
        size_bytes = (out / "model.safetensors").stat().st_size
    return {
        "resnet20_mnist_accuracy": before,
        "resnet20_accuracy_loss": before - after,
        "resnet20_size_ratio": found.outcome.before.size_bytes / size_bytes,
    }


def mnist() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images float32 (n, 3, 32, 32) and labels int64 (n,) of the first train images and of the test."""
    with np.load(MNIST) as file:
        arrays = {name: file[name] for name in file.files}
    found = []
    for part, count in (("train", TRAIN + CHOOSE), ("test", None)):
        images = torch.from_numpy(arrays[f"x_{part}"][:count]).to(torch.float32).div(255)
        scaled = (F.pad(images, (2, 2, 2, 2)) - 0.1307) / 0.3081  # the mean and spread of its train images
        labels = torch.from_numpy(arrays[f"y_{part}"][:count].astype(np.int64))
        found += [scaled.unsqueeze(1).repeat(1, 3, 1, 1), labels]
    return found[0], found[1], found[2], found[3]


def fine_tuned(x: Tensor, y: Tensor) -> ResNet20:
    network = trained_resnet()
    torch.manual_seed(0)
    network.linear = nn.Linear(64, 10)
    fit(network, (x, y), labels_loss, FINE_TUNED)
    return network.eval()


def labels_loss(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1])


def right(module: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return how many of 100 are right."""
    with torch.inference_mode():
        decided = torch.cat([module(part).argmax(1) for part in x.split(AT_ONCE)])
    return 100 * float((decided == y).float().mean())


def served(folder: Path) -> nn.Module:
    """Return what a node answers that serves a folder."""
    program = open_folder(folder).program
    stage = Stage(program, 0, program.layers, load_file(folder / "model.safetensors"))

    class Served(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return stage.run([x])[0]

    return Served()


def classifier() -> dict[str, float]:
    """Search on the demo's network and data: an MLP on scikit-learn's digits. Its test part chooses and measures."""
    data, chain = digits(), build(ModelSpec(architecture="mlp", inputs=(64,), classes=10, hidden=64))
    fit(chain, (torch.from_numpy(data.x), torch.from_numpy(data.y)), labels_loss, Fit(steps=1000, rate=1e-2))
    found = compress(chain, target="accuracy=-0.5", data=data, budget_s=ENDLESS)
    shown(found, "digits, MLP")
    assert isinstance(chain, Chain)
    return figures_of(found, "digits")


def stories_as_asked() -> dict[str, float]:
    """Search on the TinyStories model, calibrated and taught on texts that it writes; measured on others of these."""
    with tempfile.TemporaryDirectory() as place:
        found = compress(STORIES / "hf", target="perplexity=+6%", out=Path(place) / "small", budget_s=ENDLESS)
        shown(found, "TinyStories")
    return figures_of(found, "stories_search")


def figures_of(found: Found, name: str) -> dict[str, float]:
    picked = found.outcome.picked
    assert picked is not None
    assert picked.figures is not None
    return {
        f"{name}_size_ratio": found.outcome.before.size_bytes / picked.figures.size_bytes,
        f"{name}_lost": picked.figures.lost,
        f"{name}_latency_ratio": picked.figures.latency_s / found.outcome.before.latency_s,
    }


def shown(found: Found, title: str) -> None:
    say(f"{title}; measured on {found.measured_on}")
    Console(width=120).print(table_of(found.outcome, found.quality))
