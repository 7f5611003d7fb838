"""A batch norm behind a convolution, drawn into its weights: then there is one layer to round, and one less to run.

Jacob et al. 2018 (section 3.2). In inference a batch norm is a factor and a shift for each channel.
"""

from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def fold_norms(module: nn.Module) -> int:
    """Fold every batch norm that follows a convolution alone, in place, and return how many there were.

    A module whose steps torch.fx cannot follow stays as it is: 0.
    """
    try:
        nodes = list(fx.symbolic_trace(module).graph.nodes)
    except Exception:  # noqa: BLE001  whatever the module's own code raises when it is fed proxies
        return 0
    calls: dict[str, int] = {}
    for node in nodes:
        if node.op == "call_module":
            calls[node.target] = calls.get(node.target, 0) + 1
    folded = 0
    for node in nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        if calls[str(node.target)] == calls[str(before.target)] == 1:
            folded += _fold(module, str(before.target), str(node.target))
    return folded


def _fold(module: nn.Module, convolution: str, norm: str) -> bool:
    first, second = module.get_submodule(convolution), module.get_submodule(norm)
    if type(first) not in _CONVOLUTIONS or not isinstance(second, _NORMS) or second.running_mean is None:
        return False
    with torch.no_grad():
        fuse: Any = fuse_conv_bn_eval  # typed for one kind of convolution at a time
        fused = fuse(first.eval(), second.eval())
    module.set_submodule(convolution, fused)
    module.set_submodule(norm, nn.Identity())
    return True
