"""Nested sequential Monte Carlo: particles of the reverse diffusion, weighted by what their own draws say of y."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fewstep.bridge import bridge
from fewstep.errors import UserError
from fewstep.inverse.base import Drawn, InverseMethod, Problem, Steps, check_count
from fewstep.operators import Gaussian, is_linear
from fewstep.particles import choose, finite, log_mean_exp, reorder, resample, take
from fewstep.shapes import flat
from fewstep.times import Grid, UniformGrid


@dataclass(frozen=True, kw_only=True)
class NestedSMC(InverseMethod):
    """Particles `x_tau` with draws `x_0^j ~ q(x_0 | x_tau)`, j = 1 .. J = `draws`; `steps` times tau; target `p(x_0 | y)`.

    `Vhat_tau = logmeanexp_j r_tau(x_0^j)`, r the log-likelihood; start with `log w = Vhat_1`; choose `b ~ softmax_j r_tau`,
    propose `x_s ~ p(x_s | x_0^b, x_tau)`, and add
    `Vhat_s - Vhat_tau + log(1/J sum_j p(x_s | x_0^j, x_tau)) - log sum_j wbar_j p(x_s | x_0^j, x_tau)` to log w; at the end
    choose `x_0^b` and add `r(x_0^b) - Vhat_tau - log(J wbar_b)`. Between, particles are resampled (systematically) where their
    effective number falls below the share `resample`.

    *Consistent*: exact as the particles grow, for any J, and its evidence `exp(log_z)` is unbiased at every number of particles,
    given the model. `anneal` (kappa) softens r at high noise by `1 / (1 + kappa v r^2 / ((v + r^2) sigma_y^2))`,
    `r = sigma / alpha`, v the data's variance `prior_variance`, times the mean gain of `A A'`: the sum telescopes, so that the
    target stays. Any operator and noise with a likelihood; softened for Gaussian noise alone.
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
        check_count("steps", self.steps)
        check_count("draws", self.draws)
        if not 0 <= self.resample <= 1 or self.anneal < 0 or self.prior_variance <= 0:
            raise UserError("resample is a share in [0, 1], anneal is not negative, prior_variance is above 0")

    @property
    def iterations(self) -> int:
        return self.steps

    @property
    def held(self) -> int:
        return self.draws

    def run(self, problem: Problem, k: int, meter: Steps) -> Drawn:
        x, schedule, b = problem.start(k), problem.model.schedule, len(problem.y)
        times = self.grid(self.steps, schedule).to(x.device)
        gain = _gain(problem) if self.anneal else 1.0
        log_z = torch.zeros(b, dtype=torch.float64, device=x.device)
        drawn, r, value = self._look(problem, x, times[0], gain)
        log_w = value.reshape(k, b)
        for step, (tau, s) in enumerate(pairwise(times), start=1):
            chosen = choose(r, problem.source(len(x)))
            x_0 = take(drawn, chosen)[0]
            if s == 0:
                log_w = _plus(log_w, *self._last(problem, x_0, r, value, chosen))
                meter.update(step)
                break
            x, correction = self._step(problem, x, x_0, drawn, r, tau, s)
            before = value
            drawn, r, value = self._look(problem, x, s, gain)
            log_w = _plus(log_w, value, correction - before)
            index, log_w, said = resample(log_w, self.resample, problem.generator)
            log_z = log_z + said
            x, value = reorder(x, index), reorder(value, index)
            drawn, r = reorder(drawn, index, 1), reorder(r, index, 1)
            meter.update(step)
        return Drawn(x=x_0, log_w=log_w, log_z=log_z + log_mean_exp(log_w))

    def _look(self, problem: Problem, x: Tensor, tau: Tensor, gain: float) -> tuple[Tensor, Tensor, Tensor]:
        """Draws `(J, rows, ...)`, their softened log-likelihoods `(J, rows)`, and the value `(rows,)`."""
        drawn = problem.draw(x, tau, self.draws)
        r = self._softness(problem, tau, gain) * problem.log_likelihood(drawn).double()
        return drawn, r, log_mean_exp(r)

    def _softness(self, problem: Problem, tau: Tensor, gain: float) -> float:
        if not isinstance(self.noise, Gaussian) or not self.anneal:
            return 1.0
        log_snr, v = problem.model.schedule.log_snr(tau).item(), self.prior_variance
        left = v / (1 + v * math.exp(log_snr))  # v r^2 / (v + r^2), what is left of the variance at tau
        return 1 / (1 + self.anneal * gain * left / self.noise.sigma**2)

    def _step(
        self, problem: Problem, x: Tensor, x_0: Tensor, drawn: Tensor, r: Tensor, tau: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`x_s`, and the log of the mean bridge density of all draws over that of the chosen mixture of them, `(rows,)`."""
        schedule = problem.model.schedule
        x_s = problem.step(x_0, x, s, tau)
        bridges = [bridge(one, x, s, tau, schedule) for one in drawn]
        log_p = torch.stack([-flat((x_s - mean) / std).square().sum(1) / 2 for mean, std in bridges]).double()
        return x_s, log_mean_exp(log_p) - (finite(r).log_softmax(0) + log_p).logsumexp(0)

    def _last(self, problem: Problem, x_0: Tensor, r: Tensor, value: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        share = finite(r).log_softmax(0).gather(0, chosen)[0]
        return problem.log_likelihood(x_0).double(), -value - math.log(self.draws) - share


def _plus(log_w: Tensor, value: Tensor, less: Tensor) -> Tensor:
    """`log_w + value + less`, where a particle that cannot explain y, of weight or value 0, stays one: -inf is absorbing."""
    value, less = value.reshape(log_w.shape), less.reshape(log_w.shape)
    dead = log_w.isneginf() | value.isneginf()
    return torch.where(dead, -torch.inf, log_w + value + torch.where(dead, 0.0, less))


def _gain(problem: Problem) -> float:
    """The mean of `A A'` over the components of y, by one probe; 1 for an operator without an adjoint."""
    operator: Any = problem.operator
    if not is_linear(operator):
        return 1.0
    probe = torch.randn(problem.y[:1].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(
        problem.y
    )
    return (operator.A_adjoint(probe).square().sum() / probe.square().sum()).item()
