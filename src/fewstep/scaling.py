"""What the flow transports: coordinates `w` in which the clean data is seen from `x_tau`.

`x_0 = offset(x_tau, tau) + scale(tau) w`. A posterior model learns the law (or the mean) of `w` given `(x_tau, tau)`
and undoes the scaling when it samples, so the scaling belongs to the model, with the data's moments that it uses: the
mean item m and the standard deviation s of one component around it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from fewstep.schedule import Schedule, Times
from fewstep.shapes import per_item


class Scaling(ABC):
    """An affine map between `x_0` and `w` for each `(x_tau, tau)`; tau is `(batch,)`."""

    @abstractmethod
    def coefficients(
        self, x_tau: Tensor, tau: Times, schedule: Schedule, mean: Tensor, std: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`(offset, scale)`: the offset has the shape of `x_tau`, the scale one number per item."""


@dataclass(frozen=True)
class IdentityScaling(Scaling):
    """`x_0 = w`: the target is the data itself (the paper's choice)."""

    def coefficients(
        self, x_tau: Tensor, tau: Times, schedule: Schedule, mean: Tensor, std: Tensor
    ) -> tuple[Tensor, Tensor]:
        return x_tau.new_zeros(()).expand_as(x_tau), tau.new_ones(()).expand_as(tau)


@dataclass(frozen=True)
class EpsilonScaling(Scaling):
    """`x_0 = (x_tau - sigma w) / alpha`: w is the noise in `x_tau` (Ho et al. 2020, arXiv 2006.11239, eq. 11-14)."""

    def coefficients(
        self, x_tau: Tensor, tau: Times, schedule: Schedule, mean: Tensor, std: Tensor
    ) -> tuple[Tensor, Tensor]:
        alpha = schedule.alpha(tau)
        return x_tau / per_item(alpha, x_tau), -schedule.sigma(tau) / alpha


@dataclass(frozen=True)
class GaussianScaling(Scaling):
    """The posterior under a Gaussian prior: `x_0 = m + c_skip (x_tau - alpha m) + c_out w`, w of about unit variance.

    `c_skip = alpha s^2 / (alpha^2 s^2 + sigma^2)`, `c_out = sigma s / sqrt(alpha^2 s^2 + sigma^2)`
    (after Karras et al. 2022, arXiv 2206.00364, table 1).
    """

    def coefficients(
        self, x_tau: Tensor, tau: Times, schedule: Schedule, mean: Tensor, std: Tensor
    ) -> tuple[Tensor, Tensor]:
        alpha, sigma = schedule.alpha(tau), schedule.sigma(tau)
        total = (alpha * std) ** 2 + sigma**2
        skip = per_item(alpha * std**2 / total, x_tau)
        offset = mean + skip * (x_tau - per_item(alpha, x_tau) * mean)
        return offset, sigma * std / total.sqrt()
