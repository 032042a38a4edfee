"""The model of mean-based diffusion: a network that predicts `E[x_0 | x_tau]`."""

from dataclasses import dataclass
from typing import cast

from torch import Tensor

from fewstep.models.base import ModelConfig, NetworkPosteriorModel
from fewstep.networks.base import Network
from fewstep.posterior import DiracPosterior
from fewstep.scaling import EpsilonScaling, Scaling
from fewstep.schedule import Schedule, VPSchedule


class Denoiser(NetworkPosteriorModel):
    """`model(x_tau, tau)` is a point mass at `E[x_0 | x_tau] = offset + scale E[w | x_tau]`; through `Ancestral` it is
    DDPM.

    The network sees `x_tau` and the time tau. With the epsilon scaling it predicts the noise, and the mean is Tweedie's
    formula (eq. 17); with the identity scaling it predicts the data.
    """

    def w_mean(self, x_tau: Tensor, tau: Tensor) -> Tensor:
        """`E[w | x_tau]` as the network predicts it; tau is `(batch,)`."""
        return self.network(x_tau, tau[:, None])

    def forward(self, x_tau: Tensor, tau: Tensor | float) -> DiracPosterior:
        tau = self.times(x_tau, tau)
        return DiracPosterior(self.decode(self.w_mean(x_tau, tau), x_tau, tau))

    @property
    def config(self) -> "DenoiserConfig":
        """What rebuilds this model, if its network has a `config`."""
        return DenoiserConfig(network=cast(Network, self.network).config, schedule=self.schedule, scaling=self.scaling)


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig(ModelConfig):
    """A denoiser; `scaling` says what it predicts: the noise, the data, or the data whitened by a Gaussian prior."""

    schedule: Schedule = VPSchedule()
    scaling: Scaling = EpsilonScaling()

    def build(self, item_shape: tuple[int, ...]) -> Denoiser:
        network = self.build_network(item_shape, inputs=1, times=1)
        return Denoiser(network, self.schedule, self.scaling, item_shape)
