"""Split Gibbs: a draw given a noisy copy, and an exact Gaussian likelihood step for the copy, in turns."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.inverse.base import InverseMethod, Problem, observed
from fewstep.operators import Gaussian
from fewstep.particles import log_mean_exp, reorder, resample
from fewstep.shapes import flat
from fewstep.steering.samples import Drawn
from fewstep.steering.target import Steps, check_count

REDRAWN = 0.5  # above this rho, half of the deviation of images, a step moves copies apart
INEXACT = 0.5  # nats


@dataclass(frozen=True, kw_only=True)
class SplitGibbs(InverseMethod):
    """`x ~ p(x | z)` under `z = x + rho e`, then `z ~ N(z; x, rho^2 I) p(y | z)`, in turns (Vono et al. 2019).

    The first is a draw of `q(x_0 | x_tau)` at the time where `sigma / alpha = rho`, `x_tau = alpha z`; the second is exact for
    every linear operator by perturb-and-optimise, `z = prox_l2(x + rho e_2, y + sigma_y e_1, rho^2 / sigma_y^2)`. The first x is
    a draw of the prior; `anneal` steps, even in `rho^(1/3)`, bring rho down from `rho_start`, which is about the deviation of
    the data: there the modes are chosen, and many small steps count; `steps` go on at rho. Left out, it is .3 sigma_y, which
    makes the noise of the law below too large by a twentieth.

    The samples of a problem are weighed against each other on the way down: from rho to the next one `rho'` by
    `N(y; A x, sigma_y^2 I + rho'^2 A A') / N(y; A x, sigma_y^2 I + rho^2 A A')`, whose exponents are -1/2 times the least of
    `||y - A z||^2 / sigma_y^2 + ||z - x||^2 / rho^2`, at `z = prox_l2(x, y, rho^2 / sigma_y^2)`. With a Gibbs step at each rho
    this is a sampler of sequential Monte Carlo (Del Moral et al. 2006), and the modes get the weights that a chain of its own
    cannot find any more once rho is small. Samples are drawn anew where their effective number falls below the share
    `resample`. Below `weigh_above` they go on unweighed: a measurement of many components says more there than few samples
    can carry.

    *Consistent*. Weighed all the way (`weigh_above = 0`, or a last rho that is not below it): exact as the samples grow, at any
    rho (the last weight takes it to 0), and the evidence `exp(log_z)` is unbiased. Without weights (`weigh_above = None`; then
    the samples are independent) for `rho -> 0`: at a fixed rho the stationary law is exactly `p(x | y)` with the measurement's
    covariance `sigma_y^2 I + rho^2 A A'` in place of `sigma_y^2 I`, and the smaller rho, the slower it forgets where it started.
    In between it is a *heuristic* that weighs modes and leaves details to the chains. Linear operators, Gaussian noise above 0.
    """

    rho: float | None = None
    rho_start: float = 1.5
    anneal: int = 35
    steps: int = 4
    weigh_above: float | None = 0.25
    resample: float = 0.5

    linear_only = True
    remedy = "take more samples, or a larger weigh_above"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < (self.rho or 1e-9) <= self.rho_start or self.rho == 0:
            raise UserError(f"split Gibbs needs 0 < rho <= rho_start, not {self.rho} and {self.rho_start}")
        check_count("steps", self.steps)
        check_count("anneal", self.anneal, least=0)
        if not (self.weigh_above or 0.0) >= 0 or not 0 <= self.resample <= 1:
            raise UserError("weigh_above is a number from 0 up, or None for no weights, and resample a share in [0, 1]")

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
        schedule, y, b = problem.model.schedule, problem.rows_of_y(k * len(problem.y)), len(problem.y)
        assert isinstance(self.noise, Gaussian)
        least = math.inf if self.weigh_above is None else self.weigh_above
        sigma_y, before, fit = self.noise.sigma, math.inf, torch.zeros(k, b, dtype=torch.float64, device=y.device)
        log_w, log_z, off = fit, fit[0], 0.0
        families = apart = torch.arange(k, device=y.device)[:, None].expand(k, b)
        x = problem.draw(problem.start(k), torch.ones((), dtype=torch.float64, device=y.device), 1)[0]
        for step, rho in enumerate(self._levels(sigma_y), start=2):
            if rho >= least and rho != before:
                at_rho, worst = self._fit(problem, x, y, rho)
                index, log_w, said = resample(log_w + at_rho - fit, self.resample, problem.generator)
                x, families, log_z = reorder(x, index), families.gather(0, index), log_z + said
                before, off = rho, max(off, worst)
            elif rho < least and before < math.inf:  # what was said is said, before the chains go on alone
                index, log_w, _ = resample(log_w, 1.0, problem.generator)
                x, families, before = reorder(x, index), families.gather(0, index), math.inf
            noise = problem.normal(torch.empty_like(y))
            z = problem.operator.prox_l2(x + rho * problem.normal(x), y + sigma_y * noise, (rho / sigma_y) ** 2)
            tau = schedule.tau_at(torch.tensor(-2 * math.log(rho), dtype=torch.float64, device=z.device)).clamp(max=1)
            x = problem.draw((schedule.alpha(tau) * z).to(z), tau, 1)[0]
            if before == rho:
                fit = self._fit(problem, x, y, rho)[0]
            if rho > REDRAWN:
                families = apart
            meter.update(step)
        last = rho
        exact = before == last  # weighed all the way: one more step, to rho = 0
        if exact:
            log_w = log_w + self._fit(problem, x, y, 0.0)[0] - fit
            seen = observed(problem.operator)
            components = y[0].numel() if seen is None else int(seen.sum())
            log_z = log_z + log_mean_exp(log_w) - 0.5 * components * math.log(2 * math.pi * sigma_y**2)
        complaint = (
            f"the draws are too wide, with rho = {last:g} and noise of deviation {sigma_y:g}: take a smaller rho"
        )
        bad = torch.full((b,), last > 0.5 * sigma_y and not exact)
        if off > INEXACT:
            bad = torch.ones_like(bad)
            complaint = (
                f"the weights may be off by {off:.2g} nats, because the operator's prox_l2 stopped early: let its solver go "
                "on, or give weigh_above=None"
            )
        if self.weigh_above is None:
            return Drawn(x=x, bad=bad, complaint=complaint)
        log_z_found = log_z if exact else None
        return Drawn(x=x, log_w=log_w, log_z=log_z_found, families=families, bad=bad, complaint=complaint)

    def _levels(self, sigma_y: float) -> list[float]:
        """The rho of every step."""
        last = min(0.3 * sigma_y, self.rho_start) if self.rho is None else self.rho
        start, end = self.rho_start ** (1 / 3), last ** (1 / 3)
        fall = (start - end) / max(self.anneal, 1)
        return [(start - fall * i) ** 3 for i in range(self.anneal)] + [last] * self.steps

    def _fit(self, problem: Problem, x: Tensor, y: Tensor, rho: float) -> tuple[Tensor, float]:
        """`log N(y; A x, sigma_y^2 I + rho^2 A A')` `(k, b)` but for what is the same for all x; and how far off at most.

        The exponent is the least of a function whose curvature is `1 / rho^2` or more: where its gradient at z is g, it is off by
        at most `rho^2 ||g||^2 / 2`.
        """
        assert isinstance(self.noise, Gaussian)
        gamma = (rho / self.noise.sigma) ** 2
        z = problem.operator.prox_l2(x, y, gamma) if rho else x
        misses, seen = flat(y - problem.operator.A(z)), observed(problem.operator)
        fit = -0.5 * (misses if seen is None else misses[:, seen]).double().square().sum(1) / self.noise.sigma**2
        if not rho:
            return fit.reshape(-1, len(problem.y)), 0.0
        fit = fit - 0.5 * flat(z - x).double().square().sum(1) / rho**2
        slope = flat(z - x + gamma * problem.operator.A_adjoint(problem.operator.A(z) - y)).double()
        return fit.reshape(-1, len(problem.y)), (0.5 * slope.square().sum(1) / rho**2).max().item()
