"""Guidance: pull the draws along `grad log p(y | x_tau)`, estimated from the mean (DPS) or from draws (look-ahead).

By Tweedie's formula a gradient of `log p(y | x_tau)` moves the posterior's mean by `sigma^2 / alpha` times itself. The gradients
are those of `steering/value.py`, with the log-likelihood as g: consistent as the draws grow; the plug-in of the mean is not.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.inverse.base import InverseMethod, Problem
from fewstep.shapes import flat
from fewstep.steering.samples import Drawn
from fewstep.steering.target import Steps, Stepwise, check_count
from fewstep.steering.value import gradient_through_draws, shift_of_draws
from fewstep.times import Grid, UniformGrid


@dataclass(frozen=True, kw_only=True)
class LookAhead(Stepwise, InverseMethod):
    """`x_0 ~ q(x_0 | x_tau)`, moved by `strength (sigma^2 / alpha) g`, g from `draws` draws; then the bridge.

    *Consistent* in what it estimates, the gradient of `log p(y | x_tau)`, as `draws` grow; *heuristic* as a sampler: the draw is
    moved, not weighed, and its spread stays that of `q(x_0 | x_tau)`. `reparametrised` takes the gradient through the draws,
    which helps where few of the draws explain y.
    """

    steps: int = 50
    draws: int = 16
    reparametrised: bool = False
    strength: float = 1.0
    grid: Grid = UniformGrid()

    remedy = "take more draws"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 2:
            raise UserError("a look-ahead takes draws from 2 up")

    def run(self, problem: Problem, k: int, meter: Steps) -> Drawn:
        x, schedule = problem.start(k), problem.model.schedule
        x_0 = x
        for step, (tau, s) in enumerate(pairwise(self.grid(self.steps, schedule).to(x.device)), start=1):
            if self.reparametrised:
                z = problem.normal(x, (self.draws,))
                scale = (schedule.sigma(tau) ** 2 / schedule.alpha(tau)).to(x)
                drawn, shift = problem.push(x, tau, z[:1]), scale * gradient_through_draws(problem, x, tau, z)
            else:
                drawn = problem.draw(x, tau, self.draws)
                shift = shift_of_draws(drawn, problem.log_potential(drawn))
            x_0 = drawn[0] + self.strength * shift
            if s > 0:
                x = problem.step(x_0, x, s, tau)
            meter.update(step)
        return Drawn(x=x_0)


@dataclass(frozen=True, kw_only=True)
class DPS(InverseMethod):
    """`x_s ~ p(x_s | m, x_tau)`, m the posterior's mean, then `x_s <- x_s - step grad_{x_tau} ||y - A(m)||` (Chung et al. 2023).

    The baseline of the field. *Heuristic*: `log p(y | x_tau)` is not that of the mean (Jensen), and the step is a number to
    tune. Needs a derivative of the network and hundreds of steps.
    """

    steps: int = 200
    step: float = 1.0
    grid: Grid = UniformGrid()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps)
        if self.step < 0:
            raise UserError("DPS takes a step that is not negative")

    @property
    def iterations(self) -> int:
        return self.steps

    def run(self, problem: Problem, k: int, meter: Steps) -> Drawn:
        x, schedule = problem.start(k), problem.model.schedule
        m = x
        for done, (tau, s) in enumerate(pairwise(self.grid(self.steps, schedule).to(x.device)), start=1):
            m, gradient = self._mean(problem, x, tau)
            if s > 0:
                x = problem.step(m, x, s, tau) - self.step * gradient
            meter.update(done)
        return Drawn(x=m)

    def _mean(self, problem: Problem, x: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        """The mean, and the gradient of the distance `||y - A(mean)||` in the state."""
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            mean = problem.mean(at, tau)
            distance = flat(problem.rows_of_y(len(x)) - problem.operator.A(mean)).norm(dim=1)
            return mean.detach(), torch.autograd.grad(distance.sum(), at)[0]
