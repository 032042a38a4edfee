"""Weighted particles: log-weights, effective sample size, resampling. What samplers by importance share.

Weights are `(k, b)`: k particles for each of b problems, in log space throughout.
"""

import math

import torch
from torch import Tensor

from fewstep.draws import Source, categorical, uniform


def log_mean_exp(log_w: Tensor, axis: int = 0) -> Tensor:
    """`log(1/k sum_i exp(log_w_i))` along an axis of length k."""
    return log_w.logsumexp(axis) - math.log(log_w.shape[axis])


def effective_sample_size(log_w: Tensor) -> Tensor:
    """`(sum w)^2 / sum w^2` `(b,)` of `(k, b)`: k where they are equal, 1 where one has all, 0 where all are 0 (Kong 1992)."""
    return (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp().nan_to_num(0.0)


def finite(log_w: Tensor) -> Tensor:
    """Log-weights along the first axis, equal where all of them are -inf: there is nothing to choose by."""
    return torch.where(log_w.isneginf().all(0), 0.0, log_w)


def choose(log_w: Tensor, generator: Source = None) -> Tensor:
    """The index `(1, rows)` of one of J candidates of each row, by log-weights `(J, rows)`; any where all are -inf."""
    return categorical(finite(log_w).T, generator)[None]


def systematic(log_w: Tensor, generator: Source = None) -> Tensor:
    """Indices `(k, b)` of k particles of each problem, drawn in proportion to the weights `(k, b)` with one uniform number each.

    Particle i is drawn `floor(k w_i)` times or once more, `k w_i` times in the mean (Carpenter et al. 1999): of all unbiased
    schemes in common use the one with the least noise.
    """
    k, b = log_w.shape
    shares = log_w.double().softmax(0).cumsum(0)
    u = uniform((b,), generator, like=shares)
    points = (torch.arange(k, dtype=shares.dtype, device=shares.device)[:, None] + u) / k
    index = torch.searchsorted(shares.T.contiguous(), (points * shares[-1]).T.contiguous(), right=True)
    return index.clamp_(max=k - 1).T


def take(x: Tensor, index: Tensor, axis: int = 0) -> Tensor:
    """The particles `x` `(.., k, b, ...)` with the particle axis at `axis`, in the order of `index` `(k', b)`."""
    shape = [1] * axis + list(index.shape) + [1] * (x.ndim - axis - 2)
    target = [*x.shape[:axis], *index.shape, *x.shape[axis + 2 :]]
    return x.gather(axis, index.reshape(shape).expand(target))


def resample(log_w: Tensor, share: float, generator: Source = None) -> tuple[Tensor, Tensor, Tensor]:
    """Where the effective number of the k particles falls below `share` of them: who stays, their weights, what they said.

    Of log-weights `(k, b)`: an index `(k, b)` for `reorder`, in its order where a problem needs no new particles or has none
    that is possible; the log-weights from now on, 0 where they were drawn anew; and what to add to the log-evidence `(b,)`,
    the log of the mean weight where they were. Drawn for every problem at every call, so that none changes another's randomness.
    """
    alive = log_w.isfinite().any(0)
    poor = alive & (effective_sample_size(log_w) < share * len(log_w))
    drawn = systematic(torch.where(alive, log_w, 0.0), generator)
    index = torch.where(poor, drawn, torch.arange(len(log_w), device=log_w.device)[:, None])
    return index, torch.where(poor, 0.0, log_w), torch.where(poor, log_mean_exp(log_w), 0.0)


def reorder(x: Tensor, index: Tensor, axis: int = 0) -> Tensor:
    """Rows `(.., k b, ...)` along an axis, particle by particle, in the order of `index` `(k, b)`."""
    k, b = index.shape
    parts = x.reshape(*x.shape[:axis], k, b, *x.shape[axis + 1 :])
    return take(parts, index, axis).reshape(x.shape)
