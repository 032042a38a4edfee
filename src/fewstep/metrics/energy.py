"""Energy distance between two samples and the energy score of a forecast, both unbiased (Gneiting and Raftery 2007, 4.3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics.base import Metric, distances_within, forecast, two_samples


@dataclass(frozen=True, kw_only=True)
class EnergyDistance(Metric):
    """`2 E||X - Y|| - E||X - X'|| - E||Y - Y'||` by U-statistics: 0 in the mean for equal laws, so it can be negative.

    `{"energy_distance": ...}`, in the units of the data. Works through blocks of `block` rows.
    """

    block: int = 2048

    def __call__(self, samples: Tensor, reference: Tensor) -> dict[str, float]:
        x, y = two_samples(samples, reference)
        n, k = len(x), len(y)
        cross = self._sum(x, y) / (n * k)
        within = self._sum(x, x) / (n * (n - 1)) + self._sum(y, y) / (k * (k - 1))
        return {"energy_distance": 2 * cross - within}

    def _sum(self, x: Tensor, y: Tensor) -> float:
        return sum(torch.cdist(part, y).sum().item() for part in x.split(self.block))


@dataclass(frozen=True, kw_only=True)
class EnergyScore(Metric):
    """`mean_i ||X_i - x||^p - 1/2 mean_{i != j} ||X_i - X_j||^p`, averaged over cases, p = `power`: smaller is better.

    Strictly proper for 0 < p < 2 (Gneiting and Raftery 2007, eq. 22); at 2 it would see the mean alone, so that other
    powers raise `UserError`. Draws `(m, n, ...)`, cases `(n, ...)`. The second mean leaves out i = j, so that the score
    does not depend on m. `{"energy_score": ...}`, in the units of the data to the power p.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.power < 2:
            raise UserError(f"an energy score is strictly proper for a power between 0 and 2, not {self.power}: take 1")

    def __call__(self, samples: Tensor, reference: Tensor) -> dict[str, float]:
        draws, truth = forecast(samples, reference)
        m = len(draws)
        from_truth = (draws - truth).transpose(0, 1).contiguous()
        error = from_truth.norm(dim=-1).pow(self.power).mean()
        spread = distances_within(from_truth).pow(self.power).sum(dim=(1, 2)).mean() / (m * (m - 1))
        return {"energy_score": (error - 0.5 * spread).item()}
