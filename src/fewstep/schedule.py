"""The diffusion: `dX = -1/2 beta(tau) X dtau + sqrt(beta(tau)) dW` for tau in [0, 1] (eq. 14).

`alpha_tau = exp(-1/2 int_0^tau beta)` and `sigma_tau^2 = 1 - alpha_tau^2`, so that `x_tau = alpha_tau x_0 + sigma_tau
eps`. Everything is derived from `log alpha`, so that nothing cancels near tau = 0.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.errors import UserError

Times = Float[Tensor, "*batch"]


class Schedule(ABC):
    """A variance-preserving diffusion: `alpha^2 + sigma^2 = 1`, log-SNR strictly decreasing in tau."""

    @abstractmethod
    def log_alpha(self, tau: Times) -> Times:
        """`log alpha_tau`, 0 at tau = 0 and negative behind it."""

    @abstractmethod
    def beta(self, tau: Times | float) -> Times:
        """The rate of noising, `-2 d log alpha / dtau`."""

    @abstractmethod
    def tau_at(self, log_snr: Times) -> Times:
        """The time at which the log signal-to-noise ratio has this value: the inverse of `log_snr`."""

    def alpha(self, tau: Times | float) -> Times:
        """The factor of the data in `x_tau`, from 1 at tau = 0."""
        return self.log_alpha(torch.as_tensor(tau)).exp()

    def sigma(self, tau: Times | float) -> Times:
        """The standard deviation of the noise in `x_tau`, from 0 at tau = 0."""
        return (-torch.expm1(2 * self.log_alpha(torch.as_tensor(tau)))).sqrt()

    def log_snr(self, tau: Times | float) -> Times:
        """`log(alpha^2 / sigma^2)`, +inf at tau = 0."""
        log_alpha = self.log_alpha(torch.as_tensor(tau))
        return 2 * log_alpha - torch.log(-torch.expm1(2 * log_alpha))


@dataclass(frozen=True)
class VPSchedule(Schedule):
    """`beta(tau) = beta_min + (beta_max - beta_min) tau` (eq. 14-15; the paper's values of beta are reconstructed).

    Defaults: those of Song et al. 2021 (arXiv 2011.13456). Raises `UserError` unless `0 < beta_min <= beta_max`.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max:
            raise UserError(f"VPSchedule needs 0 < beta_min <= beta_max, not {self.beta_min} and {self.beta_max}")

    def log_alpha(self, tau: Times) -> Times:
        return -0.5 * tau * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * tau)

    def beta(self, tau: Times | float) -> Times:
        return self.beta_min + (self.beta_max - self.beta_min) * torch.as_tensor(tau)

    def tau_at(self, log_snr: Times) -> Times:
        integral = torch.logaddexp(torch.zeros_like(log_snr), -log_snr)  # int_0^tau beta = log(1 + 1/SNR)
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * slope * integral).sqrt())


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """`alpha_tau = cos(theta tau)`, `sigma_tau = sin(theta tau)` with `cos(theta) = alpha_1`, the signal left at tau =
    1.

    The cosine schedule of Nichol and Dhariwal 2021 (arXiv 2102.09672), cut before beta becomes infinite.
    Raises `UserError` unless `0 < alpha_1 < 1`.
    """

    alpha_1: float = 0.005

    def __post_init__(self) -> None:
        if not 0 < self.alpha_1 < 1:
            raise UserError(f"CosineSchedule needs 0 < alpha_1 < 1, not {self.alpha_1}")

    @property
    def theta(self) -> float:
        """The angle at tau = 1."""
        return math.acos(self.alpha_1)

    def log_alpha(self, tau: Times) -> Times:
        return torch.log1p(-2 * torch.sin(0.5 * self.theta * tau) ** 2)

    def beta(self, tau: Times | float) -> Times:
        return 2 * self.theta * torch.tan(self.theta * torch.as_tensor(tau))

    def tau_at(self, log_snr: Times) -> Times:
        return torch.atan(torch.exp(-0.5 * log_snr)) / self.theta
