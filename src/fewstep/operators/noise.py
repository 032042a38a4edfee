"""The noise of a measurement: `p(y | A x)`, to draw from and to weigh with."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.draws import Source, integers, normal_like
from fewstep.errors import UserError


class Noise(ABC):
    """A law of y for each clean measurement; parameters are the fields of a frozen dataclass."""

    @abstractmethod
    def sample(self, clean: Tensor, generator: Source = None) -> Tensor:
        """Measurements for clean ones `(batch, *y_shape)`."""

    @abstractmethod
    def log_likelihood(self, y: Tensor, clean: Tensor) -> Tensor:
        """`log p(y | clean)` with its constants, `(..., batch)`, for y `(batch, *y_shape)` and clean `(..., batch, *y_shape)`.

        The entries of an item are summed. A y of batch 1 serves all the items of clean. Raises `UserError` where they do not fit.
        """


@dataclass(frozen=True, kw_only=True)
class Gaussian(Noise):
    """`y ~ N(clean, sigma^2 I)`, `sigma > 0`; `UserError` otherwise."""

    sigma: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise UserError(f"Gaussian noise has sigma > 0, not {self.sigma}: take NoNoise for none")

    def sample(self, clean: Tensor, generator: Source = None) -> Tensor:
        return clean + self.sigma * normal_like(clean, generator)

    def log_likelihood(self, y: Tensor, clean: Tensor) -> Tensor:
        _check(y, clean)
        constant = 0.5 * math.log(2 * math.pi) + math.log(self.sigma)
        return _summed(-0.5 * ((y - clean) / self.sigma).square() - constant, y)


@dataclass(frozen=True, kw_only=True)
class NoNoise(Noise):
    """`y = clean`. It has no density, so that `log_likelihood` raises `UserError`."""

    def sample(self, clean: Tensor, generator: Source = None) -> Tensor:
        return clean

    def log_likelihood(self, y: Tensor, clean: Tensor) -> Tensor:
        raise UserError(
            "a measurement without noise has no likelihood to weigh with: take NullSpace or DPS, which need none, or give a "
            "small noise, Gaussian(sigma=...)"
        )


def gaussian_or_none(sigma: float) -> Noise:
    """Gaussian noise of this deviation, and none where it is 0."""
    return Gaussian(sigma=sigma) if sigma else NoNoise()


@dataclass(frozen=True, kw_only=True)
class Poisson(Noise):
    """`y = 2 n / gain - 1`, `n ~ Poisson(gain (clean + 1) / 2)`: photons, `gain` of them in the mean in a white pixel (1).

    A clean value below -1 counts as -1, no light at all: there the gradient is 0. Counts between whole numbers, as a rounded y
    has them, are weighed by the formula with the gamma function. Raises `UserError` unless gain > 0, and for y below -1.
    """

    gain: float

    def __post_init__(self) -> None:
        if not 0 < self.gain < math.inf:
            raise UserError(f"Poisson noise has a gain above 0, the photons of a white pixel, not {self.gain}")

    def sample(self, clean: Tensor, generator: Source = None) -> Tensor:
        counts = self._rate(clean).detach().cpu().clone()
        # a stream for each item, since torch.poisson knows neither one generator per item nor shards
        for item, seed in zip(counts, integers(2**62, (len(counts),), generator).tolist(), strict=True):
            item.copy_(torch.poisson(item, generator=torch.Generator().manual_seed(seed)))
        return 2 / self.gain * counts.to(clean) - 1

    def log_likelihood(self, y: Tensor, clean: Tensor) -> Tensor:
        _check(y, clean)
        count, rate = self.gain * (y + 1) / 2, self._rate(clean)
        if (count < -1e-3).any():
            raise UserError(
                f"y has values down to {y.min():.3g}, and Poisson noise none below -1, where no photon is counted: "
                "is y an image in [-1, 1]?"
            )
        count = count.clamp_min(0)
        lit = rate > 0
        dark = torch.where(count > 0, -math.inf, 0.0).to(rate)
        # the logarithm sees no 0, because autograd looks at both branches of a `where`
        return _summed(
            torch.where(lit, count * torch.where(lit, rate, 1).log(), dark) - rate - torch.lgamma(count + 1), y
        )

    def _rate(self, clean: Tensor) -> Tensor:
        return (self.gain * (clean + 1) / 2).clamp_min(0)


def _check(y: Tensor, clean: Tensor) -> None:
    if (
        clean.ndim < y.ndim
        or y.shape[1:] != clean.shape[clean.ndim - y.ndim + 1 :]
        or len(y) not in (1, clean.shape[-y.ndim])
    ):
        raise UserError(
            f"measurements {tuple(y.shape)} and clean ones {tuple(clean.shape)}: give (batch, ...) and (draws, batch, ...) with "
            "the same batch and the same entries"
        )


def _summed(log_p: Tensor, y: Tensor) -> Tensor:
    return log_p.flatten(log_p.ndim - y.ndim + 1).sum(-1) if y.ndim > 1 else log_p
