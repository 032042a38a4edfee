"""Times against items, and items against items: a time is a number or one per item; an item is all behind the batch axis."""

import torch
from torch import Tensor


def times_of(tau: Tensor | float, x: Tensor) -> Tensor:
    """The times as a tensor `(batch,)` in the dtype and on the device of `x`; a single time is repeated."""
    tau = torch.as_tensor(tau, dtype=x.dtype, device=x.device)
    if tau.ndim > 1 or (tau.ndim == 1 and tau.shape[0] not in (1, x.shape[0])):
        raise ValueError(
            f"times of shape {tuple(tau.shape)} for a batch of {x.shape[0]}: give one time or one per item"
        )
    return tau.expand(x.shape[0])


def as_time(tau: Tensor | float, x: Tensor) -> Tensor:
    """A time as a tensor; a tensor keeps its dtype, so that closed forms in float64 stay there."""
    return tau if isinstance(tau, Tensor) else torch.tensor(tau, dtype=x.dtype, device=x.device)


def per_item(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient `()` or `(batch,)` with axes of length one behind it, so that it multiplies `x` item by item."""
    return coefficient if coefficient.ndim == 0 else coefficient.reshape(-1, *[1] * (x.ndim - 1))


def flat(x: Tensor) -> Tensor:
    """Items as vectors: `(batch, d)`."""
    return x.reshape(x.shape[0], -1)


def distances(x: Tensor, y: Tensor) -> Tensor:
    """`||x_i - y_j||` `(..., n, k)` of `(..., n, d)`, `(..., k, d)`: by differences for small d, else by a matrix product.

    The product is many times faster, and loses digits far from the origin: centre first.
    """
    few = x.shape[-1] <= 25  # where the two take the same time
    return torch.cdist(x, y, compute_mode=f"{'donot_' if few else ''}use_mm_for_euclid_dist")
