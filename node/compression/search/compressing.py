"""`compress`: a model and what is asked of it in, the model that keeps it out, saved so that `serve` takes it."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from torch import nn

from ....mesh.errors import LeptonError, UsageError
from ...export import load_model
from ...learning.data import TEST_SEED, TEST_SHARE, Dataset, data_source, hold_out
from ...learning.formats.checks import Wanted, require_same_length, samples_of
from ...models import Chain
from ...objective import Objective, is_of_values
from ..folder import require_floats
from ..manifest import Manifest, read_manifest, write_manifest
from ..modules import Compressed
from ..served import traced, write_served
from ..whole import new_folder
from .languages import Language
from .networks import FIT, Network
from .picking import Figures, Tried
from .recipes import Recipe, least_share, said
from .searching import BUDGET_S, CANDIDATES_MAX, OnTried, Outcome, search, why_not
from .targets import Limits, Targets, parse_targets

Data = Dataset | tuple[Any, Any] | Path | str
_TEXT_BYTES_MAX: Final = 64 * 1024 * 1024  # 16 million tokens; a few thousand are used
_NAMED: Final = 3  # of the nearest, in an error


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search came to. ``module`` is what was taken, of a module; ``out`` the folder, where one was named."""

    outcome: Outcome[Any]
    quality: str  # what the figures' quality and loss are of
    measured_on: str
    manifest: Manifest | None = None
    module: nn.Module | None = None
    out: Path | None = None


class TargetMissed(LeptonError):
    """No candidate is what was asked for; nothing was written."""

    def __init__(self, found: Found) -> None:
        super().__init__(_missed(found))
        self.found = found


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How long to look, and for what."""

    targets: Targets
    recipes: Sequence[Recipe] | None = None
    steps: int | None = None
    budget_s: float = BUDGET_S
    candidates_max: int = CANDIDATES_MAX
    seed: int = 0
    keep_best: bool = False
    threads: int | None = None
    on_tried: OnTried = lambda _: None

    def run(self, subject: Any) -> Outcome[Any]:  # noqa: ANN401  a `Subject` of whatever it makes
        return search(
            subject,
            self.targets,
            budget_s=self.budget_s,
            candidates_max=self.candidates_max,
            on_tried=self.on_tried,
        )


def compress(
    model: nn.Module | Path | str,
    *,
    target: str | Iterable[str] = (),
    data: Data | None = None,
    out: Path | str | None = None,
    objective: Objective = "cross_entropy",
    recipes: Sequence[Recipe] | None = None,
    steps: int | None = None,
    budget_s: float = BUDGET_S,
    candidates_max: int = CANDIDATES_MAX,
    seed: int = 0,
    keep_best: bool = False,
    threads: int | None = None,
    on_tried: OnTried = lambda _: None,
) -> Found:
    """Search for a smaller model that keeps every target, and save it in the new folder ``out``, where one is named.

    ``model`` is a language model's folder, a file that `lepton-node export` wrote, or any module that takes samples
    (n, ...) and gives outputs (n, k), logits where the ``objective`` is of classes. ``data``: for a language model the
    path of a text, or none; else a `Dataset` with a test part, (x, y) of which a fifth is held out, or what names such
    data on the command line. ``target`` is as `targets.py` has it, ``recipes`` what is tried in place of the usual,
    ``steps`` how long a model is trained for each. Where ``threads`` are not given modules are searched on one: two
    threads of a small model wait for each other. Equal seeds and data try the same and, on one machine, make the same.

    Raises TargetMissed, with all figures, where no candidate keeps the targets; with ``keep_best`` the nearest one is
    taken then, if it is smaller at all. UsageError for a model, targets and data that do not go together.
    """
    texts = [target] if isinstance(target, str) else list(target)
    wanted = Search(
        targets=parse_targets(texts) if texts else Targets(),
        recipes=recipes,
        steps=steps,
        budget_s=budget_s,
        candidates_max=candidates_max,
        seed=seed,
        keep_best=keep_best,
        threads=threads,
        on_tried=on_tried,
    )
    folder = None if out is None else Path(out).expanduser()
    with nullcontext() if folder is None else new_folder(folder) as work:
        if isinstance(model, nn.Module):
            found = _network(model, None, data, objective, work, wanted)
        elif (path := Path(model).expanduser()).is_dir():
            found = _language(path, data, work, wanted)
        else:
            found = _network(load_model(path), path.stat().st_size, data, objective, work, wanted)
    return replace(found, out=folder)


def _language(path: Path, data: Data | None, work: Path | None, wanted: Search) -> Found:
    """Search, and leave the files of what is taken in ``work``."""
    require_floats(path)
    _require_quality(wanted.targets, "perplexity")
    if work is None:
        raise UsageError("A language model is saved as a folder: name one that is not there yet.")
    text = None if data is None else text_of(data)
    tries = work / "tries"
    tries.mkdir()
    subject = Language(path, tries, text=text, seed=wanted.seed, recipes=wanted.recipes, steps=wanted.steps)
    with _threads(wanted.threads or torch.get_num_threads()):
        outcome = wanted.run(subject)
    found = Found(outcome=outcome, quality="perplexity", measured_on=subject.measured_on)
    taken = _taken(found, keep_best=wanted.keep_best)
    made = outcome.made
    assert isinstance(made, Path)
    manifest = _with_figures(read_manifest(made), taken, found)
    write_manifest(made, manifest)
    for file in made.iterdir():
        file.rename(work / file.name)
    shutil.rmtree(tries)
    return replace(found, manifest=manifest)


def _network(
    module: nn.Module,
    size_bytes: int | None,
    data: Data | None,
    objective: Objective,
    work: Path | None,
    wanted: Search,
) -> Found:
    """Search, and write what is taken into ``work``."""
    _require_quality(wanted.targets, "accuracy")
    objective = module.spec.objective if isinstance(module, Chain) else objective
    samples = dataset_of(data, objective)
    fit = replace(FIT, seed=wanted.seed, steps=FIT.steps if wanted.steps is None else wanted.steps)
    with _threads(wanted.threads or 1):
        network = Network(
            module, samples, objective=objective, recipes=wanted.recipes, training=fit, size_bytes=size_bytes,
            served=work is not None,
        )  # fmt: skip
        if work is not None:
            traced(module, network.data.x_test[:2])  # better now than after the search
        outcome = wanted.run(network)
    quality = "R2 in hundredths" if is_of_values(objective) else "accuracy in %"
    count = len(network.data.x_test)
    each = "" if is_of_values(objective) else f", each of which is {100 / count:.2f} points"
    measured_on = f"{count:,} samples of the data's test part{each}"
    found = Found(outcome=outcome, quality=quality, measured_on=measured_on)
    taken = _taken(found, keep_best=wanted.keep_best)
    assert isinstance(outcome.made, Compressed)
    made = replace(outcome.made, manifest=_with_figures(outcome.made.manifest, taken, found))
    if work is not None:
        write_served(made, network.data.x_test[:2], work, objective=objective)
    return replace(found, manifest=made.manifest, module=made.module)


def text_of(data: Data) -> str:
    """Read a text to calibrate a language model on. Raises UsageError for what is none."""
    if not isinstance(data, str | Path):
        raise UsageError("A language model is calibrated on a text: give the path of a file.")
    path = Path(data).expanduser()
    try:
        if path.stat().st_size > _TEXT_BYTES_MAX:
            raise UsageError(f"{path} is larger than the {_TEXT_BYTES_MAX:,} bytes that are read; give a part of it.")
        return path.read_text("utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be read as text: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} cannot be read as text: it is not UTF-8 at byte {error.start:,}.") from error


def dataset_of(data: Data | None, objective: Objective) -> Dataset:
    """Return samples with a test part. Raises UsageError that says what is wrong with them."""
    if data is None:
        raise UsageError("What this model loses is measured on data, and some steps train on them: give some.")
    if isinstance(data, Dataset):
        return data if data.x_test is not None else hold_out(data, TEST_SHARE, TEST_SEED)
    if isinstance(data, tuple):
        x, y = samples_of("data", "x", np.asarray(data[0])), Wanted(objective).targets("data", "y", np.asarray(data[1]))
        require_same_length("data", "x", x, "y", y)
        classes = int(y.max()) + 1 if y.ndim == 1 else y.shape[1]
        return hold_out(Dataset(x=x, y=y, classes=classes), TEST_SHARE, TEST_SEED)
    return data_source(str(Path(data).expanduser()), Path()).load(objective=objective)


def _taken(found: Found, *, keep_best: bool) -> Tried:
    """Return what is to be saved, or raise TargetMissed."""
    outcome = found.outcome
    if outcome.picked is not None:
        return outcome.picked
    if keep_best and outcome.nearest:
        return outcome.nearest[0]
    raise TargetMissed(found)


def _with_figures(manifest: Manifest, taken: Tried, found: Found) -> Manifest:
    assert taken.figures is not None
    before, after = found.outcome.before, taken.figures
    name = found.quality.partition(" ")[0].lower()
    figures = {
        f"{name}_before": before.quality,
        name: after.quality,
        "latency_ms_before": 1000 * before.latency_s,
        "latency_ms": 1000 * after.latency_s,
    }
    rounded = {key: round(value, 6) for key, value in figures.items()}
    return msgspec.structs.replace(manifest, figures=rounded, size_bytes_before=before.size_bytes)


def _require_quality(targets: Targets, kind: str) -> None:
    if targets.quality not in {None, kind}:
        other = "a language model" if kind == "perplexity" else "a model of classes or values"
        raise UsageError(f"What {other} may lose is a target of {kind}, not of {targets.quality}.")


def _missed(found: Found) -> str:
    """Say what was asked for, in figures, and how near the nearest candidates came."""
    outcome = found.outcome
    asked = _asked(outcome.limits, found.quality)
    if not outcome.nearest:
        small = sorted(outcome.tried, key=lambda each: least_share(each.recipe))[:_NAMED]
        reasons = [f"{said(each.recipe)}: {why_not(each, outcome.before, outcome.limits)}" for each in small]
        return f"No candidate is smaller and keeps the targets{asked}: {'; '.join(reasons)}. Nothing was written."
    named = []
    for each in outcome.nearest[:_NAMED]:
        assert each.figures is not None
        why = why_not(each, outcome.before, outcome.limits)
        named.append(f"{said(each.recipe)} ({_figures(each.figures, found.quality)}; misses {why})")
    return f"No candidate keeps the targets{asked}. The nearest: {'; '.join(named)}. Nothing was written."


def _asked(limits: Limits, quality: str) -> str:
    said = []
    if limits.size_bytes is not None:
        said.append(f"{limits.size_bytes:,.0f} bytes")
    if limits.latency_s is not None:
        said.append(f"{limits.latency_s * 1000:.3f} ms")
    if limits.lost is not None:
        said.append(f"{limits.lost:.2f}{' %' if quality == 'perplexity' else ''} lost")
    return f" (at most {', '.join(said)})" if said else ""


def _figures(figures: Figures, quality: str) -> str:
    return (
        f"{figures.size_bytes:,} bytes, {figures.latency_s * 1000:.3f} ms, {quality} {figures.quality:.2f}, "
        f"{figures.lost:+.2f} lost"
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
