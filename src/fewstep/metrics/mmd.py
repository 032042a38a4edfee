"""Maximum mean discrepancy with a Gaussian kernel (Gretton et al. 2012, JMLR 13:723)."""

from dataclasses import dataclass

from torch import Tensor

from fewstep.errors import UserError
from fewstep.kernels import Gaussian
from fewstep.metrics.base import Metric, two_samples
from fewstep.metrics.kernels import median_distance, mmd2


@dataclass(frozen=True, kw_only=True)
class MMD(Metric):
    """`E k(X, X') + E k(Y, Y') - 2 E k(X, Y)`, `k(x, y) = exp(-||x - y||^2 / (2 h^2))`, `{"mmd2": ...}` without units.

    U-statistics: 0 in the mean for equal laws, so it can be negative; 0 only for equal laws, but faults much finer or
    much coarser than `h = bandwidth` weigh little. `None` is the median distance between items of the reference (at most
    1000 of them): numbers of different references then have different kernels. Works through blocks of `block` rows.
    Raises `UserError` unless the bandwidth is above 0.
    """

    bandwidth: float | None = None
    block: int = 2048

    def __post_init__(self) -> None:
        if self.bandwidth is not None:
            Gaussian(bandwidth=self.bandwidth)

    def __call__(self, samples: Tensor, reference: Tensor) -> dict[str, float]:
        x, y = two_samples(samples, reference)
        centre = y.mean(0)
        try:
            bandwidth = median_distance(y) if self.bandwidth is None else self.bandwidth
        except UserError as error:
            raise UserError(f"{error}: set one") from error
        return {"mmd2": mmd2(Gaussian(bandwidth=bandwidth), x - centre, y - centre, self.block)}
