"""The probability-flow ODE, deterministic with the marginals of the diffusion (Song et al. 2021, arXiv 2011.13456, eq. 13).

With `x_bar = x / alpha` and `k = sigma / alpha` it is `dx_bar / dk = e`, `e = (x_tau - alpha E[x_0 | x_tau]) / sigma`
the noise that the mean leaves (Karras et al. 2022, arXiv 2206.00364, eq. 1 and 81).
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.draws import Source
from fewstep.errors import UserError
from fewstep.models.base import PosteriorModel
from fewstep.samplers.base import Sampler, check_model, check_steps
from fewstep.times import Grid, UniformGrid


@dataclass(frozen=True)
class ProbabilityFlow(Sampler):
    """`dx_bar / dk = e` by Euler (`order` 1, which in these variables is DDIM) or Heun (2); NFE = N or 2 N - 1.

    Needs only the posterior's mean. The last step, to k = 0, is Euler's: it ends at the mean. The grid's last time above
    0 bounds the accuracy (the error of that step is of the order of its `k^2`); with `LogSNRGrid` of a small `tau_min`
    the error falls as `N^-order`. The generator is used where the mean is estimated only.
    """

    draws_from = PosteriorModel

    steps: int = 16
    order: int = 2
    grid: Grid = UniformGrid()

    def __post_init__(self) -> None:
        check_steps(self.steps, self.grid)
        if self.order not in (1, 2):
            raise UserError(f"order is 1 (Euler) or 2 (Heun), not {self.order}")

    @property
    def nfe(self) -> int:
        return self.steps if self.order == 1 else 2 * self.steps - 1

    @torch.no_grad()
    def __call__(self, model: PosteriorModel, noise: Tensor, generator: Source = None) -> Tensor:
        check_model(self, model)
        x, schedule = noise, model.schedule
        for tau, s in pairwise(self.grid(self.steps, schedule).to(x.device)):
            mean = model(x, tau).mean(generator=generator)
            if s == 0:
                return mean
            a = schedule.alpha(tau) / schedule.alpha(s)
            rise = schedule.sigma(s) - schedule.sigma(tau) / a  # alpha_s times the step in k
            e = _noise(x, mean, tau, model)
            x_s = (x / a + rise * e).to(x.dtype)
            if self.order == 2:
                e_s = _noise(x_s, model(x_s, s).mean(generator=generator), s, model)
                x_s = (x / a + rise * (e + e_s) / 2).to(x.dtype)
            x = x_s
        return x


def _noise(x_tau: Tensor, mean: Tensor, tau: Tensor, model: PosteriorModel) -> Tensor:
    """`e = (x_tau - alpha E[x_0 | x_tau]) / sigma`."""
    return (x_tau - model.schedule.alpha(tau) * mean) / model.schedule.sigma(tau)
