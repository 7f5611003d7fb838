"""`prune`: a copy of any module with its least numbers made zeros, trained on so that the rest makes up for them.

Zeros take next to nothing in a file, and are multiplied like all other numbers: the file becomes smaller, an answer no
quicker. That holds for 2 of each 4 too, by which only some GPUs gain.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ....mesh.errors import UsageError
from .. import fitting
from ..choosing import least_s
from ..errors import NotFaster, NotSmaller
from ..fitting import Fit, Loss
from ..manifest import Manifest, Pruned
from ..modules import Compressed, Must, size_bytes
from ..stored import stored_bytes
from .gradual import Choose, Gradual
from .masks import Kind, Masks, of_all, of_each, of_runs, share_at, zeroed
from .scores import candidates, input_sizes, shares_of_rest, with_inputs

ZEROS: Final = "zeros, which make a file smaller and an answer no quicker,"


def prune(
    module: nn.Module,
    *,
    share: float = 0.5,
    kind: Kind = "global",
    pattern: tuple[int, int] = (2, 4),
    data: Tensor | Sequence[Tensor] | None = None,
    loss: Loss | None = None,
    fit: Fit | None = None,
    leave: Iterable[str] = (),
    samples: int = 1,
    must: tuple[Must, ...] = ("smaller",),
) -> Compressed:
    """Make the least numbers of a copy of a module zeros: ``share`` of those in its large matrices and kernels.

    ``kind`` says what is compared: all numbers (`global`), those of each layer (`layer`), or each m inputs that follow
    each other, of which ``pattern`` = (n, m) keeps n (`n:m`; there the share is 1 - n/m). ``scores.py`` says how.
    Embeddings, heads of vocabularies, biases, norms and what is small stay, and what ``leave`` (patterns of parameters'
    names) says; the manifest lists it.

    ``data`` are the module's argument or arguments, n rows each; where ``loss`` is given, they are that one's batch
    (say, inputs and labels). With data `layer` and `n:m` count how large the inputs are. With ``fit``, and data, the
    copy is trained on while numbers go, gradually over the first half of the steps; without ``loss`` it is to answer
    as the module did.

    Raises NotSmaller, NotFaster where the result is not what it ``must`` be, measured on ``samples`` rows: zeros alone
    are no quicker. UsageError for a share or a pattern that cannot be, for `fit` or `faster` without data, and where
    nothing of the module can be pruned.
    """
    given = None if data is None else (data,) if isinstance(data, Tensor) else tuple(data)
    _check(share, pattern, given, fit, must)
    work = deepcopy(module).eval()
    parameters, left = candidates(work, leave)
    if not parameters:
        raise UsageError(f"Nothing of this {type(module).__name__} can be pruned: {left or 'it has no matrices'}.")
    sizes = input_sizes(work, parameters, _run(work, given, loss)) if given and kind != "global" else {}
    masks = _thinned(work, parameters, _choice(kind, share, pattern, sizes), given, loss or as_before(module), fit)
    step = Pruned(
        kind=kind,
        share=1 - pattern[0] / pattern[1] if kind == "n:m" else share,
        pattern=pattern if kind == "n:m" else None,
        fitted_steps=0 if fit is None else fit.steps,
        shares={name: round(1 - float(kept.to(torch.float32).mean()), 4) for name, kept in masks.items()},
        left=left,
    )
    return _judged(module, work, step, None if given is None else tuple(each[:samples] for each in given), loss, must)


def as_before(module: nn.Module) -> Loss:
    """Give a loss: the mean squared distance to what the module answers now, relative to how far its answers vary."""
    before = deepcopy(module).eval()

    def loss(now: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        with torch.no_grad():
            wanted: Tensor = before(*batch)
        missed = F.mse_loss(now(*batch), wanted)
        return missed / wanted.var().clamp_min(torch.finfo(wanted.dtype).tiny)

    return loss


def _thinned(
    work: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    choose: Choose,
    data: tuple[Tensor, ...] | None,
    loss: Loss,
    fit: Fit | None,
) -> Masks:
    if fit is None or not fit.steps:
        masks = choose(parameters, 1.0)
        zeroed(parameters, masks)
        return masks
    gradual = Gradual(parameters, choose, steps=fit.steps)
    fitting.fit(work, data or (), loss, fit, after=gradual)
    return gradual.masks


def _choice(kind: Kind, share: float, pattern: tuple[int, int], sizes: Mapping[str, Tensor]) -> Choose:
    def of_everything(parameters: Mapping[str, Tensor], done: float) -> Masks:
        return of_all(shares_of_rest(parameters), share_at(done, share))

    def of_layers(parameters: Mapping[str, Tensor], done: float) -> Masks:
        return of_each(with_inputs(parameters, sizes), share_at(done, share), rows=sizes)

    def of_patterns(parameters: Mapping[str, Tensor], done: float) -> Masks:
        scores = with_inputs(parameters, sizes)
        last, by_now = of_runs(scores, pattern), share_at(done, 1 - pattern[0] / pattern[1])
        if done >= 1:
            return last
        return {name: kept | last[name] for name, kept in of_each(scores, by_now, rows=()).items()}

    return {"global": of_everything, "layer": of_layers, "n:m": of_patterns}[kind]


def _judged(
    module: nn.Module,
    work: nn.Module,
    step: Pruned,
    few: tuple[Tensor, ...] | None,
    loss: Loss | None,
    must: tuple[Must, ...],
) -> Compressed:
    how = f"{100 * step.share:.0f} % {ZEROS}"
    manifest = Manifest(steps=(step,), size_bytes_before=size_bytes(module), size_bytes=stored_bytes(work))
    if "smaller" in must and manifest.size_bytes >= manifest.size_bytes_before:
        raise NotSmaller(manifest.size_bytes_before, manifest.size_bytes, how)
    if few is None:
        return Compressed(module=work, manifest=manifest)
    with torch.inference_mode():
        old, new = least_s([_run(deepcopy(module).eval(), few, loss), _run(work, few, loss)])
    if "faster" in must and new >= old:
        raise NotFaster(old, new, how)
    return Compressed(module=work, manifest=manifest, taken_s_before=old, taken_s=new)


def _run(module: nn.Module, data: tuple[Tensor, ...], loss: Loss | None) -> Callable[[], object]:
    return partial(module, *data) if loss is None else partial(loss, module, data)


def _check(
    share: float, pattern: tuple[int, int], given: tuple[Tensor, ...] | None, fit: Fit | None, must: tuple[Must, ...]
) -> None:
    if not 0 < share < 1:
        raise UsageError(f"A share of {share:g} cannot be pruned; give one between 0 and 1, as 0.5.")
    if not 0 < pattern[0] < pattern[1]:
        raise UsageError(f"Of each {pattern[1]} numbers {pattern[0]} cannot stay; a pattern is as (2, 4).")
    if given is None and (fit is not None or "faster" in must):
        raise UsageError("To train on, and to measure what is faster, takes data; give some.")
