"""Is the spread of the draws as large as the error of their mean? The first question to a probabilistic forecast."""

import math
from dataclasses import dataclass

from torch import Tensor

from fewstep.metrics.base import Metric, forecast


@dataclass(frozen=True)
class SpreadSkill(Metric):
    """Spread over skill: 1 for calibrated draws, below 1 for draws that vary too little (Fortin et al. 2014).

    With m draws for each case, `spread^2` is the mean over cases and components of the unbiased variance of the draws,
    `skill` the root mean square error of their mean, and the ratio is `sqrt(1 + 1/m) spread / skill`.
    (Away from 1 a finite m draws the ratio towards 1: draws of standard deviation c give `c sqrt((m + 1)/(m + c^2))`.)
    Draws `(m, n, ...)`, cases `(n, ...)`; `{"spread_skill", "spread", "skill"}`.
    """

    def __call__(self, samples: Tensor, reference: Tensor) -> dict[str, float]:
        draws, truth = forecast(samples, reference)
        m = len(draws)
        spread = draws.var(dim=0).mean().sqrt().item()
        skill = (draws.mean(dim=0) - truth).square().mean().sqrt().item()
        ratio = (1 + 1 / m) ** 0.5 * spread / skill if skill > 0 else math.inf
        return {"spread_skill": ratio, "spread": spread, "skill": skill}
