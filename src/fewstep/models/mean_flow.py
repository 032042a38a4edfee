"""Mean Flow's model: the average velocity `u(z_t, r, t)` of the deterministic flow from noise to data (eq. 8-9)."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from fewstep import flow
from fewstep.models.base import ModelConfig, NetworkModel
from fewstep.networks.base import Network
from fewstep.shapes import per_item


class MeanFlow(NetworkModel):
    """`model(z, t, r)` is the flow map `z_r = z_t - (t - r) u(z_t, r, t)` (eq. 9); `z_1 ~ N(0, I)`, `z_0 = w`.

    The flow runs on the data, `w = x_0` (Geng et al., arXiv 2505.13447), or, with `standardise`, on `w = (x_0 - m) / s`,
    m the mean item and s the standard deviation of one component. The network sees `z` and the times `(t, t - r)`.
    `gaussian_skip`, which goes with `standardise`, is that of `PosteriorFlow`: `u = slope(r, t) z + network`.
    It has no diffusion and no posterior: one noise, one item.
    """

    def __init__(
        self,
        network: nn.Module,
        item_shape: tuple[int, ...],
        standardise: bool = False,
        gaussian_skip: bool = False,
    ):
        super().__init__(network, None, item_shape)
        self.standardise = standardise
        self.gaussian_skip = gaussian_skip

    def u(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """The average velocity; `r <= t` are `(batch,)`."""
        u = self.network(z, torch.stack([t, t - r], dim=1))
        return u + per_item(flow.standard_slope(r, t), z) * z if self.gaussian_skip else u

    def forward(self, z: Tensor, t: Tensor | float, r: Tensor | float) -> Tensor:
        return self.flow_map(z, t, r)

    def flow_map(self, z: Tensor, t: Tensor | float, r: Tensor | float) -> Tensor:
        """`z_r` from `z_t` `(batch, ...)`; times are numbers in [0, 1] or one per item."""
        return flow.flow_map(self.u, z, t, r)

    def encode(self, x_0: Tensor) -> Tensor:
        """`w`, where the flow ends."""
        return (x_0 - self.data_mean) / self.data_std if self.standardise else x_0

    def decode(self, w: Tensor) -> Tensor:
        """`x_0` from w."""
        return self.data_mean + self.data_std * w if self.standardise else w

    @property
    def config(self) -> "MeanFlowConfig":
        """What rebuilds this model, if its network has a `config`."""
        return MeanFlowConfig(
            network=cast(Network, self.network).config,
            standardise=self.standardise,
            gaussian_skip=self.gaussian_skip,
        )


@dataclass(frozen=True, kw_only=True)
class MeanFlowConfig(ModelConfig):
    """A Mean Flow; `standardise` runs it on data of mean 0 and variance 1, which `gaussian_skip` goes with."""

    standardise: bool = False
    gaussian_skip: bool = False

    def build(self, item_shape: tuple[int, ...]) -> MeanFlow:
        return MeanFlow(
            self.build_network(item_shape, inputs=1, times=2), item_shape, self.standardise, self.gaussian_skip
        )
