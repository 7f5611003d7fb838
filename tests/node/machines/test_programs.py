"""Traced models: whatever the cut, the same predictions as the module's own; and a stranger's program does no harm."""

import itertools
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from lepton.mesh.errors import PeerError, UsageError
from lepton.node.programs.description import Description
from lepton.node.programs.folder import layer_bytes, layers_of, open_folder, save
from lepton.node.programs.program import Node, Program, Ref, Several, Value, Weight, check, read_program, write_program
from lepton.node.programs.run import RESULT_MAX, Stage, batch_max, largest_result
from lepton.node.programs.trace import Traced, trace
from safetensors.torch import load_file
from torch import Tensor, nn


class Skip(nn.Module):
    """A convolution beside a shortcut, batch norm, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.out = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = x + torch.relu(self.second(x))
        return self.out(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))  # type: ignore[no-any-return]


class Sequence(nn.Module):
    """An LSTM of two layers, and from its last state some numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(5, 7, num_layers=2, batch_first=True), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])  # type: ignore[no-any-return]


class Two(nn.Module):
    """Two inputs, two results, weights that two layers share, and a part that is never asked."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.mix, self.unused = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, ids: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        h = self.mix(self.words(ids).mean(1)) * scale
        return h, h @ self.words.weight.T


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Dropout(0.5), nn.LayerNorm(6), nn.Linear(6, 2), nn.Softmax(1))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "mlp": (mlp, (torch.randn(1, 4),)),
    "cnn": (Skip, (torch.randn(2, 3, 8, 8),)),
    "lstm": (Sequence, (torch.randn(2, 6, 5),)),
    "two": (Two, (torch.randint(0, 11, (2, 4)), torch.rand(2, 1))),
}


@pytest.fixture(scope="module", params=list(MODELS))
def traced(request: pytest.FixtureRequest) -> tuple[nn.Module, Traced, list[Tensor]]:
    torch.manual_seed(3)
    make, example = MODELS[request.param]
    module = make().eval()
    return module, trace(module, example), [torch.cat([tensor, tensor.flip(0), tensor]) for tensor in example]


def chained(traced: Traced, program: Program, edges: tuple[int, ...], inputs: list[Tensor]) -> list[Tensor]:
    for first, end in itertools.pairwise(edges):
        inputs = Stage(program, first, end, traced.weights).run(inputs)
    return inputs


def test_a_program_predicts_what_its_module_predicts_wherever_it_is_cut(
    traced: tuple[nn.Module, Traced, list[Tensor]],
) -> None:
    module, found, inputs = traced
    program = read_program(write_program(found.program))  # what travels is the written form
    with torch.no_grad():
        wanted = module(*inputs)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    assert program.layers >= 2
    ends = (0, program.layers)
    for edges in {ends, tuple(range(program.layers + 1)), *((0, cut, program.layers) for cut in range(1, ends[1]))}:
        for mine, its in zip(chained(found, program, edges, inputs), wanted, strict=True):
            assert torch.allclose(mine, its, rtol=1e-5, atol=1e-6), edges


def test_a_stage_takes_only_the_weights_of_its_layers(traced: tuple[nn.Module, Traced, list[Tensor]]) -> None:
    _, found, inputs = traced
    used = layers_of(found.program)
    assert set(used) == set(found.weights)
    assert sum(layer_bytes(found.program)) >= sum(tensor.nbytes for tensor in found.weights.values())
    for layer in range(found.program.layers):
        own = {name: tensor for name, tensor in found.weights.items() if layer in used[name]}
        inputs = Stage(found.program, layer, layer + 1, own).run(inputs)
        if own:
            with pytest.raises(UsageError, match="is not there"):
                Stage(found.program, layer, layer + 1, {})


def test_a_folder_gives_back_the_program_that_was_saved(tmp_path: Path) -> None:
    found = trace(mlp(), (torch.randn(2, 4),))
    save(found, tmp_path, Description(source="a test"))
    folder = open_folder(tmp_path)
    assert folder.program == found.program
    assert folder.description.source == "a test"
    weights = load_file(tmp_path / "model.safetensors")
    x = torch.randn(3, 4)
    assert torch.equal(
        Stage(folder.program, 0, 2, weights).run([x])[0], Stage(found.program, 0, 2, found.weights).run([x])[0]
    )
    (tmp_path / "program.json").write_bytes(b'{"inputs": {}}')
    with pytest.raises(UsageError, match=str(tmp_path)):
        open_folder(tmp_path)


def test_a_resnet_is_cut_into_its_convolutions() -> None:
    torch.manual_seed(0)
    module = resnet20()
    images = torch.randn(2, 3, 32, 32)
    found = trace(module, (images,))
    assert found.program.layers == 20  # 19 convolutions and a linear layer
    with torch.no_grad():
        wanted = module(images)
    edges = (0, 7, 8, 15, 20)
    assert torch.allclose(chained(found, found.program, edges, [images])[0], wanted, rtol=1e-4, atol=1e-5)


# -- what a stranger may send -----------------------------------------------------------------------------------------


def small(*nodes: Node, **changes: object) -> Program:
    program = Program(
        inputs={"x": Value(dtype="float32", shape=("batch", 4))},
        tensors={"w": Weight(stored="w", dtype="float32", shape=(4, 4))},
        symbols={"batch": (1, 256)},
        nodes=nodes or (Node(name="y", op="linear.default", args=(Ref(name="x"), Ref(name="w")), value=FOUR),),
        outputs=("y",),
        cuts=(),
    )
    return msgspec.structs.replace(program, **changes)


FOUR = Value(dtype="float32", shape=("batch", 4))


@pytest.mark.parametrize(
    "op",
    ["from_file.default", "add_.Tensor", "as_strided.default", "rand.default", "os.system", "operator.attrgetter",
     "linear.nothing", "_foreach_add.List", "set_.default", "resize_.default", "randn_like.default"],
)  # fmt: skip
def test_an_operation_that_is_not_on_the_list_is_refused(op: str) -> None:
    program = small(Node(name="y", op=op, args=(Ref(name="x"),), value=FOUR))
    with pytest.raises(UsageError, match="does not run the operation"):
        Stage(program, 0, 1, {"w": torch.zeros(4, 4)})
    with pytest.raises(UsageError, match="does not run the operation"):
        batch_max(program)


@pytest.mark.parametrize(
    ("program", "told"),
    [
        (small(Node(name="y", op="neg.default", args=(Ref(name="z"),), value=FOUR)), "not made before"),
        (small(Node(name="x", op="neg.default", args=(Ref(name="x"),), value=FOUR)), "makes 'x' twice"),
        (small(outputs=("nowhere",)), "nothing in it makes"),
        (small(cuts=(1,)), "not inside"),
        (small(symbols={}), "how many samples"),
        (small(inputs={"x": Value(dtype="float32", shape=(4, 4))}), "begin with the batch"),
        (small(inputs={"x": Value(dtype="float32", shape=("batch", "n"))}), "nowhere explained"),
        (small(inputs={"w": FOUR, "x": FOUR}), "same name"),
    ],
)
def test_a_program_that_does_not_hang_together_is_refused(program: Program, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        check(program)


def test_a_cut_through_what_cannot_travel_is_refused() -> None:
    pair = Node(name="pair", op="split.Tensor", args=(Ref(name="x"), 2, 1))
    part = Node(
        name="y", op="operator.getitem", args=(Ref(name="pair"), 0), value=Value(dtype="float32", shape=("batch", 2))
    )
    check(small(pair, part))
    with pytest.raises(UsageError, match="cannot travel"):
        check(small(pair, part, cuts=(1,)))


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"nodes": 1}', b"\xff" * 9, b"[" * 100_000])
def test_bytes_that_are_no_program_are_refused(data: bytes) -> None:
    with pytest.raises(UsageError, match="not a valid program"):
        read_program(data)


def test_a_program_that_unfolds_too_far_is_refused_before_it_takes_memory() -> None:
    huge = Node(name="y", op="full.default", args=(Several(items=(2**30, 2**20)), 1.0), value=FOUR)
    with pytest.raises(UsageError, match="unfolds into"):
        batch_max(small(huge))
    outer = small(
        Node(name="a", op="repeat.default", args=(Ref(name="x"), Several(items=(2**15, 2**15))), value=None),
        Node(name="y", op="neg.default", args=(Ref(name="a"),), value=FOUR),
    )
    with pytest.raises(UsageError, match="unfolds into"):
        batch_max(outer)


def test_a_batch_is_as_large_as_the_bound_allows() -> None:
    each = RESULT_MAX // 4 // 10  # repeats of one sample of four numbers: ten samples keep the bound
    wide = small(
        Node(name="a", op="repeat.default", args=(Ref(name="x"), Several(items=(1, each))), value=None),
        Node(name="y", op="neg.default", args=(Ref(name="a"),), value=FOUR),
    )
    most = batch_max(wide)
    assert most == 10
    assert largest_result(wide, {"batch": most}) <= RESULT_MAX < largest_result(wide, {"batch": most + 1})


@pytest.mark.parametrize(
    "arrays",
    [
        [],
        [torch.zeros(2, 4), torch.zeros(2, 4)],
        [torch.zeros(2, 5)],
        [torch.zeros(2, 4, dtype=torch.float64)],
        [torch.zeros(0, 4)],
        [torch.zeros(257, 4)],
        [torch.zeros(4)],
        [torch.full((2, 4), float("nan"))],
    ],
)
def test_a_stage_refuses_what_its_program_does_not_take(arrays: list[Tensor]) -> None:
    stage = Stage(small(), 0, 1, {"w": torch.eye(4)})
    assert torch.equal(stage.run([torch.ones(2, 4)])[0], torch.ones(2, 4))
    with pytest.raises(PeerError):
        stage.run(arrays)


def test_weights_of_another_shape_are_refused() -> None:
    with pytest.raises(UsageError, match="it says float32"):
        Stage(small(), 0, 1, {"w": torch.eye(5)})


def test_a_model_that_branches_on_its_values_is_refused_with_the_reason() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(UsageError, match="cannot trace"):
        trace(Branches(), (torch.ones(2, 2),))


def test_a_model_that_draws_random_numbers_is_refused() -> None:
    class Draws(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    with pytest.raises(UsageError, match="does not run the operation"):
        trace(Draws(), (torch.ones(2, 2),))


# -- a ResNet-20 with shortcuts of option A (He et al. 2015), as akamaster/pytorch_resnet_cifar10 has it ---------------


class Block(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.grows, self.quarter = inputs != planes, planes // 4

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        short = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.quarter, self.quarter)) if self.grows else x
        return torch.relu(out + short)


def resnet20() -> nn.Module:
    def stage(inputs: int, planes: int, stride: int) -> nn.Sequential:
        return nn.Sequential(Block(inputs, planes, stride), Block(planes, planes, 1), Block(planes, planes, 1))

    class ResNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
            self.layer1, self.layer2, self.layer3 = stage(16, 16, 1), stage(16, 32, 2), stage(32, 64, 2)
            self.linear = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            out = self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))))
            return self.linear(nn.functional.avg_pool2d(out, out.shape[3]).flatten(1))  # type: ignore[no-any-return]

    return ResNet().eval()
