"""The forward transition `p(x_tau | x_s) = N(a x_s, v I)`, `s <= tau` (eq. 15).

`a = alpha_tau / alpha_s` and `v = sigma_tau^2 - a^2 sigma_s^2`, which is `1 - a^2` for a variance-preserving diffusion.
"""

import math

import torch
from torch import Tensor

from fewstep.draws import Source, normal_like
from fewstep.schedule import Schedule, Times
from fewstep.shapes import as_time, flat, per_item


def moments(s: Times, tau: Times, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """`(a, v)`: the factor of `x_s` and the variance of `x_tau` given `x_s` (eq. 15)."""
    log_a = schedule.log_alpha(tau) - schedule.log_alpha(s)
    return log_a.exp(), -torch.expm1(2 * log_a)


def sample(x_s: Tensor, s: Times | float, tau: Times | float, schedule: Schedule, generator: Source = None) -> Tensor:
    """`x_tau ~ p(x_tau | x_s)` (eq. 15); with `s = 0`, the noised data `alpha x_0 + sigma eps`."""
    a, v = moments(as_time(s, x_s), as_time(tau, x_s), schedule)
    return per_item(a, x_s) * x_s + per_item(v.sqrt(), x_s) * normal_like(x_s, generator)


def log_prob(x_tau: Tensor, x_s: Tensor, s: Times | float, tau: Times | float, schedule: Schedule) -> Tensor:
    """`log p(x_tau | x_s)`, one number per item (eq. 15)."""
    a, v = moments(as_time(s, x_s), as_time(tau, x_s), schedule)
    return gaussian_log_prob(x_tau, per_item(a, x_s) * x_s, v)


def gaussian_log_prob(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """`log N(x; mean, variance I)`, one number per item; the variance is one number or one per item."""
    residual = flat(x - mean)
    d = residual.shape[1]
    return -0.5 * (residual.square().sum(1) / variance + d * torch.log(2 * math.pi * variance))
