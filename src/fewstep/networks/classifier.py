"""A small convolutional classifier whose penultimate layer gives features for a Frechet distance."""

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu


class Classifier(nn.Module):
    """Two convolutions and two linear maps; items `(batch, channels, height, width)`, sides of at least 4.

    `features` are the 128 activations of the penultimate layer before the ReLU (the paper's appendix D).
    """

    FEATURES = 128

    def __init__(self, item_shape: tuple[int, ...], num_classes: int, width: int = 32):
        super().__init__()
        channels, height, rows = item_shape
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.penultimate = nn.Linear(2 * width * (height // 4) * (rows // 4), self.FEATURES)
        self.last = nn.Linear(self.FEATURES, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """`(batch, 128)`, before the ReLU."""
        h = max_pool2d(relu(self.first(x)), 2)
        h = max_pool2d(relu(self.second(h)), 2)
        return self.penultimate(h.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(batch, num_classes)`."""
        return self.last(relu(self.features(x)))

    @torch.no_grad()
    def all_features(self, x: Tensor, block: int = 1024) -> Tensor:
        """The features of many items, block by block."""
        return torch.cat([self.features(part) for part in x.split(block)])
