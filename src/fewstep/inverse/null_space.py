"""Null-space projection (Algorithm 3): put what was observed into every draw. A heuristic."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from fewstep.errors import UserError
from fewstep.inverse.base import InverseMethod, Problem
from fewstep.operators import Gaussian, NoNoise
from fewstep.steering.samples import Drawn
from fewstep.steering.target import Steps, check_count
from fewstep.times import Grid, UniformGrid


@dataclass(frozen=True, kw_only=True)
class NullSpace(InverseMethod):
    """`x_0 ~ q(x_0 | x_tau)`, `x_0 <- A^+ y + (I - A^+ A) x_0`, `x_s ~ p(x_s | x_0, x_tau)` (Algorithm 3; DDNM, 2023).

    With Gaussian noise the projection is softened to `prox_l2(x_0, y, r^2 / sigma_y^2)`, `r = sigma_tau / alpha_tau`: the
    posterior's mean if x_0 were the mean of a Gaussian of deviation r (our own; the projection where `sigma_y` is 0 or r large).

    *Heuristic*, for any linear A: draws of `q(x_0 | x_tau)` are not weighed by how well they explain y, so that modes keep
    the weight that they had before y was seen. It does not converge to `p(x_0 | y)` even with an exact posterior and many steps.
    """

    steps: int = 20
    grid: Grid = UniformGrid()

    linear_only = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps)

    @property
    def iterations(self) -> int:
        return self.steps

    def check(self, operator: Any) -> None:
        if not isinstance(self.noise, Gaussian | NoNoise):
            raise UserError(
                f"null-space projection knows Gaussian noise and none, not {type(self.noise).__name__}: take DecoupledSIR"
            )

    def run(self, problem: Problem, k: int, meter: Steps) -> Drawn:
        x, schedule = problem.start(k), problem.model.schedule
        x_0 = x
        for step, (tau, s) in enumerate(pairwise(self.grid(self.steps, schedule).to(x.device)), start=1):
            x_0 = self._project(problem, problem.draw(x, tau, 1)[0], tau)
            if s > 0:
                x = problem.step(x_0, x, s, tau)
            meter.update(step)
        return Drawn(x=x_0)

    def _project(self, problem: Problem, x_0: Tensor, tau: Tensor) -> Tensor:
        operator, y, schedule = problem.operator, problem.rows_of_y(len(x_0)), problem.model.schedule
        if isinstance(self.noise, Gaussian) and self.noise.sigma > 0:
            r_2 = float((schedule.sigma(tau) / schedule.alpha(tau)) ** 2)
            return operator.prox_l2(x_0, y, r_2 / self.noise.sigma**2)
        return x_0 + operator.A_dagger(y - operator.A(x_0))
