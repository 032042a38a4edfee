"""The consistency model: a network that predicts where the probability flow through a noisy state ends."""

from dataclasses import dataclass
from typing import TypeGuard, cast

from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.models.base import Model, ModelConfig, NetworkPosteriorModel, PosteriorModel
from fewstep.networks.base import Network
from fewstep.posterior import EndPosterior
from fewstep.scaling import GaussianScaling, IdentityScaling, Scaling
from fewstep.schedule import Schedule, VPSchedule


class ConsistencyMap(NetworkPosteriorModel):
    """`f(x_tau, tau) = offset + scale w_theta(x_tau, tau)`, the end at tau = 0 of the probability flow through `x_tau`.

    `f(x, 0) = x` by the scaling, whose scale goes to 0 there; `UserError` for the identity scaling, whose does not.
    `model(x_tau, tau)` is a point mass at f, which is neither the posterior's mean (`UserError`) nor a draw: through
    `Ancestral(kernel=0.0)`, re-noising, it is multistep consistency sampling. Source: Song et al. 2023 (arXiv
    2303.01469), eq. 5 and Algorithm 1.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, scaling: Scaling, item_shape: tuple[int, ...]):
        if isinstance(scaling, IdentityScaling):
            raise UserError("a consistency map needs f(x, 0) = x: take GaussianScaling, not the identity")
        super().__init__(network, schedule, scaling, item_shape)

    def end(self, x_tau: Tensor, tau: Tensor) -> Tensor:
        """`f(x_tau, tau)`; tau is `(batch,)`."""
        return self.decode(self.network(x_tau, tau[:, None]), x_tau, tau)

    def forward(self, x_tau: Tensor, tau: Tensor | float) -> EndPosterior:
        return EndPosterior(self.end(x_tau, self.times(x_tau, tau)))

    @property
    def config(self) -> "ConsistencyMapConfig":
        """What rebuilds this model, if its network has a `config`."""
        return ConsistencyMapConfig(
            network=cast(Network, self.network).config, schedule=self.schedule, scaling=self.scaling
        )


def has_posterior(model: Model) -> TypeGuard[PosteriorModel]:
    """Whether the model's `q(x_0 | x_tau)` is one to draw from and to take the mean of: a consistency map's is neither."""
    return isinstance(model, PosteriorModel) and not isinstance(model, ConsistencyMap)


@dataclass(frozen=True, kw_only=True)
class ConsistencyMapConfig(ModelConfig):
    """A consistency map; `scaling` is Gaussian or any other that leaves the data alone at tau = 0."""

    schedule: Schedule = VPSchedule()
    scaling: Scaling = GaussianScaling()

    def build(self, item_shape: tuple[int, ...]) -> ConsistencyMap:
        network = self.build_network(item_shape, inputs=1, times=1)
        return ConsistencyMap(network, self.schedule, self.scaling, item_shape)
