"""Clouds of points as a kernel sees them: log-affinities of rows to columns by blocks, in log space, in float32 or better."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.kernels import Kernel
from fewstep.shapes import distances


def exp(log_a: Tensor) -> Tensor:
    """`exp`, with 0 where it is about to underflow: there torch's own takes sixty times as long on a CPU."""
    low = _lowest(log_a)
    return torch.nn.functional.threshold(log_a.clamp_min(low).exp_(), 2 * math.exp(low), 0.0)


def log_sum_exp(log_a: Tensor, dim: int) -> Tensor:
    """`log sum exp` along a dimension, which is kept; as fast where most terms underflow."""
    most = log_a.amax(dim, keepdim=True)
    return (log_a - most.nan_to_num(neginf=0.0)).clamp_min_(_lowest(log_a)).exp_().sum(dim, keepdim=True).log_() + most


def _lowest(log_a: Tensor) -> float:
    """A little above the logarithm of the least normal number."""
    return math.log(torch.finfo(log_a.dtype).tiny) + 1


class NoDistance(UserError):
    """All points are one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cloud:
    """Points `(.., m, d)` with log-weights `(.., 1, m)` or none; `masked` where the first are the rows and no row sees itself.

    Distances to all rows are kept where they are few, for another kernel to use.
    """

    y: Tensor
    log_w: Tensor | None
    masked: bool
    kept: dict[tuple[int, int], Tensor] | None = None

    @property
    def size(self) -> int:
        """The number of points, m."""
        return self.y.shape[-2]

    def bare(self) -> "Cloud":
        """The cloud without its weights."""
        return replace(self, log_w=None)

    @property
    def log_weights(self) -> Tensor:
        """`(.., 1, m)`, zeros where there are none."""
        return self.y.new_zeros(1, self.size) if self.log_w is None else self.log_w

    def logits(self, kernel: Kernel, rows: Tensor, first: int) -> Tensor:
        """`log w_j k(x_i, y_j)` `(.., rows, m)` of the rows from the one with number `first` on."""
        return self.logits_of(kernel.log_k, rows, first)

    def logits_of(self, log_k: Callable[[Tensor], Tensor], rows: Tensor, first: int) -> Tensor:
        """The same of any function of the distance."""
        found = log_k(self.distances(rows, first))
        if self.log_w is not None:
            found = found + self.log_w
        return self.leave_own_out(found, first, -torch.inf)

    def leave_own_out(self, values: Tensor, first: int, value: float) -> Tensor:
        """The numbers `(.., rows, m)`, in place, with this value where a row is a column and that is masked."""
        if self.masked:
            values[..., torch.arange(values.shape[-2]), first + torch.arange(values.shape[-2])] = value
        return values

    def distances(self, rows: Tensor, first: int) -> Tensor:
        """`(.., rows, m)`."""
        if self.kept is None:
            return distances(rows, self.y)
        key = (first, rows.shape[-2])
        if key not in self.kept:
            self.kept[key] = distances(rows, self.y)
        return self.kept[key]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """Rows x `(.., n, d)` and the two clouds that they look at, about the mean of the positives; `block` numbers at a time."""

    x: Tensor
    pos: Cloud
    neg: Cloud
    block: int

    def blocks(self, columns: int) -> Iterator[tuple[Tensor, int]]:
        """Rows, and the number of the first of them, with rows times columns of all groups within the block; one at least."""
        groups = self.x.shape[:-2].numel()
        size = max(1, self.block // (groups * columns))
        for first in range(0, self.x.shape[-2], size):
            yield self.x[..., first : first + size, :], first

    def by_rows(self, columns: int, of: Callable[[Tensor, int], Tensor], width: int | None = None) -> Tensor:
        """`of(rows, first)` of all blocks of rows, `(.., n, width)`, in one piece of memory from the start."""
        shape = (*self.x.shape[:-1], self.x.shape[-1] if width is None else width)
        found = self.x.new_empty(shape)
        for rows, first in self.blocks(columns):
            found[..., first : first + rows.shape[-2], :] = of(rows, first)
        return found

    def by_columns(self, cloud: Cloud, kernel: Kernel, f: Tensor | None = None) -> Tensor:
        """`LSE_x` `(.., 1, m)` of a cloud's log-affinities, to which `f` `(.., n, 1)` is added where it is given."""
        found = self.x.new_full((*self.x.shape[:-2], 1, cloud.size), -torch.inf)
        for rows, first in self.blocks(self.pos.size + self.neg.size):
            logits = cloud.logits(kernel, rows, first)
            if f is not None:
                logits = logits + f[..., first : first + rows.shape[-2], :]
            found = torch.logaddexp(found, log_sum_exp(logits, -2))
        return found

    def mean_distance(self) -> float:
        """`E ||x_i - y_j||` over both clouds by their weights, in all groups, without the pairs that are masked.

        Raises `UserError` where it is 0: all points are one.
        """
        total = pairs = 0.0
        for cloud in (self.pos, self.neg):
            for rows, first in self.blocks(self.pos.size + self.neg.size):
                r = cloud.distances(rows, first)
                w = cloud.leave_own_out(cloud.log_weights.exp().expand_as(r).clone(), first, 0.0)
                total += torch.einsum("...ij,...ij->", w, r).item()
                pairs += w.sum().item()
        if not total > 0:
            raise NoDistance(
                "all points are one: there is no distance to measure temperatures by (the data is constant?)"
            )
        return total / pairs


def pair_of(
    x: Tensor,
    positives: Tensor,
    negatives: Tensor,
    positive_weights: Tensor | None,
    negative_weights: Tensor | None,
    masked: bool,
    block: int,
) -> Pair:
    """Rows and clouds, checked. Raises `UserError` where they do not fit, hold NaN or infinity, or are too small."""
    for cloud, name, least in ((x, "x", 1), (positives, "positives", 1), (negatives, "negatives", 2 if masked else 1)):
        _check(cloud, x, name, least)
    if masked and negatives.shape[-2] < x.shape[-2]:
        raise UserError(f"{negatives.shape[-2]} negatives, of which the first {x.shape[-2]} are x itself: give as many")
    if masked and negative_weights is not None and ((negative_weights > 0).sum(-1) < 2).any():
        raise UserError("a masked row sees the others alone: give two negatives or more a weight above 0")
    dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    centre = positives.mean(-2, keepdim=True).to(dtype)
    x_, pos, neg = (z.to(dtype) - centre for z in (x, positives, negatives))
    few = x.shape[:-1].numel() * (pos.shape[-2] + neg.shape[-2]) <= block
    return Pair(
        x=x_,
        pos=Cloud(y=pos, log_w=_log_weights(positive_weights, pos), masked=False, kept={} if few else None),
        neg=Cloud(y=neg, log_w=_log_weights(negative_weights, neg), masked=masked, kept={} if few else None),
        block=block,
    )


def _log_weights(weights: Tensor | None, y: Tensor) -> Tensor | None:
    if weights is None:
        return None
    if weights.shape not in (y.shape[-2:-1], y.shape[:-1]):
        raise UserError(f"weights {tuple(weights.shape)} for points {tuple(y.shape[:-1])}: one for each")
    if not ((weights >= 0) & weights.isfinite()).all() or not (weights.sum(-1) > 0).all():
        raise UserError("weights are finite, not negative, and not all 0")
    return weights.to(y).log()[..., None, :]


def _check(cloud: Tensor, x: Tensor, name: str, least: int) -> None:
    if cloud.ndim < 2 or cloud.shape[:-2] != x.shape[:-2] or cloud.shape[-1] != x.shape[-1]:
        raise UserError(
            f"{name} {tuple(cloud.shape)} beside x {tuple(x.shape)}: give (.., points, dimensions), all alike but points"
        )
    if cloud.shape[-2] < least:
        raise UserError(f"{cloud.shape[-2]} {name}: a field needs {least} or more, so take a larger batch")
    if not cloud.is_floating_point():
        raise UserError(f"{name} are {cloud.dtype}: a field needs floating numbers")
    if not cloud.isfinite().all():
        raise UserError(f"{name} hold NaN or infinity: a field needs finite numbers")
