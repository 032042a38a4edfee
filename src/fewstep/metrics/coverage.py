"""How often is the truth inside the central interval of the draws? The nominal level, if the draws are calibrated."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics.base import Metric, forecast
from fewstep.metrics.ranks import coverage, ranks


@dataclass(frozen=True, kw_only=True)
class IntervalCoverage(Metric):
    """`{"coverage_50": .., "coverage_90": ..}`: share of the truths inside the central interval of each of the `levels`.

    Draws `(m, n, ...)`, cases `(n, ...)`; the mean over cases and components. Below the level where draws are too narrow
    or biased, above it where they are too wide; draws `N(0, c^2)` of N(0, 1) cover `2 Phi(c z) - 1` as m grows. The
    interval is one of ranks and its expectation for calibrated draws is the level for every m (`ranks.coverage`).
    `seed` breaks ties. Draws from the prior cover what they should. Raises `UserError` for no level, or one outside (0, 1).
    """

    levels: tuple[float, ...] = (0.5, 0.9)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.levels or not all(0 < level < 1 for level in self.levels):
            raise UserError(f"give levels of intervals between 0 and 1, like (0.5, 0.9), not {self.levels}")

    def __call__(self, samples: Tensor, reference: Tensor) -> dict[str, float]:
        draws, truth = forecast(samples, reference)
        rank = ranks(draws, truth, torch.Generator().manual_seed(self.seed))
        levels = torch.tensor(self.levels, dtype=torch.float64)
        shares = coverage(rank, len(draws), levels).mean(1).tolist()
        return {f"coverage_{100 * level:g}": share for level, share in zip(self.levels, shares, strict=True)}
