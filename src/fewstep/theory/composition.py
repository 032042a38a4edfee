"""The error of N steps from the errors of one, and the grid of times that makes this budget smallest; our own.

One step of Algorithm 2 is `x_s = A x_0 + B x_tau + noise` with the bridge's `A = alpha_s v / sigma_tau^2` and
`B = a sigma_s^2 / sigma_tau^2` (eq. 19). With `err_tau` the W2 distance of the sampler's law at tau to `q_tau`,
`eps(tau)` the root mean square over `q_tau` of the W2 error of a posterior draw, and `L(tau)` the Lipschitz constant of a
model draw in `x_tau` at shared noise: couple the two states at best, share the noises, insert a model draw from the true
state, and `err_s <= (A L(tau) + B) err_tau + A eps(tau)`.

`eps^2` may be Corollary 1's bound or a measured one (the plain distance of samples, which is too large, if it is to be on
the safe side); the budget is a bound where `eps` and L are. The grid of the smallest budget need not be the best grid.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fewstep.bridge import bridge
from fewstep.errors import UserError
from fewstep.schedule import Schedule
from fewstep.theory.certificate import Certificate, Estimate
from fewstep.theory.lipschitz import Lipschitz
from fewstep.times import CustomGrid, LogSNRGrid, UniformGrid


@dataclass(frozen=True, kw_only=True)
class Level:
    """What is known at one tau: `error` is `eps^2(tau)`, `L` the Lipschitz constant, a number or as it was measured.

    `interpolated`: both are guesses from other times.
    """

    tau: float
    error: Estimate
    L: float | Lipschitz
    interpolated: bool = False

    @property
    def eps(self) -> float:
        """The root of the error; 0 where an unbiased estimate fell below 0."""
        return math.sqrt(max(self.error.value, 0.0))

    @property
    def constant(self) -> float:
        """L; of a measured one, the largest."""
        return self.L.largest if isinstance(self.L, Lipschitz) else self.L


def bridge_weights(s: Tensor, tau: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """`(A, B)`: what the mean of `x_s` takes of `x_0` and of `x_tau`, for times `(n,)` each, `s < tau` (eq. 19)."""
    one = torch.ones(len(tau), 1, dtype=tau.dtype)
    A, _ = bridge(one, torch.zeros_like(one), s, tau, schedule)
    B, _ = bridge(torch.zeros_like(one), one, s, tau, schedule)
    return A[:, 0], B[:, 0]


def composed_bound(levels: Sequence[Level], start: Estimate, schedule: Schedule) -> Certificate:
    """`err_0^2` from `err_1^2 = start` by `err_s <= (A L(tau) + B) err_tau + A eps(tau)`, one level for each step.

    The levels decrease from tau = 1, and the last step goes to 0, where A = 1 and B = 0. Terms: `err_0` and its shares,
    `start` and `eps at tau`. Among its estimates are a measured L and whatever was interpolated. Raises `UserError` unless
    there are levels, the first at 1, and they decrease.
    """
    if not levels:
        raise UserError("no levels to compose: measure eps and L at each time of the grid but 0")
    taus = [level.tau for level in levels]
    CustomGrid(times=(*taus, 0.0))  # checks them
    s, tau = (torch.tensor(x, dtype=torch.float64) for x in ([*taus[1:], 0.0], taus))
    A, B = (x.tolist() for x in bridge_weights(s, tau, schedule))
    shares, variances = [math.sqrt(max(start.value, 0.0))], [_root_error(start) ** 2]
    for level, a, b in zip(levels, A, B, strict=True):
        factor = a * level.constant + b
        shares = [*(factor * share for share in shares), a * level.eps]
        variances = [*(factor**2 * v for v in variances), (a * _root_error(level.error)) ** 2]
    error = sum(shares)
    return Certificate(
        value=error**2,
        standard_error=2 * error * math.sqrt(sum(variances)),
        terms={"err_0": error, "start": shares[0]}
        | {f"eps at {x:.3g}": share for x, share in zip(taus, shares[1:], strict=True)},
        estimates=(("L",) if any(isinstance(level.L, Lipschitz) for level in levels) else ())
        + tuple(f"eps and L at {level.tau:.3g}, interpolated" for level in levels if level.interpolated),
    )


def interpolate_levels(levels: Sequence[Level], taus: Sequence[float], schedule: Schedule) -> list[Level]:
    """Levels at other times: eps, its standard error and L linear in log-SNR, constant beyond the levels that are given.

    Other levels than the given ones are marked as interpolated, and with them every bound that is made of them: nothing
    says that eps and L are no larger between the levels.
    """
    if not levels:
        raise UserError("no levels to interpolate: measure eps and L at one time or more")
    known = sorted(levels, key=lambda level: -level.tau)
    at, x = (
        schedule.log_snr(torch.tensor(list(t), dtype=torch.float64)).numpy() for t in ((k.tau for k in known), taus)
    )
    eps = np.interp(x, at, [level.eps for level in known])
    errors = np.interp(x, at, [level.error.standard_error for level in known])
    constants = np.interp(x, at, [level.constant for level in known])
    measured = any(isinstance(level.L, Lipschitz) for level in known)
    return [
        Level(
            tau=tau,
            error=Estimate(value=float(e) ** 2, standard_error=float(error)),
            L=Lipschitz(largest=float(L), typical=float(L)) if measured else float(L),
            interpolated=all(tau != level.tau for level in known),
        )
        for tau, e, error, L in zip(taus, eps, errors, constants, strict=True)
    ]


def best_grid(
    levels: Sequence[Level], start: Estimate, schedule: Schedule, steps: int, candidates: Sequence[float] | None = None
) -> CustomGrid:
    """The grid of `steps` steps with the smallest composed bound, among all whose inner times are candidates.

    `err_s` increases with `err_tau`, so that the best grid to s passes through best grids: dynamic programming finds the
    minimum exactly. eps and L between the levels are interpolated. Candidates: by default 200 times, half of them even
    in tau, half in log-SNR; the even and the log-SNR grid of so many steps are always among them, so that the bound at the
    result is no larger than theirs, whatever the candidates are. Raises `UserError` where a candidate is not in [0, 1].
    """
    usual = [UniformGrid()(steps, schedule), LogSNRGrid()(steps, schedule)]
    own = torch.tensor(candidates, dtype=torch.float64) if candidates is not None else _candidates(schedule)
    times = torch.cat([own, *usual]).unique().flip(0)  # 1 = times[0] > ... > times[-1] = 0
    if times[0] != 1 or times[-1] != 0:
        raise UserError("candidate times lie between 0 (data) and 1 (noise)")
    inner = times[:-1]
    known = interpolate_levels(levels, inner.tolist(), schedule)
    L, eps = (torch.tensor(x, dtype=torch.float64) for x in zip(*((k.constant, k.eps) for k in known), strict=True))
    n = len(times)
    i, j = torch.triu_indices(n, n, offset=1)  # every step times[i] -> times[j]
    A, B = bridge_weights(times[j], times[i], schedule)
    factor, added = (torch.full((n, n), torch.inf, dtype=torch.float64) for _ in range(2))
    factor[i, j], added[i, j] = A * L[i] + B, A * eps[i]
    error = torch.full((n,), torch.inf, dtype=torch.float64)
    error[0] = math.sqrt(max(start.value, 0.0))
    came_from = []
    for _ in range(steps):
        reached = torch.where(torch.isfinite(error)[:, None], factor * error.nan_to_num(posinf=0.0)[:, None], torch.inf)
        error, best = (reached + added).min(0)
        came_from.append(best)
    path = [n - 1]
    for best in reversed(came_from):
        path.append(int(best[path[-1]]))
    return CustomGrid(times=tuple(times[path].flip(0).tolist()))


def _candidates(schedule: Schedule, n: int = 100) -> Tensor:
    return torch.cat([UniformGrid()(n, schedule), LogSNRGrid(tau_min=0.005)(n, schedule)])


def _root_error(error: Estimate) -> float:
    """The standard error of the root of an estimate; near 0, where the root has no slope, that of the error's own size."""
    if error.standard_error == 0:
        return 0.0
    return error.standard_error / (2 * math.sqrt(max(error.value, error.standard_error)))
