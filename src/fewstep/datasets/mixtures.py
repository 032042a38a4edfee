"""Gaussian mixtures as data: an endless supply of fresh draws from a law that is known exactly."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep.datasets.base import Dataset, Examples
from fewstep.draws import Source
from fewstep.errors import UserError
from fewstep.mixture import GaussianMixture


@dataclass(frozen=True, kw_only=True, eq=False)
class MixtureExamples(Examples):
    """Fresh draws `x_0` `(n, d)`, float32, from a mixture; draws to be kept come from the stream of this number."""

    mixture: GaussianMixture
    stream: int

    @property
    def size(self) -> None:
        return None

    def batch(self, n: int, generator: Source) -> dict[str, Tensor]:
        return {"x_0": self.mixture.sample((n,), generator).float()}

    def take(self, n: int, seed: int = 0) -> dict[str, Tensor]:
        if n < 1:
            raise UserError(f"{n} draws of a mixture asked for: ask for 1 or more")
        state = np.random.SeedSequence([seed, self.stream]).generate_state(1)
        return self.batch(n, torch.Generator().manual_seed(int(state[0])))


class MixtureDataset(Dataset):
    """Data whose law is a Gaussian mixture: training and test draws come from one law by different streams."""

    @property
    @abstractmethod
    def mixture(self) -> GaussianMixture:
        """The law of the data, float64."""

    @property
    def item_shape(self) -> tuple[int, ...]:
        return (self.mixture.dim,)

    def train(self, root: Path | None = None) -> MixtureExamples:
        return MixtureExamples(mixture=self.mixture, stream=0)

    def test(self, root: Path | None = None) -> MixtureExamples:
        return MixtureExamples(mixture=self.mixture, stream=1)


@dataclass(frozen=True, kw_only=True)
class Ring(MixtureDataset):
    """Equal modes on a circle, `x_0 = (radius e_k + std eps) / c` with `e_k` at angle `2 pi k / modes`, `x_0` `(2,)`.

    `c^2 = radius^2 / 2 + std^2` is the variance of each axis, so that `x_0` has unit covariance.
    Raises `UserError` unless `modes >= 3` (fewer have no equal variances), `radius > 0` and `std > 0`.
    """

    modes: int = 8
    radius: float = 2.0
    std: float = 0.15

    def __post_init__(self) -> None:
        if self.modes < 3 or self.radius <= 0 or self.std <= 0:
            raise UserError(
                f"Ring needs modes >= 3, radius > 0 and std > 0, not {self.modes}, {self.radius} and {self.std}"
            )

    @property
    def mixture(self) -> GaussianMixture:
        c = math.sqrt(self.radius**2 / 2 + self.std**2)
        angles = 2 * math.pi * torch.arange(self.modes, dtype=torch.float64) / self.modes
        means = self.radius / c * torch.stack([angles.cos(), angles.sin()], dim=-1)
        covariances = (self.std / c) ** 2 * torch.eye(2, dtype=torch.float64).expand(self.modes, 2, 2)
        return GaussianMixture(torch.ones(self.modes, dtype=torch.float64), means, covariances)


@dataclass(frozen=True, kw_only=True)
class T2(MixtureDataset):
    """The asymmetric reference problem, `x_0` `(2,)`: three correlated components with mean (-.4, -.1).

    Its covariance is [[3.365, .595], [.595, 1.33]]; no axis or component can be swapped without changing the law.
    """

    @property
    def mixture(self) -> GaussianMixture:
        weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
        means = torch.tensor([[-2.0, 0.0], [2.0, 1.0], [0.0, -2.0]], dtype=torch.float64)
        covariances = torch.tensor(
            [[[0.30, 0.10], [0.10, 0.20]], [[0.25, -0.05], [-0.05, 0.40]], [[0.50, 0.0], [0.0, 0.10]]],
            dtype=torch.float64,
        )
        return GaussianMixture(weights, means, covariances)


@dataclass(frozen=True, kw_only=True)
class Correlated(MixtureDataset):
    """Correlated components in many dimensions, `x_0` `(dim,)`: every direction matters, and no axis is one of its own.

    `modes` components of weights proportional to `modes .. 1`, means `spread` times standard normal, covariances
    `Q_k diag(e) Q_k'`, `e` even in the logarithm from `smallest` to 1, `Q_k` random rotations; all divided by the root of the
    mean variance of a component, so that this is 1. `seed` decides them. Raises `UserError` where a number is out of range.
    """

    dim: int = 16
    modes: int = 4
    spread: float = 0.8
    smallest: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dim < 1 or self.modes < 1 or self.seed < 0:
            raise UserError(f"Correlated needs dim and modes from 1 up and a seed from 0, not {self}")
        if not (self.spread >= 0 and 0 < self.smallest <= 1):
            raise UserError(
                f"Correlated needs spread >= 0 and 0 < smallest <= 1, not {self.spread} and {self.smallest}"
            )

    @property
    def mixture(self) -> GaussianMixture:
        random = np.random.RandomState(self.seed)  # the one stream that numpy promises never to change
        weights = torch.arange(self.modes, 0, -1, dtype=torch.float64)
        means = torch.from_numpy(self.spread * random.standard_normal((self.modes, self.dim)))
        rotations = torch.linalg.qr(torch.from_numpy(random.standard_normal((self.modes, self.dim, self.dim)))).Q
        variances = torch.linspace(math.log(self.smallest), 0, self.dim, dtype=torch.float64).exp()
        covariances = (rotations * variances) @ rotations.mT
        covariances = 0.5 * (covariances + covariances.mT)
        scale = GaussianMixture(weights, means, covariances).covariance.trace() / self.dim
        return GaussianMixture(weights, means / scale.sqrt(), covariances / scale)
