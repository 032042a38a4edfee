"""Models without training error: the posterior of a Gaussian mixture and of a finite data set, in closed form."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.draws import Source
from fewstep.errors import UserError
from fewstep.mixture import GaussianMixture
from fewstep.models.base import PosteriorModel
from fewstep.posterior import ParticlePosterior, Posterior, standard_noise
from fewstep.schedule import Schedule
from fewstep.shapes import as_time, flat


@dataclass(frozen=True)
class MixtureLaw(Posterior):
    """A batch of Gaussian mixtures as a posterior, `x_0` of the dtype of `x_tau`.

    Draws are differentiable in `x_tau` and in the noise for the component that was drawn; the choice of the component
    is not.
    """

    mixture: GaussianMixture
    x_tau: Tensor

    def sample(
        self,
        shape: tuple[int, ...] = (),
        *,
        flow_steps: int = 1,
        flow_grid: tuple[float, ...] | None = None,
        noise: Tensor | None = None,
        generator: Source = None,
    ) -> Tensor:
        noise = standard_noise(self.x_tau, shape, noise, generator).to(self.mixture.means.dtype)
        return self.mixture.sample(shape, generator, noise).to(self.x_tau.dtype)

    def mean(self, draws: int = 1, generator: Source = None) -> Tensor:
        return self.mixture.mean.to(self.x_tau.dtype)


class MixturePosterior(PosteriorModel):
    """The exact posterior `q(x_0 | x_tau)` of data from a Gaussian mixture; items are vectors `(d,)`.

    `model.to(device)` moves the mixture too. Computes in the mixture's dtype, float64 for choice, and answers in that of `x_tau`.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def __init__(self, mixture: GaussianMixture, schedule: Schedule):
        super().__init__(schedule, (mixture.dim,))
        self.register_buffer("weights", mixture.weights)
        self.register_buffer("means", mixture.means)
        self.register_buffer("covariances", mixture.covariances)

    @property
    def mixture(self) -> GaussianMixture:
        """The law of the data."""
        return GaussianMixture(self.weights, self.means, self.covariances)

    def forward(self, x_tau: Tensor, tau: Tensor | float) -> MixtureLaw:
        self.times(x_tau, tau)
        state = x_tau.to(self.means.dtype)
        # one time for all items stays one: the algebra is then done once
        return MixtureLaw(self.mixture.posterior(state, as_time(tau, state), self.schedule), x_tau)


class EmpiricalPosterior(PosteriorModel):
    """The exact posterior `q(x_0 | x_tau)` of a finite data set `(n, ...)`: a categorical draw over the data.

    Computes in the dtype of the data and answers in that of `x_tau`. Raises `UserError` unless the data is floating.
    """

    data: Tensor

    def __init__(self, data: Tensor, schedule: Schedule):
        if not data.is_floating_point() or len(data) == 0:
            raise UserError(f"the data {tuple(data.shape)} of {data.dtype}: give at least one item of floating numbers")
        super().__init__(schedule, tuple(data.shape[1:]))
        self.register_buffer("data", data)

    def forward(self, x_tau: Tensor, tau: Tensor | float) -> ParticlePosterior:
        times = self.times(x_tau, tau).to(self.data.dtype)
        alpha, sigma = self.schedule.alpha(times)[:, None], self.schedule.sigma(times)[:, None]
        # log N(x_tau; alpha x_0, sigma^2 I) up to a constant; the distance is not expanded, so nothing cancels
        distance = torch.cdist(
            flat(x_tau).to(self.data.dtype) / alpha, flat(self.data), compute_mode="donot_use_mm_for_euclid_dist"
        )
        return ParticlePosterior(self.data.to(x_tau.dtype), -0.5 * (distance * alpha / sigma) ** 2)
