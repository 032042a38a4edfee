"""Kernel distance between the features of two samples, KID where they are Inception's (Binkowski et al. 2018)."""

from dataclasses import dataclass

from torch import Tensor

from fewstep.metrics.base import Features, Metric, two_samples_in
from fewstep.metrics.kernels import mmd2, polynomial


@dataclass(frozen=True, kw_only=True)
class KernelDistance(Metric):
    """`E k(X, X') + E k(Y, Y') - 2 E k(X, Y)` of features, `k(x, y) = (x . y / d + 1)^3`, `{"kid": ...}`.

    U-statistics over the whole samples, not means over subsets: 0 in the mean for equal laws at any sample size, so it
    can be negative. It sees the first three moments of the features and nothing else, and the kernel is not invariant
    to shifts. `features` maps items `(n, ...)` to vectors `(n, d)`; `block` rows are worked through at a time.
    (arXiv 1801.01401, section 4.)
    """

    features: Features
    block: int = 2048

    def __call__(self, samples: Tensor, reference: Tensor) -> dict[str, float]:
        x, y = two_samples_in(self.features, samples, reference)
        return {"kid": mmd2(polynomial, x, y, self.block)}
