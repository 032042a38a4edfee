"""Kernels `k(x, y)`, `(n, d)` and `(k, d)` to `(n, k)`, and the maximum mean discrepancy, which is made of one."""

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics.base import subset

Kernel = Callable[[Tensor, Tensor], Tensor]


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """`x . y / (||x|| ||y||)`."""
    return torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(y).T


def polynomial(x: Tensor, y: Tensor) -> Tensor:
    """`(x . y / d + 1)^3` in d dimensions."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def median_distance(x: Tensor, at_most: int = 1000) -> float:
    """The median of `||x_i - x_j||` over the pairs i < j of at most `at_most` items `(n, d)`: the median heuristic.

    (Garreau et al. 2017, arXiv 1707.07269.) Raises `UserError` where it is 0: half of the pairs or more are equal.
    """
    part = subset(x, at_most, torch.Generator().manual_seed(0))
    median = torch.pdist(part).median().item()
    if not median > 0:
        raise UserError(
            "half of the reference's pairs or more are equal, so that their median distance is no bandwidth"
        )
    return median


def mmd2(kernel: Kernel, x: Tensor, y: Tensor, block: int) -> float:
    """`E k(X, X') + E k(Y, Y') - 2 E k(X, Y)` by U-statistics (Gretton et al. 2012, eq. 3), `block` rows at a time."""
    cross = sum(kernel(part, y).sum().item() for part in x.split(block)) / (len(x) * len(y))
    return _within(kernel, x, block) + _within(kernel, y, block) - 2 * cross


def _within(kernel: Kernel, x: Tensor, block: int) -> float:
    """The mean of `k(x_i, x_j)` over i != j."""
    total = 0.0
    for first in range(0, len(x), block):
        rows = kernel(x[first : first + block], x)
        total += (rows.sum() - rows.diagonal(offset=first).sum()).item()
    return total / (len(x) * (len(x) - 1))
