"""The continuous ranked probability score: the energy score of every component by itself."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.metrics.base import Metric, forecast


@dataclass(frozen=True, kw_only=True)
class CRPS(Metric):
    """`mean_i |X_i - x| - 1/2 mean_{i != j} |X_i - X_j|`, averaged over components and cases: smaller is better.

    Draws `(m, n, ...)`, cases `(n, ...)`; `{"crps": ...}`, in the units of the data. Strictly proper for one component
    (Gneiting and Raftery 2007, eq. 21); of more it sees the marginal laws and not the dependence between them. Fair: the
    second mean leaves out i = j, so that the score does not depend on m (Ferro 2014), where the plug-in is too large by
    the factor 1 + 1/m for calibrated draws. With the draws in order, `X_(1) <= .. <= X_(m)`,

    sum_{i < j} |X_i - X_j| = sum_i (2i - m - 1) X_(i),

    so that it costs a sort and not m^2 differences.
    """

    def __call__(self, samples: Tensor, reference: Tensor) -> dict[str, float]:
        draws, truth = forecast(samples, reference)
        m = len(draws)
        from_truth = (draws - truth).sort(dim=0).values
        weights = 2 * torch.arange(1, m + 1, dtype=torch.float64, device=draws.device) - m - 1
        spread = torch.tensordot(weights, from_truth, dims=1).mean() / (m * (m - 1))
        return {"crps": (from_truth.abs().mean() - spread).item()}
