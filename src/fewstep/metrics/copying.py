"""Are samples new, or training items again? (Meehan, Chaudhuri and Dasgupta 2020, arXiv 2004.05675.)"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics.base import Metric, subset, two_samples
from fewstep.shapes import distances, flat


@dataclass(frozen=True, kw_only=True, eq=False)
class Copying(Metric):
    """`{"copying": P(d(x) < d(y)) + 1/2 P(d(x) = d(y))}`, d the Euclidean distance to the nearest training item.

    x is a sample, y a held-out item (of `reference`), which the training has not seen: .5 where samples are as far from the
    training items as fresh items are, towards 1 where they copy them, below .5 where they lie outside the data. This is
    Mann and Whitney's statistic; for equal laws its deviation is about `.29 sqrt(1/n + 1/k)`. Blurred and narrow samples
    come nearer, too: look at the pictures. `train` `(N, ...)` are the training items, all of them, because any may be the
    copied one; at most `at_most` samples and held-out items, drawn with `seed`, are set beside them. Raises `UserError` where
    the shapes of the items do not fit.
    """

    train: Tensor
    at_most: int = 1000
    seed: int = 0

    def __call__(self, samples: Tensor, reference: Tensor) -> dict[str, float]:
        x, y = two_samples(samples, reference)
        generator = torch.Generator().manual_seed(self.seed)
        few = [subset(z, self.at_most, generator) for z in (x, y)]
        of_x, of_y = nearest(torch.cat(few), flat(self.train))[0].split([len(z) for z in few])
        nearer = (of_x[:, None] < of_y).double() + 0.5 * (of_x[:, None] == of_y).double()
        return {"copying": nearer.mean().item()}


def nearest(items: Tensor, train: Tensor, block: int = 250) -> tuple[Tensor, Tensor]:
    """The distance of each item `(n, ...)` to the nearest of `train` `(N, ...)`, and that one's index: `(n,)` each.

    Raises `UserError` where the shapes do not fit or there is nothing to be near to.
    """
    if not len(train) or train.shape[1:] != items.shape[1:]:
        raise UserError(
            f"items {tuple(items.shape)} and training items {tuple(train.shape)}: give training items of the same shape"
        )
    x, pool = flat(items).double(), flat(train).double()
    centre = pool.mean(0)
    pool = pool - centre
    found = [distances(part - centre, pool).min(dim=1) for part in x.split(block)]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])
