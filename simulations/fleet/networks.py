"""A network as the fleet trains it: one function for the gradients of many models, one for their outputs.

n models at once lie as their parameters do, each as a tensor (n, *shape) in the order of the module's parameters.
"""

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ...mesh.errors import LeptonError, UsageError
from ...node.models import Chain, Dense, build, parameter_vector
from ...node.objective import Objective
from ...node.shapes import ModelSpec
from .population import Population
from .scenario import Scenario

Parts = Sequence[Tensor]  # (n, *shape) each
Module = nn.Module | Callable[[], nn.Module]


class Network(Protocol):
    """One architecture, for any number of models of it."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Those of the parameters of one model, in order."""
        ...

    def descend(
        self, parts: Parts, x: Tensor, y: Tensor, share: Tensor, *, into: Parts, keep: float, scale: float
    ) -> None:
        """Make ``into`` = ``keep`` x ``into`` + ``scale`` x gradient; it may be ``parts`` itself.

        ``x`` (n, B, ...), ``y`` (n, B) or (n, B, K), ``share`` (n, B): the loss is the sum of share x sample's loss.
        """
        ...

    def outputs(self, parts: Parts, x: Tensor) -> Tensor:
        """Return what each of n models answers to all of T samples (T, ...), before any softmax: (n, K, T)."""
        ...


def split(models: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Return views of models (n, D), a tensor (n, *shape) for each parameter."""
    sizes = [math.prod(shape) for shape in shapes]
    return [part.unflatten(1, shape) for part, shape in zip(models.split(sizes, dim=1), shapes, strict=True)]


def made(scenario: Scenario, population: Population, module: Module | None) -> nn.Module:
    """Return the model that all begin with. Raises UsageError where there is none of that name, or it does not fit."""
    if isinstance(module, nn.Module):
        return module
    if module is not None:
        return _own(module, scenario)
    name = scenario.model.architecture
    if ":" in name:
        return _own(_factory(name), scenario)
    if name == "linear":
        return _linear(population, scenario.seed)
    if name not in {"mlp", "cnn", "lstm"}:
        raise UsageError(f"there is no architecture {name!r}; give linear, mlp, cnn, lstm or package.module:factory")
    return build(spec_of(scenario, population))


def spec_of(scenario: Scenario, population: Population) -> ModelSpec:
    """Return the description that a node would build the same model from; raises UsageError where it has none."""
    if scenario.model.architecture not in {"mlp", "cnn", "lstm"}:
        raise UsageError(f"a node's description has no {scenario.model.architecture!r}; it has mlp, cnn and lstm")
    return ModelSpec(
        architecture=scenario.model.architecture,  # type: ignore[arg-type]  # checked above
        inputs=tuple(population.inputs.shape[1:]),
        classes=population.classes,
        objective=scenario.objective,
        hidden=scenario.model.hidden,
        hidden_activation=scenario.model.hidden_activation,
        seed=scenario.seed,
    )


def network_for(module: nn.Module, objective: Objective) -> Network:
    """Return the fastest form there is of a model: written out by hand for our own chains, else `torch.func`'s."""
    from .dense import DenseNetwork
    from .modules import ModuleNetwork

    if isinstance(module, Chain) and all(isinstance(layer, Dense) for layer in module.layers):
        shapes = tuple(tuple(one.shape) for one in module.parameters())
        return DenseNetwork(shapes, objective, sigmoid=module.spec.hidden_activation == "sigmoid")
    return ModuleNetwork(module, objective)


def first_values(module: nn.Module) -> Tensor:
    """Return a model's parameters in one row, float32 (D,)."""
    return torch.from_numpy(parameter_vector(module))


def _linear(population: Population, seed: int) -> Chain:
    """Build a layer without any before it: initial values as those of an mlp's last layer of this width."""
    features = math.prod(population.inputs.shape[1:])
    spec = ModelSpec(architecture="mlp", inputs=(1,), hidden=features, classes=max(2, population.classes), seed=seed)
    last = build(spec).layer(1)
    layer = Dense(features, population.classes, None)
    layer.weight = nn.Parameter(last.get_parameter("weight").detach()[: population.classes].clone())
    layer.bias = nn.Parameter(last.get_parameter("bias").detach()[: population.classes].clone())
    return Chain(spec, 1, (layer,))


def _factory(name: str) -> Callable[[], nn.Module]:
    module, _, function = name.partition(":")
    try:
        factory: Callable[[], nn.Module] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"the model {name} cannot be found: {error}; give package.module:factory") from error
    return factory


def _own(factory: Callable[[], nn.Module], scenario: Scenario) -> nn.Module:
    name = scenario.model.architecture
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(scenario.seed)  # the same first values in every run
            model = factory()
    except LeptonError:
        raise
    except Exception as error:
        raise UsageError(f"the model {name} failed: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"{name}: returned {type(model).__name__}; return a torch.nn.Module")
    return model
