"""Small classifiers whose penultimate layer gives features for a Frechet distance."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu


class FeatureClassifier(nn.Module, ABC):
    """A classifier of items `(batch, channels, height, width)`, sides of at least 4.

    `features` are the 128 activations of the penultimate layer before the ReLU (the paper's appendix D).
    """

    FEATURES = 128

    last: nn.Linear

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """`(batch, 128)`, before the ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(batch, num_classes)`."""
        return self.last(relu(self.features(x)))

    @torch.no_grad()
    def all_features(self, x: Tensor, block: int = 1024) -> Tensor:
        """The features of many items, block by block."""
        return torch.cat([self.features(part) for part in x.split(block)])


class Classifier(FeatureClassifier):
    """Two convolutions and two linear maps (the paper's appendix D)."""

    def __init__(self, item_shape: tuple[int, ...], num_classes: int, width: int = 32):
        super().__init__()
        channels, height, rows = item_shape
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.penultimate = nn.Linear(2 * width * (height // 4) * (rows // 4), self.FEATURES)
        self.last = nn.Linear(self.FEATURES, num_classes)

    def features(self, x: Tensor) -> Tensor:
        h = max_pool2d(relu(self.first(x)), 2)
        h = max_pool2d(relu(self.second(h)), 2)
        return self.penultimate(h.flatten(1))


class ResNetClassifier(FeatureClassifier):
    """A small residual network for colour images: three widths, two residual blocks, the mean over the pixels.

    0.48 M parameters at `width` 32. Batch normalisation: call `eval()` before `features`.
    """

    def __init__(self, item_shape: tuple[int, ...], num_classes: int, width: int = 32):
        super().__init__()
        self.body = nn.Sequential(
            _convolution(item_shape[0], width),
            nn.MaxPool2d(2),
            _convolution(width, 2 * width),
            Residual(2 * width),
            nn.MaxPool2d(2),
            _convolution(2 * width, 4 * width),
            Residual(4 * width),
        )
        self.penultimate = nn.Linear(4 * width, self.FEATURES)
        self.last = nn.Linear(self.FEATURES, num_classes)

    def features(self, x: Tensor) -> Tensor:
        return self.penultimate(self.body(x).mean(dim=(2, 3)))


class Residual(nn.Module):
    """`relu(x + f(x))`, f two normalised convolutions (He et al. 2016, arXiv 1512.03385)."""

    def __init__(self, width: int):
        super().__init__()
        self.first = _convolution(width, width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return relu(x + self.norm(self.second(self.first(x))))


def _convolution(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    )
