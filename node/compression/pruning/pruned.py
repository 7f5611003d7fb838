"""`prune`: a copy of any module without its least numbers or channels, trained on so that the rest makes up for them.

Numbers that go become zeros. These take next to nothing in a file, and are multiplied like all others: the file becomes
smaller, an answer no quicker. That holds for 2 of each 4 too, by which only some GPUs gain. Channels that go are really
gone: the tensors shrink, and answers come sooner.
"""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from functools import partial
from typing import Final, Literal

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ....mesh.errors import UsageError
from .. import fitting
from ..choosing import least_s
from ..contents import plain_bytes, stored_bytes
from ..errors import NotFaster, NotSmaller
from ..fitting import Fit, Loss
from ..manifest import Manifest, Pruned
from ..modules import Compressed, Must
from .channels import drop_channels
from .masks import Kind
from .numbers import make_zeros

ZEROS: Final = "zeros, which make a file smaller and an answer no quicker,"


def prune(
    module: nn.Module,
    *,
    share: float = 0.5,
    kind: Kind | Literal["channels"] = "global",
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
    each other, of which ``pattern`` = (n, m) keeps n (`n:m`; there the share is 1 - n/m). ``scores.py`` says how. With
    `channels` this share of the channels goes wherever it can (``tracing.py``), and tensors shrink. Embeddings, heads
    of vocabularies, biases, norms and what is small stay, and what ``leave`` (patterns of parameters' names) says; the
    manifest lists it.

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
    run = None if given is None else _run(work, given, loss)
    steps = fit.steps if fit else 0
    train = partial(fitting.fit, work, given or (), loss or as_before(module), fit)
    if kind == "channels":
        step = drop_channels(work, share=share, leave=leave, run=run)
        if steps:
            train()
    else:
        step = make_zeros(work, kind=kind, share=share, pattern=pattern, leave=leave, run=run, train=train, steps=steps)
    step = msgspec.structs.replace(step, fitted_steps=steps)
    return _judged(module, work, step, None if given is None else tuple(each[:samples] for each in given), loss, must)


def as_before(module: nn.Module) -> Loss:
    """Give a loss: the mean squared distance to what the module answers now, relative to how far its answers vary.

    Both answer as in use: norms by the statistics that they have. Those of a batch are other ones, and a ResNet-20 that
    learned by them decided worse afterwards than before.
    """
    before = deepcopy(module).eval()

    def loss(now: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        with torch.no_grad():
            wanted: Tensor = before(*batch)
        now.eval()
        missed = F.mse_loss(now(*batch), wanted)
        return missed / wanted.var().clamp_min(torch.finfo(wanted.dtype).tiny)

    return loss


def _judged(
    module: nn.Module,
    work: nn.Module,
    step: Pruned,
    few: tuple[Tensor, ...] | None,
    loss: Loss | None,
    must: tuple[Must, ...],
) -> Compressed:
    how = f"{100 * step.share:.0f} % {ZEROS if step.kind != 'channels' else 'of the channels gone'}"
    manifest = Manifest(steps=(step,), size_bytes_before=plain_bytes(module), size_bytes=stored_bytes(work))
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
