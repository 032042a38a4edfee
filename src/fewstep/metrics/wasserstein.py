"""Wasserstein distances that stay cheap in many dimensions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.metrics.base import Metric, two_samples


@dataclass(frozen=True, kw_only=True)
class SlicedWasserstein(Metric):
    """`sqrt(mean over directions of W2^2 of the projections)`, `{"sliced_w2": ...}` in the units of the data.

    The directions are uniform on the sphere, `projections` of them, the same for every call with the same `seed`
    (Bonneel et al. 2015). Exact for samples of equal sizes; else both quantile functions are read at the levels of the
    larger one. A sample of n items against another of the same law is not at 0: compare with a floor.
    """

    projections: int = 256
    seed: int = 0

    def __call__(self, samples: Tensor, reference: Tensor) -> dict[str, float]:
        x, y = two_samples(samples, reference)
        generator = torch.Generator().manual_seed(self.seed)
        directions = torch.randn(x.shape[1], self.projections, generator=generator, dtype=torch.float64).to(x.device)
        directions = directions / directions.norm(dim=0)
        a, b = (x @ directions).sort(dim=0).values, (y @ directions).sort(dim=0).values
        n = max(len(a), len(b))
        levels = (torch.arange(n, device=x.device) + 0.5) / n
        quantiles = [s[(levels * len(s)).long()] for s in (a, b)]
        return {"sliced_w2": (quantiles[0] - quantiles[1]).square().mean().sqrt().item()}
