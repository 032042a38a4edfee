"""Conjugate gradients: `M x = b` for a symmetric matrix M >= 0 that is known by its products (Hestenes and Stiefel 1952)."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.shapes import flat, per_item


def conjugate_gradients(matrix: Callable[[Tensor], Tensor], b: Tensor, *, tolerance: float, iterations: int) -> Tensor:
    """The x with `M x = b`, `(batch, ...)`; every item has step sizes of its own, so that no item changes another.

    It starts at 0 and stays in the range of M: where M is singular and b in its range, x has the least norm. An item is
    done when `||b - M x|| <= tolerance ||b||` (or 4 roundings of the dtype, if that is more); of one that is not after
    `iterations`, the x with the least residual comes back, and a warning tells of it.
    """
    tolerance = max(tolerance, 4 * torch.finfo(b.dtype).eps)
    x, r, p = torch.zeros_like(b), b, b
    squared = _squares(r)
    goal = tolerance**2 * squared.detach()
    best, least = x, squared
    for _ in range(iterations):
        going = ~(squared <= goal)  # and not `>`: NaN shall come out as NaN
        if not going.any():
            break
        product = matrix(p)
        # what divides is made harmless first, because autograd looks at both branches of a `where`
        curvature = torch.where(going, (flat(p) * flat(product)).sum(1), 1)
        step = torch.where(going, squared / curvature, 0)
        x, r = x + per_item(step, x) * p, r - per_item(step, x) * product
        left = _squares(r)
        ratio = torch.where(going, left / torch.where(going, squared, 1), 0)
        p = r + per_item(ratio, p) * p
        squared = torch.where(going, left, squared)
        better = ~(squared >= least)  # rounding may lead away again where M is nearly singular
        best, least = torch.where(per_item(better, x), x, best), torch.where(better, squared, least)
    late = least > goal
    if late.any():
        worst = tolerance * (least / goal).detach()[late].max().sqrt().item()
        warnings.warn(
            f"conjugate gradients: {int(late.sum())} of {len(b)} items have a residual of up to {worst:.1e} after {iterations} "
            f"iterations, {tolerance:.1e} expected: raise iterations, or tolerance",
            stacklevel=4,
        )
    return best


def _squares(x: Tensor) -> Tensor:
    return flat(x).square().sum(1)
