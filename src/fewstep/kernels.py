"""Radial kernels `k(x, y) = k(r)`, `r = ||x - y||`, in log space, with what their mean shifts are made of.

`grad_x k = k (y - x) / b(r)` with `b(r) = r / g(r)`, `g = -d log k / dr`, and the companion ("sharp") kernel
`k#(r) = int_r^inf u k(u) du` has `grad_x k# = k (y - x)`: a mean shift by k is a gradient by `k#`. All have `k(0) = 1`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.shapes import distances


@dataclass(frozen=True, kw_only=True)
class Kernel(ABC):
    """A kernel of a `bandwidth` above 0, in the units of the data; `UserError` otherwise."""

    bandwidth: float

    def __post_init__(self) -> None:
        if not 0 < self.bandwidth < math.inf:
            raise UserError(f"a kernel needs a bandwidth above 0, and a finite one, not {self.bandwidth}")

    @abstractmethod
    def log_k(self, r: Tensor) -> Tensor:
        """`log k(r)` at distances r >= 0."""

    @abstractmethod
    def b(self, r: Tensor) -> Tensor:
        """`b(r) = r / g(r)`, a squared length."""

    @abstractmethod
    def log_sharp(self, r: Tensor) -> Tensor:
        """`log k#(r)`."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """`k(x_i, y_j)` `(.., n, k)` of `(.., n, d)` and `(.., k, d)`."""
        return self.log_k(distances(x, y)).exp()


@dataclass(frozen=True, kw_only=True)
class Gaussian(Kernel):
    """`exp(-r^2 / (2 h^2))`, the only one whose b is constant, `h^2`, and which is its own companion, `k# = h^2 k`."""

    def log_k(self, r: Tensor) -> Tensor:
        return -0.5 * (r / self.bandwidth).square()

    def b(self, r: Tensor) -> Tensor:
        return torch.full_like(r, self.bandwidth**2)

    def log_sharp(self, r: Tensor) -> Tensor:
        return 2 * math.log(self.bandwidth) + self.log_k(r)


POLYNOMIALS = ((1.0,), (1.0, 1.0), (1.0, 1.0, 1 / 3), (1.0, 1.0, 2 / 5, 1 / 15))  # P_p of Matern p + 1/2, in a r


@dataclass(frozen=True, kw_only=True)
class Matern(Kernel):
    """`P_p(a r) exp(-a r)` of smoothness `nu = p + 1/2`, `p = order` from 0 to 2, `a = sqrt(2 nu) / h`.

    (Rasmussen and Williams 2006, eq. 4.17.) `d/dr P_{p+1}(a r) exp(-a r) = -(a^2 r / (2 p + 1)) P_p(a r) exp(-a r)`, so that the
    companion of order p is of order p + 1 with the same a.
    """

    order: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (0, 1, 2):
            raise UserError(f"a Matern kernel has order 0, 1 or 2 (nu = 1/2, 3/2, 5/2), not {self.order}")

    @property
    def rate(self) -> float:
        """a, the inverse of the length of its decay."""
        return math.sqrt(2 * self.order + 1) / self.bandwidth

    def log_k(self, r: Tensor) -> Tensor:
        return self._polynomial(self.order, r).log() - self.rate * r

    def b(self, r: Tensor) -> Tensor:
        if self.order == 0:
            return r / self.rate
        ratio = self._polynomial(self.order, r) / self._polynomial(self.order - 1, r)
        return (2 * self.order - 1) / self.rate**2 * ratio

    def log_sharp(self, r: Tensor) -> Tensor:
        factor = math.log((2 * self.order + 1) / self.rate**2)
        return factor + self._polynomial(self.order + 1, r).log() - self.rate * r

    def _polynomial(self, order: int, r: Tensor) -> Tensor:
        value, x = torch.zeros_like(r), self.rate * r
        for coefficient in reversed(POLYNOMIALS[order]):
            value = value * x + coefficient
        return value


@dataclass(frozen=True, kw_only=True)
class Laplace(Matern):
    """`exp(-r / h)`: Matern of order 0. `b = h r`, `k# = h (r + h) exp(-r / h)`."""

    order: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order:
            raise UserError("a Laplace kernel is the Matern kernel of order 0: take Matern for others")


@dataclass(frozen=True, kw_only=True)
class InverseMultiquadric(Kernel):
    """`(1 + r^2 / h^2)^-m`, m = `power` above 1 (below, its companion is infinite). `b = (h^2 + r^2) / 2m`."""

    power: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 < self.power < math.inf:
            raise UserError(f"an inverse multiquadric has a power above 1, where it has a companion, not {self.power}")

    def log_k(self, r: Tensor) -> Tensor:
        return -self.power * torch.log1p((r / self.bandwidth).square())

    def b(self, r: Tensor) -> Tensor:
        return (self.bandwidth**2 + r.square()) / (2 * self.power)

    def log_sharp(self, r: Tensor) -> Tensor:
        factor = math.log(self.bandwidth**2 / (2 * (self.power - 1)))
        return factor + (1 - self.power) * torch.log1p((r / self.bandwidth).square())


@dataclass(frozen=True, kw_only=True)
class ExponentialPower(Kernel):
    """`exp(-(r / h)^beta)`, `0 < beta <= 2`; `b = r^(2 - beta) h^beta / beta`, `k# = h^2 / beta Gamma(2 / beta, -log k)`."""

    beta: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta <= 2:
            raise UserError(f"an exponential power kernel has 0 < beta <= 2, where it is positive, not {self.beta}")

    def log_k(self, r: Tensor) -> Tensor:
        return -((r / self.bandwidth) ** self.beta)

    def b(self, r: Tensor) -> Tensor:
        return r ** (2 - self.beta) * self.bandwidth**self.beta / self.beta

    def log_sharp(self, r: Tensor) -> Tensor:
        s, x = 2 / self.beta, (r.double() / self.bandwidth) ** self.beta
        near = x.clamp_max(500)  # beyond, the incomplete gamma function underflows: by its asymptotic series
        log_gamma = torch.special.gammaincc(torch.full_like(x, s), near).log() + math.lgamma(s)
        far = x.clamp_min(500)
        series = (s - 1) * far.log() - far + torch.log1p((s - 1) / far * (1 + (s - 2) / far))
        return (math.log(self.bandwidth**2 / self.beta) + torch.where(x <= 500, log_gamma, series)).to(r)


def matched_gaussian(kernel: Kernel, distance: float) -> Gaussian:
    """The Gaussian kernel that looks most like `kernel` where points are about this far apart: `h^2 = b(distance)`.

    `log k` is expanded in `r^2` about there, so for a Laplace kernel `h^2 = tau rho`. In many dimensions all distances are alike,
    and the two have the same mean shifts, to a relative `O(h / (tau D))`. Raises `UserError` unless the distance is above 0.
    """
    if not 0 < distance < math.inf:
        raise UserError(f"kernels are matched at a distance above 0, not {distance}")
    return Gaussian(bandwidth=kernel.b(torch.tensor(distance, dtype=torch.float64)).sqrt().item())


def matched_laplace(kernel: Gaussian, distance: float) -> Laplace:
    """The Laplace kernel that `matched_gaussian` takes to this one: `tau = h^2 / distance`."""
    if not 0 < distance < math.inf:
        raise UserError(f"kernels are matched at a distance above 0, not {distance}")
    return Laplace(bandwidth=kernel.bandwidth**2 / distance)
