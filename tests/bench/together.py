"""Many models of one shape trained as plain torch does it: by products over nodes, by `vmap`, one after the other.

The first is the bound that the fleet is measured by. It does nothing but train and take one mean: no evaluation, no
faults, no figures, and no groups.
"""

import numpy as np
import torch
from lepton.simulations.fleet.population import Population
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional

BATCH, RATE = 16, 0.1
CLASSES = 10


def table_of(population: Population) -> tuple[Tensor, Tensor]:
    """Return everybody's samples, (N, most), and how many each has, (N,)."""
    counts = torch.from_numpy(population.counts)
    table = torch.zeros(population.nodes, int(counts.max()), dtype=torch.long)
    for node, own in enumerate(np.split(population.order, population.starts[1:-1])):
        table[node, : len(own)] = torch.from_numpy(own)
    return table, counts


class Bound:
    """An MLP of one hidden layer, for all nodes at once."""

    def __init__(self, population: Population, hidden: int) -> None:
        self.x, self.y = population.inputs, population.labels
        self.table, self.counts = table_of(population)
        nodes, features = population.nodes, self.x.shape[1]
        self.W1 = (torch.rand(hidden, features) / 4 - 1 / 8).repeat(nodes, 1, 1)
        self.W2 = (torch.rand(CLASSES, hidden) / 4 - 1 / 8).repeat(nodes, 1, 1)
        self.b1, self.b2 = torch.zeros(nodes, 1, hidden), torch.zeros(nodes, 1, CLASSES)

    def round(self) -> None:
        most = self.table.shape[1]
        order = torch.rand(self.table.shape).masked_fill_(torch.arange(most) >= self.counts[:, None], 2).argsort(1)
        shuffled = self.table.gather(1, order)
        for start in range(0, most, BATCH):
            index = shuffled[:, start : start + BATCH]  # (N, B)
            sizes = (self.counts - start).clamp(0, BATCH)[:, None]
            share = (torch.arange(index.shape[1]) < sizes) / sizes.clamp(min=1)
            x = self.x[index]
            a = torch.baddbmm(self.b1, x, self.W1.transpose(1, 2)).relu_()
            z = torch.baddbmm(self.b2, a, self.W2.transpose(1, 2))
            s2 = (z.softmax(2) - functional.one_hot(self.y[index], CLASSES)) * share[..., None]
            s1 = torch.bmm(s2, self.W2) * (a > 0)
            self.W2.baddbmm_(s2.transpose(1, 2), a, alpha=-RATE)
            self.b2.sub_(s2.sum(1, keepdim=True), alpha=RATE)
            self.W1.baddbmm_(s1.transpose(1, 2), x, alpha=-RATE)
            self.b1.sub_(s1.sum(1, keepdim=True), alpha=RATE)
        for one in (self.W1, self.b1, self.W2, self.b2):
            one.copy_(one.mean(0, keepdim=True).expand_as(one))


class Mapped:
    """Any module by `torch.func.vmap` over its gradient."""

    def __init__(self, population: Population, module: nn.Module) -> None:
        self.x, self.y = population.inputs, population.labels
        self.table, self.counts = table_of(population)
        self.parameters, _ = stack_module_state([module] * population.nodes)

        def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor, share: Tensor) -> Tensor:
            outputs = functional_call(module, parameters, (x,))
            return (functional.cross_entropy(outputs, y, reduction="none") * share).sum()

        self._gradients = vmap(grad(loss))

    def round(self) -> None:
        for start in range(0, self.table.shape[1], BATCH):
            index = self.table[:, start : start + BATCH]
            sizes = (self.counts - start).clamp(0, BATCH)[:, None]
            share = (torch.arange(index.shape[1]) < sizes) / sizes.clamp(min=1)
            gradients = self._gradients(self.parameters, self.x[index], self.y[index], share)
            with torch.no_grad():
                for name, one in self.parameters.items():
                    one.sub_(gradients[name], alpha=RATE)
        with torch.no_grad():
            for one in self.parameters.values():
                one.copy_(one.mean(0, keepdim=True).expand_as(one))


class Loop:
    """One node after the other, each with a module of its own: the way of simulators that run a node's own code."""

    def __init__(self, population: Population, modules: list[nn.Module]) -> None:
        self.modules = modules
        self.x, self.y = population.inputs, population.labels
        self.own = [torch.from_numpy(part) for part in np.split(population.order, population.starts[1:-1])]

    def round(self) -> None:
        for module, own in zip(self.modules, self.own, strict=True):
            for index in own[torch.randperm(len(own))].split(BATCH):
                functional.cross_entropy(module(self.x[index]), self.y[index]).backward()
                with torch.no_grad():
                    for one in module.parameters():
                        if one.grad is not None:
                            one.sub_(one.grad, alpha=RATE)
                            one.grad = None
        with torch.no_grad():
            for same in zip(*(module.parameters() for module in self.modules), strict=True):
                mean = torch.stack(list(same)).mean(0)
                for one in same:
                    one.copy_(mean)
