"""Split Gibbs: a draw given a noisy copy, and an exact Gaussian likelihood step for the copy, in turns."""

import math
from dataclasses import dataclass
from itertools import chain, repeat

import torch

from fewstep.errors import UserError
from fewstep.inverse.base import Drawn, InverseMethod, Problem, Steps, check_count
from fewstep.operators import Gaussian


@dataclass(frozen=True, kw_only=True)
class SplitGibbs(InverseMethod):
    """`x ~ p(x | z)` under `z = x + rho e`, then `z ~ N(z; x, rho^2 I) p(y | z)`, in turns (Vono et al. 2019).

    The first is a draw of `q(x_0 | x_tau)` at the time where `sigma / alpha = rho`, `x_tau = alpha z`; the second is exact for
    every linear operator by perturb-and-optimise, `z = prox_l2(x + rho e_2, y + sigma_y e_1, rho^2 / sigma_y^2)`. The first x is
    a draw of the prior; `anneal` steps bring rho down from `rho_start`, even in its logarithm, and `steps` go on at rho; left
    out, it is .3 sigma_y, which makes the noise of the law below too large by a twentieth. `rho_start` is about the deviation
    of the data: there the modes are chosen, and many small steps count.

    *Consistent* for `rho -> 0`: at a fixed rho the stationary law is exactly `p(x | y)` with the measurement's covariance
    `sigma_y^2 I + rho^2 A A'` in place of `sigma_y^2 I`. The smaller rho, the slower it forgets where it started: modes that
    annealing has chosen stay. Linear operators and Gaussian noise above 0.
    """

    rho: float | None = None
    rho_start: float = 1.5
    anneal: int = 35
    steps: int = 4

    linear_only = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < (self.rho or 1e-9) <= self.rho_start or self.rho == 0:
            raise UserError(f"split Gibbs needs 0 < rho <= rho_start, not {self.rho} and {self.rho_start}")
        check_count("steps", self.steps)
        check_count("anneal", self.anneal, least=0)

    @property
    def iterations(self) -> int:
        return 1 + self.anneal + self.steps

    def check(self, operator) -> None:
        if not isinstance(self.noise, Gaussian) or self.noise.sigma <= 0:
            raise UserError(
                "split Gibbs needs Gaussian noise of a deviation above 0: give noise=Gaussian(sigma=...), for noiseless "
                "observations a small one, or take NullSpace"
            )

    def run(self, problem: Problem, k: int, meter: Steps) -> Drawn:
        schedule, y = problem.model.schedule, problem.rows_of_y(k * len(problem.y))
        assert isinstance(self.noise, Gaussian)
        sigma_y = self.noise.sigma
        last = min(0.3 * sigma_y, self.rho_start) if self.rho is None else self.rho
        ratio = (last / self.rho_start) ** (1 / max(self.anneal, 1))
        falling = (self.rho_start * ratio**i for i in range(self.anneal))
        x = problem.draw(problem.start(k), torch.ones((), dtype=torch.float64, device=y.device), 1)[0]
        for step, rho in enumerate(chain(falling, repeat(last, self.steps)), start=2):
            noise = problem.normal(torch.empty_like(y))
            z = problem.operator.prox_l2(x + rho * problem.normal(x), y + sigma_y * noise, (rho / sigma_y) ** 2)
            tau = schedule.tau_at(torch.tensor(-2 * math.log(rho), dtype=torch.float64, device=z.device)).clamp(max=1)
            x = problem.draw((schedule.alpha(tau) * z).to(z), tau, 1)[0]
            meter.update(step)
        complaint = (
            f"the draws are too wide, with rho = {last:g} and noise of deviation {sigma_y:g}: take a smaller rho"
        )
        return Drawn(x=x, bad=torch.full((len(problem.y),), last > 0.5 * sigma_y), complaint=complaint)
