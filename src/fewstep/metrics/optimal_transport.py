"""The Wasserstein distance itself, exact, for small samples."""

import math
from dataclasses import dataclass

from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics.base import Metric, two_samples
from fewstep.shapes import distances


@dataclass(frozen=True, kw_only=True)
class Wasserstein(Metric):
    """`W2 = sqrt(min over couplings of E ||X - Y||^2)`, `{"w2": ...}` in the units of the data.

    Equal sizes: the best matching, `sqrt(mean_i ||x_i - y_pi(i)||^2)`, found exactly (scipy's linear assignment; cubic
    in n: about a second at 2000). Unequal sizes: each item is repeated until the sizes agree, which is exact too. A
    sample of n items against another of the same law is far from 0, the more so the more dimensions: compare equal
    sizes, and with a floor. Raises `UserError` where the matching would have more than `at_most` pairs.
    """

    at_most: int = 3000

    def __call__(self, samples: Tensor, reference: Tensor) -> dict[str, float]:
        from scipy.optimize import linear_sum_assignment

        x, y = two_samples(samples, reference)
        pairs = math.lcm(len(x), len(y))
        if pairs > self.at_most:
            advice = "take SlicedWasserstein" if len(x) == len(y) else "cut to equal sizes or take SlicedWasserstein"
            raise UserError(
                f"an exact W2 of {len(x)} items and {len(y)} matches {pairs} pairs, at most {self.at_most} "
                f"expected: {advice}, or raise at_most"
            )
        centre = y.mean(0)
        cost = distances(x - centre, y - centre).square()
        cost = cost.repeat_interleave(pairs // len(x), 0).repeat_interleave(pairs // len(y), 1)
        best = linear_sum_assignment(cost.cpu().numpy())
        return {"w2": math.sqrt(cost.cpu()[best].mean())}
