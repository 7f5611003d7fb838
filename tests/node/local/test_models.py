"""A model is the same whole, in shards and on every node; a description out of bounds costs nothing."""

import itertools
import math
import subprocess
import sys
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.errors import UsageError
from lepton.node import models, shapes
from lepton.node.shapes import ModelSpec

MLP = ModelSpec(architecture="mlp", inputs=(64,), classes=10, seed=7)
RELU = ModelSpec(architecture="mlp", inputs=(1, 8, 8), classes=10, hidden=32, hidden_activation="relu", seed=7)
CNN = ModelSpec(architecture="cnn", inputs=(64,), classes=10, seed=7)
CNN_28 = ModelSpec(architecture="cnn", inputs=(1, 28, 28), classes=10, hidden=16, seed=7)
LSTM = ModelSpec(architecture="lstm", inputs=(8, 5), classes=10, hidden=12, seed=7)
ALL = pytest.mark.parametrize("spec", [MLP, RELU, CNN, CNN_28, LSTM], ids=["mlp", "relu", "cnn", "cnn-28", "lstm"])


def batch(spec: ModelSpec, size: int = 33) -> torch.Tensor:
    return torch.rand(size, *spec.inputs, generator=torch.Generator().manual_seed(1))


def test_the_mlp_is_the_network_of_the_mission() -> None:
    chain = models.build(MLP)
    w1, b1 = models.layer_tensors(chain, 0).values()
    w2, b2 = models.layer_tensors(chain, 1).values()
    x = batch(MLP)
    a1 = 1 / (1 + np.exp(-(x.numpy() @ w1.T + b1)))
    z2 = a1 @ w2.T + b2
    y = np.exp(z2) / np.exp(z2).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(chain(x).detach().numpy(), z2, atol=1e-5)
    np.testing.assert_allclose(chain.probabilities(x).numpy(), y, atol=1e-6)


@ALL
def test_every_division_into_shards_gives_the_same_bits(spec: ModelSpec) -> None:
    count = shapes.layer_count(spec)
    whole = models.build(spec).probabilities(batch(spec))
    for cuts in itertools.product((False, True), repeat=count - 1):
        ends = [index + 1 for index, cut in enumerate(cuts) if cut] + [count]
        x, first = batch(spec), 0
        for end in ends:
            shard = models.build_layers(spec, first, end)
            x = models.run_layers(shard, first, end, x)
            assert tuple(x.shape[1:]) == shapes.layer_output_shape(spec, end - 1)
            first = end
        assert torch.equal(x, whole)


@ALL
def test_a_shard_holds_its_layers_and_no_others(spec: ModelSpec) -> None:
    shard = models.build_layers(spec, 1, 2)
    assert sum(4 * p.numel() for p in shard.parameters()) == shapes.layer_sizes_bytes(spec)[1]
    with pytest.raises(UsageError, match="layer 0 is not among the layers 1 to 1"):
        shard.layer(0)
    with pytest.raises(UsageError, match="layers 0:1 were asked for, 1:2 are loaded"):
        models.run_layers(shard, 0, 1, batch(spec))


@ALL
def test_what_the_description_says_is_what_is_built(spec: ModelSpec) -> None:
    chain = models.build(spec)
    x = batch(spec)
    for index in range(shapes.layer_count(spec)):
        tensors = models.layer_tensors(chain, index)
        found = {name: (str(tensor.dtype), tensor.shape) for name, tensor in tensors.items()}
        assert found == shapes.layer_schema(spec, index)
        assert sum(tensor.nbytes for tensor in tensors.values()) == shapes.layer_sizes_bytes(spec)[index]
        assert tuple(x.shape[1:]) == shapes.layer_input_shape(spec, index)
        x = models.run_layers(chain, index, index + 1, x)
    assert models.parameter_vector(chain).shape == (shapes.parameter_count(spec),)
    torch.testing.assert_close(x.sum(dim=1), torch.ones(33))


def test_the_lstm_is_that_of_torch() -> None:
    chain, theirs = models.build(LSTM), torch.nn.LSTM(5, 12, batch_first=True)
    weight, recurrent, bias = (torch.from_numpy(tensor) for tensor in models.layer_tensors(chain, 0).values())
    named = {"weight_ih_l0": weight, "weight_hh_l0": recurrent, "bias_ih_l0": bias, "bias_hh_l0": torch.zeros(48)}
    theirs.load_state_dict(named)
    x = batch(LSTM)
    torch.testing.assert_close(chain.layer(0)(x), theirs(x)[0][:, -1])
    for parameter in chain.layer(0).parameters():  # as torch starts them: within 1/sqrt(hidden)
        assert 0.9 / math.sqrt(12) < float(parameter.detach().abs().max()) <= 1 / math.sqrt(12)


def test_the_cnn_of_the_digits_is_small() -> None:
    assert shapes.parameter_count(CNN) == 12_010
    assert shapes.parameter_count(MLP) == 4_810


@pytest.mark.parametrize("inputs", [(64,), (8, 8), (1, 8, 8)])
def test_a_cnn_takes_an_image_in_any_of_its_shapes(inputs: tuple[int, ...]) -> None:
    spec = msgspec.structs.replace(CNN, inputs=inputs)
    y = models.build(spec).probabilities(batch(CNN).reshape(33, *inputs))
    assert torch.equal(y, models.build(CNN).probabilities(batch(CNN)))


@ALL
def test_initial_values_follow_from_the_seed_alone(spec: ModelSpec) -> None:
    before = torch.get_rng_state()
    first, second = (models.parameter_vector(models.build(spec)) for _ in range(2))
    other = models.parameter_vector(models.build(msgspec.structs.replace(spec, seed=8)))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(first, second)
    assert np.isfinite(first).all()
    assert (first != other).mean() > 0.99


@ALL
def test_parameters_go_out_and_in(spec: ModelSpec) -> None:
    source, target = models.build(spec), models.build(msgspec.structs.replace(spec, seed=9))
    models.load_vector(target, models.parameter_vector(source))
    np.testing.assert_array_equal(models.parameter_vector(target), models.parameter_vector(source))
    target = models.build(msgspec.structs.replace(spec, seed=9))
    for index in range(shapes.layer_count(spec)):
        models.load_layer(target, index, models.layer_tensors(source, index))
    np.testing.assert_array_equal(models.parameter_vector(target), models.parameter_vector(source))


def test_a_vector_that_is_taken_out_is_a_copy() -> None:
    chain = models.build(MLP)
    vector = models.parameter_vector(chain)
    vector[:] = 0
    models.layer_tensors(chain, 0)["weight"][:] = 0
    assert models.parameter_vector(chain).any()


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (np.zeros(4809, np.float32), r"takes float32 \(4810,\), got float32 \(4809,\)"),
        (np.zeros((1, 4810), np.float32), r"got float32 \(1, 4810\)"),
        (np.zeros(4810, np.float64), r"got float64"),
        (np.full(4810, np.nan, np.float32), "NaN or infinity"),
    ],
)
def test_a_vector_that_does_not_fit_changes_nothing(vector: Any, message: str) -> None:
    chain = models.build(MLP)
    before = models.parameter_vector(chain)
    with pytest.raises(UsageError, match=message):
        models.load_vector(chain, vector)
    np.testing.assert_array_equal(models.parameter_vector(chain), before)


def test_a_layer_that_does_not_fit_changes_nothing() -> None:
    chain = models.build(MLP)
    before = models.parameter_vector(chain)
    good = models.layer_tensors(chain, 0)
    for bad in ({}, {**good, "more": good["bias"]}, {**good, "bias": good["bias"][:1]}):
        with pytest.raises(UsageError, match="layer 0 is made of"):
            models.load_layer(chain, 0, bad)
    np.testing.assert_array_equal(models.parameter_vector(chain), before)


@pytest.mark.parametrize("shape", [(3, 63), (64,), (3, 8, 8), (3, 64, 1)])
def test_a_batch_of_the_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"layer 0 takes float32 \(batch, 64\), got"):
        models.run_layers(models.build(MLP), 0, 2, torch.zeros(shape))
    with pytest.raises(UsageError, match=r"got torch.float64"):
        models.run_layers(models.build(MLP), 0, 2, torch.zeros(3, 64, dtype=torch.float64))


def test_an_empty_batch_has_an_empty_answer() -> None:
    assert models.build(MLP).probabilities(torch.zeros(0, 64)).shape == (0, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": ()}, "not valid.*inputs"),
        ({"inputs": (0,)}, "not valid.*inputs"),
        ({"inputs": (2**40,)}, "not valid.*inputs"),
        ({"inputs": (1024, 1024)}, "1,048,576 numbers is more than the 65,536"),
        ({"classes": 0}, "not valid.*classes"),
        ({"classes": 1}, "a model of classes has 2 of them at least"),
        ({"classes": 10**9}, "not valid.*classes"),
        ({"hidden": 0}, "not valid.*hidden"),
        ({"hidden": np.int64(4)}, "not valid"),
        ({"seed": -1}, "not valid.*seed"),
        ({"architecture": "transformer"}, "not valid.*architecture"),
        ({"inputs": (65_536,), "hidden": 4096}, "parameters is more than the 16,777,216 allowed"),
        ({"architecture": "cnn", "inputs": (63,)}, r"a cnn takes .* not \(63\)"),
        ({"architecture": "cnn", "inputs": (3, 8, 8)}, r"a cnn takes .* not \(3, 8, 8\)"),
        ({"architecture": "cnn", "inputs": (3, 40)}, "3 x 40 is too small"),
        ({"architecture": "cnn", "inputs": (256, 256), "hidden": 512}, "unfolds too far"),
        ({"architecture": "lstm"}, r"an lstm takes samples \(T, F\), T steps of F features, not \(64\)"),
        ({"architecture": "lstm", "inputs": (1, 8, 8)}, r"an lstm takes .* not \(1, 8, 8\)"),
        ({"architecture": "lstm", "inputs": (65_536, 1)}, "over 65,536 steps unfolds too far"),
        ({"architecture": "lstm", "inputs": (8, 8), "hidden": 4096}, "parameters is more than"),
    ],
)
def test_a_description_out_of_bounds_is_refused(changes: dict[str, Any], message: str) -> None:
    spec = msgspec.structs.replace(MLP, **changes)
    for use in (shapes.check_spec, models.build, shapes.layer_sizes_bytes, shapes.layer_count):
        with pytest.raises(UsageError, match=message):
            use(spec)


def test_a_layer_or_run_that_does_not_exist_is_refused() -> None:
    for first, end in [(0, 3), (1, 1), (-1, 1), (2, 3)]:
        with pytest.raises(UsageError, match=f"no run of layers {first}:{end} in a model of 2"):
            models.build_layers(MLP, first, end)
    for index in (-1, 2):
        with pytest.raises(UsageError, match=f"no layer {index} in a model of 2"):
            shapes.layer_schema(MLP, index)


spec_data = st.fixed_dictionaries(
    {
        "architecture": st.sampled_from(["mlp", "cnn", "lstm"]),
        "inputs": st.lists(st.integers(0, 70_000) | st.integers(1, 40), max_size=4),
        "classes": st.integers(0, 5000) | st.integers(2, 12),
        "hidden": st.integers(0, 5000) | st.integers(1, 12),
        "hidden_activation": st.sampled_from(["sigmoid", "relu"]),
        "seed": st.integers(-1, 2**63),
    }
)


@given(spec_data)
def test_whatever_a_stranger_describes_is_bounded_or_refused(data: dict[str, Any]) -> None:
    try:
        spec = msgspec.msgpack.decode(msgspec.msgpack.encode(data), type=ModelSpec)
        sizes = shapes.layer_sizes_bytes(spec)
    except (msgspec.ValidationError, UsageError):
        return
    assert sum(sizes) <= 4 * shapes.PARAMETERS_MAX
    assert math.prod(shapes.layer_input_shape(spec, 0)) <= shapes.FEATURES_MAX
    assert shapes.layer_output_shape(spec, len(sizes) - 1) == (spec.classes,)


def test_a_description_travels_and_keeps_its_meaning() -> None:
    for spec in (MLP, RELU, CNN, LSTM):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=ModelSpec) == spec


def test_building_and_training_leave_torchs_compiler_alone() -> None:
    """Importing it costs each node more than a second and 75 MB; `torch.optim` and running layers on `meta` do it."""
    program = """
import sys
import numpy as np
from lepton.node.learning.data import Dataset
from lepton.node.learning.settings import TrainSettings
from lepton.node.learning.trainer import Trainer
from lepton.node.shapes import ModelSpec, layer_output_shape
for architecture in ("mlp", "cnn", "lstm"):
    spec = ModelSpec(architecture=architecture, inputs=(8, 8), classes=3)
    layer_output_shape(spec, 0)
    x, y = np.zeros((8, 64), np.float32), np.arange(8) % 3
    trainer = Trainer(spec, Dataset(x=x, y=y, classes=3, x_test=x, y_test=y), TrainSettings())
    trainer.run_steps(2)
    trainer.evaluate()
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
