"""What it costs to start from N(0, I) instead of `q_T`, the law of `x_tau` at the horizon T (Propositions 3 and 4).

`T = horizon` is the time at which sampling starts, 1 unless said otherwise. In the data: only `E||X_0||^2`, the
dimension d and, for the paper's bound on KL, `KL(p_0 || N(0, I))`.
"""

import math

import torch
from torch import Tensor

from fewstep.draws import normal_like
from fewstep.errors import UserError
from fewstep.models.base import PosteriorModel
from fewstep.samplers.ancestral import Ancestral
from fewstep.schedule import Schedule
from fewstep.shapes import flat
from fewstep.theory.certificate import Certificate, Estimate, check_draws, positive
from fewstep.theory.lipschitz import Lipschitz


def start_error(second_moment: float, dim: int, schedule: Schedule, horizon: float = 1.0) -> Certificate:
    """`W2^2(N(0, I), q_T) <= alpha_T^2 E||X_0||^2 + (1 - sigma_T)^2 d`, by sharing the noise (eq. 41-42)."""
    alpha, sigma = _at(schedule, horizon)
    mean, spread = (
        alpha**2 * positive("second_moment", second_moment),
        (alpha**2 / (1 + sigma)) ** 2 * positive("dim", dim),
    )
    return Certificate(value=mean + spread, terms={"alpha^2 E||X_0||^2": mean, "(1 - sigma)^2 d": spread})


def proposition_3(
    L: float | Lipschitz, second_moment: float, dim: int, schedule: Schedule, horizon: float = 1.0
) -> Certificate:
    """`W2^2(one step from N(0, I), one step from q_T) <= L^2 (alpha_T^2 E||X_0||^2 + (1 - sigma_T)^2 d)` (eq. 28).

    Assumed: a draw is L-Lipschitz in `x_T` at shared noise, in expectation over the noise (eq. 29). A number L is taken
    as known; a measured `Lipschitz` gives its `largest`, and the certificate lists it among its estimates.
    """
    constant = L.largest if isinstance(L, Lipschitz) else positive("L", L)
    start = start_error(second_moment, dim, schedule, horizon).value
    return Certificate(
        value=constant**2 * start,
        terms={"L": constant, "start": start},
        estimates=("L",) if isinstance(L, Lipschitz) else (),
    )


@torch.no_grad()
def coupled_prior_error(
    model: PosteriorModel,
    x_0: Tensor,
    *,
    sampler: Ancestral | None = None,
    generator: torch.Generator,
) -> Certificate:
    """`W2^2` between the sampler's laws from N(0, I) and from `q_1`, by running both with shared noise; our own.

    `E||y - y'||^2`, y from `eps` and y' from `alpha_1 x_0 + sigma_1 eps`: the coupling in the proof of Proposition 3
    (eq. 41-44) measured instead of bounded. It needs no Lipschitz constant, allows any number of steps, and needs of the
    data only items `x_0` `(n, ...)`. Assumed: nothing. Default: one step.
    """
    check_draws("the number of items", len(x_0))
    x_0 = x_0.to(model.like)
    eps = normal_like(x_0, generator)
    one = torch.ones((), dtype=torch.float64)
    start = (model.schedule.alpha(one) * x_0 + model.schedule.sigma(one) * eps).to(x_0)
    sampler, twin = sampler or Ancestral(1), generator.clone_state()
    y, y_q = sampler(model, eps, generator), sampler(model, start, twin)
    cost = Estimate.of(flat(y - y_q).square().sum(1))
    return Certificate(value=cost.value, standard_error=cost.standard_error)


def kl_by_contraction(kl_data: float, schedule: Schedule, horizon: float = 1.0) -> float:
    """`KL(q_T || N(0, I)) <= alpha_T^2 KL(p_0 || N(0, I))` (eq. 59-63): the Ornstein-Uhlenbeck process contracts KL.

    In its own clock `s = 1/2 int beta` it does so by `exp(-2 s)`, which is `alpha^2`. Vacuous for data without a density.
    """
    return _at(schedule, horizon)[0] ** 2 * positive("kl_data", kl_data)


def kl_by_convexity(second_moment: float, dim: int, schedule: Schedule, horizon: float = 1.0) -> float:
    """`KL(q_T || N(0, I)) <= 1/2 (alpha_T^2 E||X_0||^2 + d (sigma_T^2 - 1 - log sigma_T^2))`, for any data; our own.

    KL is convex, and `q_T` is the mean over `x_0` of `N(alpha_T x_0, sigma_T^2 I)`.
    """
    a = _at(schedule, horizon)[0] ** 2
    return 0.5 * (a * positive("second_moment", second_moment) + positive("dim", dim) * _log_excess(a))


def proposition_4(radius: float, kl: float) -> Certificate:
    """`W2^2(one step from N(0, I), one step from q_T) <= 4 R^2 TV <= 4 R^2 min(1, sqrt(KL / 2))` (eq. 53-58, 64).

    `kl` bounds `KL(q_T || N(0, I))`: `kl_by_contraction` is the paper's, `kl_by_convexity` needs only a second moment.
    Assumed: both laws lie in the ball of radius R around the origin, which a network's draws do only if they are cut
    off there. No Lipschitz constant.
    """
    tv = min(1.0, math.sqrt(positive("kl", kl) / 2))
    return Certificate(value=4 * positive("radius", radius) ** 2 * tv, terms={"4 R^2": 4 * radius**2, "TV": tv})


def _at(schedule: Schedule, horizon: float) -> tuple[float, float]:
    if not 0 < horizon <= 1:
        raise UserError(f"the horizon is a time above 0 and at most 1, not {horizon}")
    tau = torch.tensor(horizon, dtype=torch.float64)
    return schedule.alpha(tau).item(), schedule.sigma(tau).item()


def _log_excess(a: float) -> float:
    """`-log(1 - a) - a = a^2/2 + a^3/3 + ...` without cancellation, 0 <= a < 1."""
    if a > 0.01:
        return -math.log1p(-a) - a
    return sum(a**k / k for k in range(2, 10))
