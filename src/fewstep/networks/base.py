"""What every network is: `network(x, times, cond=None) -> tensor`, built from a frozen config.

`x` is what the model concatenated on axis 1: `inputs` items of shape `item_shape`; `times` is `(batch, k)` with entries
in [0, 1]; `cond` are class labels `(batch,)` where the config has `num_classes > 0`. The result has the shape of one
item. Every network admits forward-mode differentiation in `x` and `times`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn


class Network(nn.Module, ABC):
    """A network and the config that made it."""

    config: "NetworkConfig"

    @abstractmethod
    def forward(self, x: Tensor, times: Tensor, cond: Tensor | None = None) -> Tensor:
        """`(batch, inputs * channels, ...)`, `(batch, k)`, `(batch,)` -> `(batch, channels, ...)`."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(ABC):
    """The hyper-parameters of a network; the shapes come with `build`."""

    num_classes: int = 0

    @abstractmethod
    def build(self, item_shape: tuple[int, ...], inputs: int, times: int) -> Network:
        """The network for `inputs` items of this shape and this number of times, with fresh weights."""
