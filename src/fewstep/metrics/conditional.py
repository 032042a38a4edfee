"""Draws of a model against draws of the truth, for the same conditions: what a wrong conditional law looks like.

Draws of the truth for a given x exist where the true law is known: a mixture, a set of data, a long run of an exact sampler.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics.base import Metric, conditional, distances_within
from fewstep.shapes import distances

CONSTANT = 1e-10  # of the largest variance: what is below does not vary


@dataclass(frozen=True, kw_only=True)
class VarianceRatio(Metric):
    """Does the model vary as much as the truth, given x? `{"variance_ratio", "variance_ratio_largest", .._smallest}`.

    `Tr C_model / Tr C`, C the mean over the n cases of the unbiased covariances of the draws, `(m, n, ...)` of the model
    and `(k, n, ...)` of the truth. Then `v' C_model v / v' C v` along the directions v in which the truth varies most and
    least (components and combinations of them that do not vary at all are left out: `v' C v <= 1e-10` of the largest).
    1 for equal laws, c^2 for deviations wrong by a factor c. It sees no bias, and of the law nothing but these variances.
    v is chosen on the same draws as C, which needs n (k - 1) far above the number of components d: else C is too large
    along the one and too small along the other, by a factor of up to about `(1 +- sqrt(d / (n (k - 1))))^2`. Works through
    blocks of `block` cases, and holds one d x d matrix.
    Raises `UserError` where the truth does not vary.
    """

    block: int = 64

    def __call__(self, samples: Tensor, reference: Tensor) -> dict[str, float]:
        of_truth = (_residual(y) for _, y in conditional(samples, reference, self.block))
        (m, n), k = samples.shape[:2], len(reference)
        variances, directions = torch.linalg.eigh(sum(r.T @ r for r in of_truth) / (n * (k - 1)))
        varying = variances > CONSTANT * variances[-1]
        if not varying[-1]:
            raise UserError("the draws of the truth do not vary, and a ratio to no variance is none")
        variances, ends = variances[varying], directions[:, varying][:, [-1, 0]]
        of_model = (_residual(x) for x, _ in conditional(samples, reference, self.block))
        squares = sum(torch.cat([r.square().sum()[None], (r @ ends).square().sum(0)]) for r in of_model)
        truth = torch.stack([variances.sum(), variances[-1], variances[0]])
        ratio, largest, smallest = (squares / (n * (m - 1)) / truth).tolist()
        return {"variance_ratio": ratio, "variance_ratio_largest": largest, "variance_ratio_smallest": smallest}


@dataclass(frozen=True, kw_only=True)
class ConditionalEnergyDistance(Metric):
    """`2 E||X - Y|| - E||X - X'|| - E||Y - Y'||` given x, averaged over x: 0 in the mean for equal conditional laws only.

    X are the m draws of the model `(m, n, ...)`, Y the k of the truth `(k, n, ...)`; U-statistics, so that 2 draws of each
    are unbiased and the number can be negative (Szekely and Rizzo 2013). `{"conditional_energy_distance",
    "conditional_energy_distance_se"}`, in the units of the data; the second is the standard error over the n cases.
    Works through blocks of `block` cases. Raises `UserError` for fewer than 2 cases, which have no standard error.
    """

    block: int = 64

    def __call__(self, samples: Tensor, reference: Tensor) -> dict[str, float]:
        values = torch.cat([_energy_distances(x, y) for x, y in conditional(samples, reference, self.block)])
        if len(values) < 2:
            raise UserError("a standard error over cases needs at least 2 of them")
        error = values.std().item() / math.sqrt(len(values))
        return {"conditional_energy_distance": values.mean().item(), "conditional_energy_distance_se": error}


def _residual(x: Tensor) -> Tensor:
    """Draws `(b, m, d)` less the mean of their case: `(b m, d)`, exactly 0 where the draws do not vary."""
    x = x - x[:, :1]
    return (x - x.mean(1, keepdim=True)).flatten(0, 1)


def _energy_distances(x: Tensor, y: Tensor) -> Tensor:
    """Of every case `(b,)`: `x` `(b, m, d)`, `y` `(b, k, d)`; centred first, because a matrix product may follow."""
    centre = y.mean(1, keepdim=True)
    x, y = x - centre, y - centre
    m, k = x.shape[1], y.shape[1]
    within = distances_within(x).sum((1, 2)) / (m * (m - 1)) + distances_within(y).sum((1, 2)) / (k * (k - 1))
    return 2 * distances(x, y).mean((1, 2)) - within
