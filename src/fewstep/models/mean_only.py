"""A posterior model stripped of its randomness: the mean in place of draws, which makes any posterior model a DDPM."""

from dataclasses import dataclass

from torch import Tensor, nn

from fewstep.draws import Source
from fewstep.models.base import PosteriorModel
from fewstep.posterior import Posterior


@dataclass(frozen=True)
class MeanLaw(Posterior):
    """A point mass at the mean of another posterior; where that is estimated, from `draws` draws of noise."""

    posterior: Posterior
    draws: int

    def sample(
        self,
        shape: tuple[int, ...] = (),
        *,
        flow_steps: int = 1,
        flow_grid: tuple[float, ...] | None = None,
        noise: Tensor | None = None,
        generator: Source = None,
    ) -> Tensor:
        mean = self.posterior.mean(self.draws, generator)
        return mean.expand(*shape, *mean.shape)

    def mean(self, draws: int = 1, generator: Source = None) -> Tensor:
        return self.posterior.mean(max(draws, self.draws), generator)


class MeanOnly(PosteriorModel):
    """`MeanOnly(model)` answers with a point mass at `E[x_0 | x_tau]`: through `Ancestral`, DDPM on any posterior model."""

    def __init__(self, model: PosteriorModel, draws: int = 1):
        super().__init__(model.schedule, model.item_shape)
        self.model = model
        self.draws = draws

    @property
    def evaluated(self) -> nn.Module:
        return self.model.evaluated

    def forward(self, x_tau: Tensor, tau: Tensor | float) -> MeanLaw:
        return MeanLaw(self.model(x_tau, tau), self.draws)
