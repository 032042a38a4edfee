"""STMD's model: a Mean Flow of the posterior, `u(z_t, r, t | x_tau, tau)` (eq. 20)."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from fewstep.flow import standard_slope
from fewstep.models.base import ModelConfig, NetworkPosteriorModel
from fewstep.networks.base import Network
from fewstep.posterior import FlowPosterior
from fewstep.scaling import IdentityScaling, Scaling
from fewstep.schedule import Schedule, VPSchedule
from fewstep.shapes import per_item


class PosteriorFlow(NetworkPosteriorModel):
    """`model(x_tau, tau)` is the law of `x_0 = offset + scale (z - u(z, 0, 1 | x_tau, tau))`, z ~ N(0, I) (eq. 20).

    The network sees `z` and `x_tau` concatenated on axis 1 and the three times `(t, t - r, tau)`, as the paper found
    best. With the identity scaling this is the paper's model. `PosteriorFlow(network, schedule, scaling, item_shape)`.

    With `gaussian_skip` the network learns what is left of u when the velocity of a standard normal `w` is taken off,
    `u = slope(r, t) z + network` (`flow.standard_slope`; our own). With the Gaussian scaling, w is near such a law, and
    at t = r = 1 what is left is minus the posterior's mean of w, which does not depend on z.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        scaling: Scaling,
        item_shape: tuple[int, ...],
        gaussian_skip: bool = False,
    ):
        super().__init__(network, schedule, scaling, item_shape)
        self.gaussian_skip = gaussian_skip

    def u(self, z: Tensor, r: Tensor, t: Tensor, x_tau: Tensor, tau: Tensor) -> Tensor:
        """The average velocity of the flow of `w` with `(x_tau, tau)` held; `r <= t` and tau are `(batch,)`."""
        u = self.network(torch.cat([z, x_tau], dim=1), torch.stack([t, t - r, tau], dim=1))
        return u + per_item(standard_slope(r, t), z) * z if self.gaussian_skip else u

    def forward(self, x_tau: Tensor, tau: Tensor | float) -> FlowPosterior:
        return FlowPosterior(self.u, self.decode, x_tau, self.times(x_tau, tau))

    @property
    def config(self) -> "PosteriorFlowConfig":
        """What rebuilds this model, if its network has a `config`."""
        return PosteriorFlowConfig(
            network=cast(Network, self.network).config,
            schedule=self.schedule,
            scaling=self.scaling,
            gaussian_skip=self.gaussian_skip,
        )


@dataclass(frozen=True, kw_only=True)
class PosteriorFlowConfig(ModelConfig):
    """A Mean Flow of the posterior; `scaling` is the identity (paper) or Gaussian, which `gaussian_skip` goes with."""

    schedule: Schedule = VPSchedule()
    scaling: Scaling = IdentityScaling()
    gaussian_skip: bool = False

    def build(self, item_shape: tuple[int, ...]) -> PosteriorFlow:
        network = self.build_network(item_shape, inputs=2, times=3)
        return PosteriorFlow(network, self.schedule, self.scaling, item_shape, self.gaussian_skip)
