"""The embedding of several times (and a class), mixed by a residual MLP.

Each time in [0, 1] becomes sines and cosines of geometrically spaced frequencies. The frequencies stay low: a
derivative in time is taken through them, and feeding `1000 t` to the usual embedding costs two digits of its accuracy.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from fewstep.errors import UserError


class ResidualBlock(nn.Module):
    """`h + W_2 silu(W_1 silu(h))`, the last map starting at zero."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.second(silu(self.first(silu(h))))


class TimesEmbedding(nn.Module):
    """`(batch, times)` in [0, 1], and labels `(batch,)` if there are classes -> `(batch, out)`.

    `features` sines and cosines per time with frequencies from `1` to `max_frequency` (radians per unit of time), a
    linear map to `width`, `blocks` residual blocks, a linear map to `out`.
    """

    frequencies: Tensor

    def __init__(
        self,
        times: int,
        out: int,
        *,
        width: int = 256,
        features: int = 64,
        blocks: int = 2,
        max_frequency: float = 100.0,
        num_classes: int = 0,
    ):
        super().__init__()
        spread = torch.linspace(0, math.log(max_frequency), features // 2)
        self.register_buffer("frequencies", spread.exp(), persistent=False)
        self.into = nn.Linear(times * 2 * (features // 2), width)
        self.blocks = nn.Sequential(*[ResidualBlock(width) for _ in range(blocks)])
        self.out = nn.Linear(width, out)
        self.classes = nn.Embedding(num_classes, width) if num_classes else None

    def forward(self, times: Tensor, cond: Tensor | None = None) -> Tensor:
        if (cond is None) != (self.classes is None):
            raise UserError("labels go with a network of num_classes > 0, and such a network needs labels")
        phase = times[..., None] * self.frequencies.to(times.dtype)
        h = self.into(torch.cat([phase.sin(), phase.cos()], dim=-1).flatten(1))
        if self.classes is not None:
            h = h + self.classes(cond)
        return self.out(silu(self.blocks(h)))
