"""Single numbers of a module become zeros: at once, or more and more of them while it is trained on."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from ....mesh.errors import UsageError
from ..manifest import Pruned
from .gradual import Choose, Gradual
from .masks import Kind, Masks, of_all, of_each, of_runs, share_at, zeroed
from .scores import candidates, input_sizes, shares_of_rest, with_inputs

Train = Callable[..., object]  # trains the module on; takes what is to be done ``after`` each step


def make_zeros(
    module: nn.Module,
    *,
    kind: Kind,
    share: float,
    pattern: tuple[int, int],
    leave: Iterable[str],
    run: Callable[[], object] | None,
    train: Train,
    steps: int,
) -> Pruned:
    """Make this share of a module's numbers zeros, in place; ``run`` is the module on the data.

    Where ``train`` has any ``steps``, more and more of them.

    Raises UsageError where it has none that may go.
    """
    parameters, left = candidates(module, leave)
    if not parameters:
        raise UsageError(f"Nothing of this {type(module).__name__} can be pruned: {left or 'it has no matrices'}.")
    products = [name for name in parameters if isinstance(module.get_submodule(name.rpartition(".")[0]), nn.Linear)]
    sizes = input_sizes(module, products, run) if run is not None and kind != "global" else {}
    masks = _thinned(parameters, _choice(kind, share, pattern, sizes), train, steps)
    return Pruned(
        kind=kind,
        share=1 - pattern[0] / pattern[1] if kind == "n:m" else share,
        pattern=pattern if kind == "n:m" else None,
        shares={name: round(1 - float(kept.to(torch.float32).mean()), 4) for name, kept in masks.items()},
        left=left,
    )


def _thinned(parameters: Mapping[str, nn.Parameter], choose: Choose, train: Train, steps: int) -> Masks:
    if not steps:
        masks = choose(parameters, 1.0)
        zeroed(parameters, masks)
        return masks
    gradual = Gradual(parameters, choose, steps=steps)
    train(after=gradual)
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
