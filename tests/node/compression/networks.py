"""Networks that the tests of rounding share: one with every kind of layer, and the trained ResNet-20 of He et al."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RESNET = Path(__file__).parents[4] / "shared/data/models/resnet20/resnet20-12fca82f.th"


class Mixed(nn.Module):
    """Tokens (B, T) to logits (B, 10), through an embedding, a convolution, recurrent layers and two products."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Embedding(50, 40)
        self.mix = nn.Conv1d(40, 36, 3, padding=1)
        self.read = nn.LSTM(36, 48, num_layers=2, batch_first=True)
        self.again = nn.GRU(48, 40, batch_first=True, bidirectional=True)
        self.inner = nn.Linear(80, 40)
        self.out = nn.Linear(40, 50, bias=False)
        if tied:
            self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.relu(self.mix(self.embed(tokens).transpose(1, 2))).transpose(1, 2)
        x = self.again(self.read(x)[0])[0]
        y: Tensor = self.out(F.relu(self.inner(x[:, -1])))
        return y


class Block(nn.Module):
    """Two convolutions and a way around them; a smaller image goes around as every second pixel (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self._added, self._stride = (outputs - inputs) // 2, stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        around = F.pad(x[:, :, :: self._stride, :: self._stride], (0, 0, 0, 0, self._added, self._added))
        return F.relu(y + around)


class ResNet20(nn.Module):
    """Images (B, 3, 32, 32), scaled as CIFAR-10's, to logits (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        y: Tensor = self.linear(x.mean(dim=(2, 3)))
        return y


def trained_resnet() -> ResNet20:
    state = torch.load(RESNET, weights_only=True, map_location="cpu")["state_dict"]
    network = ResNet20()
    network.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
    return network.eval()


def photo_pieces(name: str) -> Tensor:
    """Pieces (n, 3, 32, 32) of a photograph that scikit-learn carries, at half its size, scaled as CIFAR-10 is."""
    from sklearn.datasets import load_sample_image

    photo = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1).float().div(255).unsqueeze(0)
    half = F.avg_pool2d(photo, 2)
    scaled = (half - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        3, 1, 1
    )
    pieces = F.unfold(scaled, 32, stride=16)  # (1, 3 * 32 * 32, places)
    return pieces[0].T.reshape(-1, 3, 32, 32)
