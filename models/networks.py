"""The demonstration networks: small CNNs built from what CKKS evaluates cheaply.

Convolutions, average pooling and dense layers are linear; the only non-linearity is a learned quadratic per
channel (after CryptoNets' square: Gilad-Bachrach et al., ICML 2016), one ciphertext multiplication deep.
BatchNorm stands before every quadratic, so that its input stays near unit size and encrypted values keep a
known range.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# a >= MIN_CURVATURE and |b / 2a| <= MAX_VERTEX by construction: a compiler that completes the square,
# a (x + b/2a)^2 + c', then meets neither a division by nearly nothing nor a large shift.
MIN_CURVATURE = 0.1
MAX_VERTEX = 3.0


class LearnedQuadratic(nn.Module):
    """y = a x^2 + b x + c with a, b, c learned per channel, on [n][channels] or [n][channels][h][w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # softplus(-1.4) = 0.22 and tanh(0.6) = 0.54 start every channel near 0.32 x^2 + x.
        self.curvature = nn.Parameter(torch.full((channels,), -1.4))
        self.vertex = nn.Parameter(torch.full((channels,), 0.6))
        self.offset = nn.Parameter(torch.zeros(channels))

    def coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """a, b, c, each [channels]."""
        a = MIN_CURVATURE + nn.functional.softplus(self.curvature)
        return a, 2.0 * a * MAX_VERTEX * torch.tanh(self.vertex), self.offset

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = (k.reshape(-1, *[1] * (x.dim() - 2)) for k in self.coefficients())
        return a * (x * x) + b * x + c


class FrozenQuadratic(nn.Module):
    """The same function with a, b, c as constants, shaped for its input: exports as three Mul and two Add."""

    a: Tensor
    b: Tensor
    c: Tensor

    def __init__(self, learned: LearnedQuadratic, spatial: bool) -> None:
        super().__init__()
        for name, value in zip("abc", learned.coefficients(), strict=True):
            self.register_buffer(name, value.detach().clone().reshape(-1, *[1, 1] * spatial))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a * (x * x) + self.b * x + self.c
        return y


class Normalise(nn.Module):
    """(x - mean) / std per channel on [n][channels][h][w], in the graph: clients send plain pixels."""

    mean: Tensor
    gain: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.reshape(1, -1, 1, 1).clone())
        self.register_buffer("gain", 1.0 / std.reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = (x - self.mean) * self.gain
        return y


def picture_network(mean: Tensor, std: Tensor, classes: int) -> nn.Sequential:
    """[n][channels][28][28] in [0, 1] -> logits [n][classes]; mean, std: [channels]. Three quadratics."""
    return nn.Sequential(
        Normalise(mean, std),
        nn.Conv2d(len(mean), 16, kernel_size=5, stride=2, padding=2),
        nn.BatchNorm2d(16),
        LearnedQuadratic(16),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.BatchNorm2d(32),
        LearnedQuadratic(32),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 64),
        nn.BatchNorm1d(64),
        LearnedQuadratic(64),
        nn.Linear(64, classes),
    )


def large_picture_network(mean: Tensor, std: Tensor, classes: int) -> nn.Sequential:
    """[n][channels][64][64] in [0, 1] -> logits [n][classes]; mean, std: [channels]. Three quadratics.

    The first one's input has 16,384 elements: several ciphertexts on rings below N = 2^15.
    """
    return nn.Sequential(
        Normalise(mean, std),
        nn.Conv2d(len(mean), 16, kernel_size=5, stride=2, padding=2),
        nn.BatchNorm2d(16),
        LearnedQuadratic(16),
        nn.Conv2d(16, 32, kernel_size=3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        LearnedQuadratic(32),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.BatchNorm1d(64),
        LearnedQuadratic(64),
        nn.Linear(64, classes),
    )


def digit_network(mean: Tensor, std: Tensor, classes: int) -> nn.Sequential:
    """[n][channels][8][8] in [0, 1] -> logits [n][classes]; mean, std: [channels]. One quadratic."""
    return nn.Sequential(
        Normalise(mean, std),
        nn.Conv2d(len(mean), 4, kernel_size=3, padding=1),
        nn.BatchNorm2d(4),
        LearnedQuadratic(4),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 4 * 4, classes),
    )


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al., CVPR 2016, figure 2): [n][inputs][h][w] -> [n][outputs][h/stride][w/stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        projection = nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)
        self.shortcut = (
            nn.Identity()
            if (inputs, stride) == (outputs, 1)
            else nn.Sequential(projection, nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.body(x) + self.shortcut(x))


def residual_network(mean: Tensor, std: Tensor, classes: int) -> nn.Sequential:
    """[n][channels][8][8] in [0, 1] -> logits [n][classes]: a ResNet-8 with its seven ReLUs, as people write it."""
    return nn.Sequential(
        Normalise(mean, std),
        nn.Conv2d(len(mean), 8, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Residual(8, 8, 1),
        Residual(8, 16, 2),
        Residual(16, 32, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, classes),
    )


def frozen(network: nn.Sequential) -> nn.Sequential:
    """The network in evaluation mode with constant quadratics; its other modules are shared, not copied."""
    layers: list[nn.Module] = []
    spatial = True
    for layer in network:
        spatial = spatial and not isinstance(layer, nn.Flatten)
        layers.append(FrozenQuadratic(layer, spatial) if isinstance(layer, LearnedQuadratic) else layer)
    return nn.Sequential(*layers).eval()
