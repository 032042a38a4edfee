"""Nested sequential Monte Carlo: particles of the reverse diffusion, weighted by what their own draws say of y."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.inverse.base import InverseMethod, Problem
from fewstep.operators import Gaussian, is_linear
from fewstep.steering.nested import last, nested_smc
from fewstep.steering.samples import Drawn
from fewstep.steering.target import Steps, Stepwise
from fewstep.times import Grid, UniformGrid


@dataclass(frozen=True, kw_only=True)
class NestedSMC(Stepwise, InverseMethod):
    """Particles `x_tau` with draws `x_0^j ~ q(x_0 | x_tau)`, j = 1 .. J = `draws`; `steps` times tau; target `p(x_0 | y)`.

    The algorithm, its weights and its resampling (at the share `resample`) are those of `steering.nested.nested_smc`, with the
    log-likelihood as g. *Consistent*: exact as the particles grow, for any J, and its evidence `exp(log_z)` is unbiased at every
    number of particles, given the model. `anneal` (kappa) softens g at high noise by
    `1 / (1 + kappa v r^2 / ((v + r^2) sigma_y^2))`, `r = sigma / alpha`, v the data's variance `prior_variance`, times the mean
    gain of `A A'`. Any operator and noise with a likelihood; softened for Gaussian noise alone.
    """

    steps: int = 20
    draws: int = 16
    resample: float = 0.5
    anneal: float = 1.0
    prior_variance: float = 1.0
    grid: Grid = UniformGrid()

    remedy = "take more samples or draws"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.resample <= 1 or self.anneal < 0 or self.prior_variance <= 0:
            raise UserError("resample is a share in [0, 1], anneal is not negative, prior_variance is above 0")

    def run(self, problem: Problem, k: int, meter: Steps) -> Drawn:
        schedule = problem.model.schedule
        times = self.grid(self.steps, schedule).to(problem.like.device)
        gain = _gain(problem) if self.anneal else 1.0

        def softness(tau: Tensor) -> float:
            if not isinstance(self.noise, Gaussian) or not self.anneal:
                return 1.0
            log_snr, v = schedule.log_snr(tau).item(), self.prior_variance
            left = v / (1 + v * math.exp(log_snr))  # v r^2 / (v + r^2), what is left of the variance at tau
            return 1 / (1 + self.anneal * gain * left / self.noise.sigma**2)

        return last(nested_smc(problem, k, times, self.draws, self.resample, softness), meter.update)


def _gain(problem: Problem) -> float:
    """The mean of `A A'` over the components of y, by one probe; 1 for an operator without an adjoint."""
    operator: Any = problem.operator
    if not is_linear(operator):
        return 1.0
    probe = torch.randn(problem.y[:1].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(
        problem.y
    )
    return (operator.A_adjoint(probe).square().sum() / probe.square().sum()).item()
