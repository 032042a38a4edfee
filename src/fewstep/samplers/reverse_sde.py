"""The reverse SDE by small steps: `dX = [-1/2 beta X - beta grad log q_tau(X)] dtau + sqrt(beta) dW`, tau from 1 to 0 (16)."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.draws import Source, normal_like
from fewstep.models.base import PosteriorModel
from fewstep.posterior import score
from fewstep.samplers.base import Sampler, check_model, check_steps
from fewstep.times import Grid, UniformGrid
from fewstep.transition import moments


@dataclass(frozen=True)
class ReverseSDE(Sampler):
    """The score held over each step, the rest solved exactly (`exponential`) or by Euler and Maruyama; NFE = N.

    With `a = alpha_tau / alpha_s`: `x_s = x / a + 2 (1/a - 1) score + sqrt(1/a^2 - 1) xi` (Chen et al. 2023, arXiv
    2209.11215, section 2), or with `h = tau - s`: `x_s = x + h (1/2 beta x + beta score) + sqrt(beta h) xi`. The last
    step, to tau = 0, returns the posterior's mean instead, so that no noise is left. Both have weak order 1 on a uniform
    grid. Needs only the posterior's mean. (With the mean held in place of the score, the exact solution is DDPM.)
    """

    draws_from = PosteriorModel

    steps: int = 64
    exponential: bool = True
    grid: Grid = UniformGrid()

    def __post_init__(self) -> None:
        check_steps(self.steps, self.grid)

    @property
    def nfe(self) -> int:
        return self.steps

    @torch.no_grad()
    def __call__(self, model: PosteriorModel, noise: Tensor, generator: Source = None) -> Tensor:
        check_model(self, model)
        x = noise
        for tau, s in pairwise(self.grid(self.steps, model.schedule).to(x.device)):
            mean = model(x, tau).mean(generator=generator)
            if s == 0:
                return mean
            x = self._step(x, score(mean, x, tau, model.schedule), s, tau, model, generator)
        return x

    def _step(
        self, x: Tensor, slope: Tensor, s: Tensor, tau: Tensor, model: PosteriorModel, generator: Source
    ) -> Tensor:
        xi = normal_like(x, generator)
        if self.exponential:
            a, v = moments(s, tau, model.schedule)
            x_s = x / a + 2 * (1 / a - 1) * slope + v.sqrt() / a * xi
        else:
            beta, h = model.schedule.beta(tau), tau - s
            x_s = x + h * beta * (x / 2 + slope) + (beta * h).sqrt() * xi
        return x_s.to(x.dtype)
