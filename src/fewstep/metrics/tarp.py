"""Is the truth as far from a point as the draws are? Tests of accuracy with random points, for items of any dimension."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics.base import Metric, forecast
from fewstep.metrics.ranks import calibration_test, ranks
from fewstep.shapes import flat


def tarp_ranks(draws: Tensor, truth: Tensor, references: Tensor, generator: torch.Generator) -> Tensor:
    """The rank of `||truth - reference||` among the `||draw - reference||`: `(n, 1)`, in `0 .. m`.

    Draws `(m, n, ...)`, truth and references `(n, ...)`, one point for each case; raises `UserError` where they do not fit.
    """
    if references.shape != truth.shape:
        raise UserError(
            f"references {tuple(references.shape)} for cases {tuple(truth.shape)}: give one reference for each case"
        )
    points = flat(references).to(truth)
    from_draws = torch.stack([(flat(draw) - points).norm(dim=-1) for draw in draws])
    return ranks(from_draws, (flat(truth) - points).norm(dim=-1), generator)


@dataclass(frozen=True, kw_only=True, eq=False)
class TARP(Metric):
    """Coverage of the balls around reference points r(x): `{"tarp_p", "tarp_ks", "tarp_bias"}` (Lemos et al. 2023).

    Of m draws `(m, n, ...)` for each of n cases `(n, ...)`, count those nearer to `references` `(n, ...)`, one point for
    each case, than the truth is. For draws from `p(x_0 | x)` the count is uniform on `0 .. m` whatever the points, as
    long as they know of x_0 only through x; and draws for which it is, whatever the points, are from `p(x_0 | x)`
    (arXiv 2302.03026, section 3). `tarp_p` is the p-value of both tests of `ranks.calibration_test`, `tarp_ks` the
    distance `sup_u |F_n(u) - u|`, `tarp_bias` the mean of `count / m` less 1/2: above 0 where the truth is farther from
    the point than the draws are. `seed` breaks ties and smooths ranks. Raises `UserError` where shapes do not fit.

    The points have to depend on x: a noisy copy of x, an estimate from x, with or without noise. What points drawn
    independently of x cannot see: draws from the prior, and any draws that are right only in the mean over x; theirs
    are uniform counts too. Points of one kind see one kind of fault: a bias towards and away from them, less of the rest.
    """

    references: Tensor
    seed: int = 0

    def __call__(self, samples: Tensor, reference: Tensor) -> dict[str, float]:
        draws, truth = forecast(samples, reference)
        if self.references.shape != reference.shape:
            raise UserError(
                f"references {tuple(self.references.shape)} for cases {tuple(reference.shape)}: "
                "give one point of the items' shape for each case, in the cases' order"
            )
        generator = torch.Generator().manual_seed(self.seed)
        rank = tarp_ranks(draws, truth, flat(self.references.detach()), generator)
        p_value, statistic = calibration_test(rank, len(draws), generator)
        bias = (rank.double() / len(draws)).mean().item() - 0.5
        return {"tarp_p": p_value, "tarp_ks": statistic, "tarp_bias": bias}
