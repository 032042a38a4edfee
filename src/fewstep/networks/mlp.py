"""A residual MLP for vectors (and, flattened, for small images)."""

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import silu

from fewstep.networks.base import Network, NetworkConfig
from fewstep.networks.embedding import TimesEmbedding


class MLP(Network):
    """`depth` residual blocks `h + W_2 silu(W_1 h + embedding)` of the given width; items of any shape, flattened."""

    def __init__(self, config: "MLPConfig", item_shape: tuple[int, ...], inputs: int, times: int):
        super().__init__()
        self.config = config
        d, width = math.prod(item_shape), config.width
        self.into = nn.Linear(inputs * d, width)
        self.embedding = TimesEmbedding(
            times, config.depth * width, width=width, blocks=1, num_classes=config.num_classes
        )
        self.first = nn.ModuleList(nn.Linear(width, width) for _ in range(config.depth))
        self.second = nn.ModuleList(nn.Linear(width, width) for _ in range(config.depth))
        self.out = nn.Linear(width, d)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, times: Tensor, cond: Tensor | None = None) -> Tensor:
        h = self.into(x.flatten(1))
        embeddings = self.embedding(times, cond).chunk(len(self.first), dim=1)
        for first, second, embedding in zip(self.first, self.second, embeddings, strict=True):
            h = h + second(silu(first(silu(h)) + embedding))
        return self.out(silu(h)).reshape(x.shape[0], -1, *x.shape[2:])


@dataclass(frozen=True, kw_only=True)
class MLPConfig(NetworkConfig):
    """A residual MLP: `depth` blocks of `width` units."""

    width: int = 256
    depth: int = 3

    def build(self, item_shape: tuple[int, ...], inputs: int, times: int) -> MLP:
        return MLP(self, item_shape, inputs, times)
