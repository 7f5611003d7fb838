"""Any small `nn.Module` for n models at once: `torch.func` runs its forward over all of them, autograd goes back."""

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ...mesh.errors import UsageError
from ...node.objective import Objective
from .networks import Parts
from .slopes import slopes_of


class ModuleNetwork:
    """A module whose forward takes (B, ...) and gives (B, K), as one function of its parameters.

    Its buffers are constants, the same for all. Raises UsageError for batch normalisation, which changes its own.
    """

    def __init__(self, module: nn.Module, objective: Objective) -> None:
        if any(isinstance(part, nn.modules.batchnorm._NormBase) for part in module.modules()):  # noqa: SLF001 - no other common name
            raise UsageError("batch normalisation keeps statistics that differ by node; use GroupNorm or LayerNorm")
        self._module, self._objective = module, objective
        self._names = [name for name, _ in module.named_parameters()]
        self.shapes = tuple(tuple(one.shape) for one in module.parameters())

    def descend(
        self, parts: Parts, x: Tensor, y: Tensor, share: Tensor, *, into: Parts, keep: float, scale: float
    ) -> None:
        leaves = [part.detach().requires_grad_() for part in parts]
        with torch.enable_grad():
            outputs = self._answers(leaves, x, each=True)  # (n, B, K)
        slopes = slopes_of(self._objective, outputs.detach().transpose(1, 2), y, share)
        gradients = torch.autograd.grad(outputs, leaves, slopes.transpose(1, 2), allow_unused=True)
        for one, gradient in zip(into, gradients, strict=True):
            one.mul_(keep)
            if gradient is not None:
                one.add_(gradient, alpha=scale)

    def outputs(self, parts: Parts, x: Tensor) -> Tensor:
        self._module.eval()
        answers = self._answers(list(parts), x, each=False).transpose(1, 2)
        self._module.train()
        return answers

    def _answers(self, parts: list[Tensor], x: Tensor, *, each: bool) -> Tensor:
        def one(parameters: dict[str, Tensor], samples: Tensor) -> Tensor:
            out: Tensor = functional_call(self._module, parameters, (samples,))
            return out

        named = dict(zip(self._names, parts, strict=True))
        try:
            out: Tensor = vmap(one, in_dims=(0, 0 if each else None), randomness="different")(named, x)
        except RuntimeError as error:
            raise UsageError(f"this model cannot run for many nodes at once: {error}") from error
        return out
