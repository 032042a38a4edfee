"""How many different items does a sample hold? (Friedman and Dieng 2023, arXiv 2210.02410.)"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.kernels import Gaussian
from fewstep.metrics.base import Features, Metric, subset, two_samples_in
from fewstep.metrics.kernels import Kernel, median_distance
from fewstep.shapes import flat


@dataclass(frozen=True, kw_only=True)
class VendiScore(Metric):
    """`exp(-sum_i l_i log l_i)`, `l_i` the eigenvalues of `K / m`: from 1 (all m items equal) to m (none alike).

    `{"vendi": of the samples, "vendi_reference": of the reference, "vendi_ratio": their quotient}`, of m items of each:
    the smaller sample's number but at most `at_most`, drawn with `seed`, because the score grows with m. It measures
    variety alone: samples that are far from the reference, but as varied, have ratio 1. `kernel` has `k(x, x) = 1`;
    `None` is a `Gaussian` whose bandwidth is the median distance between items of the reference. `features` maps items
    `(n, ...)` to vectors; as they are, flattened, where left out.
    """

    features: Features = flat
    kernel: Kernel | None = None
    at_most: int = 1000
    seed: int = 0

    def __call__(self, samples: Tensor, reference: Tensor) -> dict[str, float]:
        x, y = two_samples_in(self.features, samples, reference)
        generator = torch.Generator().manual_seed(self.seed)
        m = min(len(x), len(y), self.at_most)
        x, y = subset(x, m, generator), subset(y, m, generator)
        try:
            kernel = self.kernel or Gaussian(bandwidth=median_distance(y, m))
        except UserError as error:
            raise UserError(f"{error}: set a kernel") from error
        vendi, of_reference = (self._score(kernel(z, z)) for z in (x, y))
        return {"vendi": vendi, "vendi_reference": of_reference, "vendi_ratio": vendi / of_reference}

    def _score(self, similarity: Tensor) -> float:
        shares = torch.linalg.eigvalsh(similarity / len(similarity)).clamp_min(0)
        return math.exp(-torch.xlogy(shares, shares).sum().item())
