"""The bridge `p(x_s | x_0, x_tau)`, `s < tau` (eq. 19), and the one-parameter family of kernels around it.

Family: `x_s = alpha_s x_0 + c (sigma_s / sigma_tau) (x_tau - alpha_tau x_0) + sigma_s sqrt(1 - c^2) xi`.
`c = 1` is DDIM, `c = 0` fresh re-noising, and `c = (alpha_tau / alpha_s)(sigma_s / sigma_tau)` the bridge. With `x_0`
drawn from the exact posterior every c keeps the marginals; only the bridge keeps the joint law of `(x_s, x_tau)`.
"""

import math

from torch import Tensor

from fewstep.draws import Source, normal_like
from fewstep.schedule import Schedule, Times
from fewstep.shapes import as_time, per_item
from fewstep.transition import moments


def bridge(
    x_0: Tensor, x_tau: Tensor, s: Times | float, tau: Times | float, schedule: Schedule
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of `x_s` given both ends (eq. 19).

    `mean = (alpha_s v x_0 + a sigma_s^2 x_tau) / sigma_tau^2`, `std^2 = sigma_s^2 v / sigma_tau^2`; at s = 0 this is
    `x_0`. The standard deviation has axes of length one behind the batch axis.
    """
    s, tau = as_time(s, x_0), as_time(tau, x_0)
    a, v = moments(s, tau, schedule)
    sigma_s, sigma_tau = schedule.sigma(s), schedule.sigma(tau)
    weight_0 = schedule.alpha(s) * v / sigma_tau**2
    weight_tau = a * sigma_s**2 / sigma_tau**2
    mean = per_item(weight_0, x_0) * x_0 + per_item(weight_tau, x_0) * x_tau
    return mean, per_item(sigma_s * v.sqrt() / sigma_tau, x_0)


def sample_bridge(
    x_0: Tensor,
    x_tau: Tensor,
    s: Times | float,
    tau: Times | float,
    schedule: Schedule,
    generator: Source = None,
) -> Tensor:
    """A draw of `x_s` given both ends, in the dtype of `x_tau`."""
    mean, std = bridge(x_0, x_tau, s, tau, schedule)
    return (mean + std * normal_like(x_0, generator)).to(x_tau.dtype)


def kernel(
    x_0: Tensor, x_tau: Tensor, s: Times | float, tau: Times | float, schedule: Schedule, c: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of `x_s` in the family above; `0 <= c <= 1`, a number or one per item."""
    s, tau = as_time(s, x_0), as_time(tau, x_0)
    sigma_s, sigma_tau = schedule.sigma(s), schedule.sigma(tau)
    noise = x_tau - per_item(schedule.alpha(tau), x_0) * x_0  # sigma_tau times the noise that x_0 explains
    mean = per_item(schedule.alpha(s), x_0) * x_0 + per_item(c * sigma_s / sigma_tau, x_0) * noise
    left = (1 - c**2).sqrt() if isinstance(c, Tensor) else math.sqrt(1 - c**2)
    return mean, per_item(sigma_s * left, x_0)


def bridge_c(s: Times, tau: Times, schedule: Schedule) -> Tensor:
    """The member of the family that is the bridge: `c = (alpha_tau / alpha_s)(sigma_s / sigma_tau)`."""
    a, _ = moments(s, tau, schedule)
    return a * schedule.sigma(s) / schedule.sigma(tau)
