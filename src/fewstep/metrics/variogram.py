"""Do the draws vary together as the truth does? The variogram score (Scheuerer and Hamill 2015, Mon. Wea. Rev. 143)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics.base import Metric, forecast


@dataclass(frozen=True, kw_only=True)
class VariogramScore(Metric):
    """`(|x_a - x_b|^p - mean_i |X_ia - X_ib|^p)^2`, averaged over pairs a < b of components and cases, p = `power`.

    Draws `(m, n, ...)`, cases `(n, ...)`; `{"variogram_score": ...}`, in the units of the data to the power 2p. Proper, so
    smaller is better in the mean (theirs with equal weights and the mean in place of the sum); sensitive to wrong
    dependence, which the energy score hardly sees. Fair in m: the variance of the mean of the draws, which adds to the
    square and is `var_i |X_ia - X_ib|^p / m`, is subtracted. Not strictly proper: it does not see a bias that is the
    same in all components.

    All pairs where there are no more than `pairs`; else that many at random, with `seed`. Raises `UserError` for a power
    or a number of pairs that is not positive, and for items of one component, which has no pair.
    """

    power: float = 0.5
    pairs: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.power > 0 or self.pairs < 1:
            raise UserError(
                f"a variogram score needs a power above 0 and 1 pair or more, not power = {self.power} and "
                f"pairs = {self.pairs}"
            )

    def __call__(self, samples: Tensor, reference: Tensor) -> dict[str, float]:
        draws, truth = forecast(samples, reference)
        if truth.shape[1] < 2:
            raise UserError("a variogram score is of pairs of components, and items of one have none: take CRPS")
        m, pairs = len(draws), self._pairs(truth.shape[1]).to(draws.device)
        total = 0.0
        for a, b in pairs.split(max(1, 2**22 // (m * len(truth))), dim=1):
            variogram = (draws[..., a] - draws[..., b]).abs().pow(self.power)
            error = (truth[:, a] - truth[:, b]).abs().pow(self.power) - variogram.mean(0)
            total += (error.square() - variogram.var(0) / m).mean(0).sum().item()
        return {"variogram_score": total / pairs.shape[1]}

    def _pairs(self, d: int) -> Tensor:
        """Pairs of components `(2, pairs)`: all, or random ones (with replacement, which keeps their mean)."""
        if d * (d - 1) // 2 <= self.pairs:
            return torch.triu_indices(d, d, offset=1)
        generator = torch.Generator().manual_seed(self.seed)
        first = torch.randint(d, (self.pairs,), generator=generator)
        return torch.stack([first, (first + 1 + torch.randint(d - 1, (self.pairs,), generator=generator)) % d])
