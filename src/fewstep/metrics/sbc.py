"""Is the truth one of the draws, component by component? Simulation-based calibration of a sampler's draws."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.metrics.base import Metric, forecast
from fewstep.metrics.ranks import calibration_test, ranks


@dataclass(frozen=True, kw_only=True)
class SBC(Metric):
    """`{"sbc_p": p-value that the truth's ranks are uniform, "sbc_ks": largest distance of a component from it}`.

    Cases `(n, ...)` and, for each, m draws `(m, n, ...)`. If `(x_0, x)` are drawn from the joint law and the draws from
    `p(x_0 | x)`, the rank of every component of x_0 among its draws is uniform (Talts et al. 2018, arXiv 1804.06788,
    theorem 1). `sbc_p` holds for all components together (`ranks.calibration_test`: a test of bias and one of spread for
    each component, Bonferroni); `sbc_ks` is `max_j sup_u |F_n(u) - u|`, and about `.83 / sqrt(n)` in the median of one
    calibrated component. About 5000 cases show a spread that is wrong by a tenth. `seed` breaks ties and smooths ranks.

    Necessary, not sufficient: draws from the prior, which ignore x, have uniform ranks; so have draws with the right
    components and the wrong dependence between them. Pair it with a proper score, or with `TARP`.
    """

    seed: int = 0

    def __call__(self, samples: Tensor, reference: Tensor) -> dict[str, float]:
        draws, truth = forecast(samples, reference)
        generator = torch.Generator().manual_seed(self.seed)
        p_value, statistic = calibration_test(ranks(draws, truth, generator), len(draws), generator)
        return {"sbc_p": p_value, "sbc_ks": statistic}
