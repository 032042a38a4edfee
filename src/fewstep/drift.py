"""The drifting field: where a cloud of samples should move to become like another, by kernel mean shifts.

For clouds x `(.., n, d)` of q and y of p: the mean shift of a kernel, `V_p(x) = E_p[k(x, y) (y - x)] / E_p[k(x, y)]`
(arXiv 2602.04770, eq. 2-3), and the field `V = V_p - V_q` (eq. 4), which is 0 where p = q. What is really computed there
(algorithm A1) is another normalisation of the same affinities. With `l_ij = log k(x_i, y_j)` over the positives (of p) and
the negatives (of q) side by side,

    A = exp(l - 1/2 LSE_y(l) - 1/2 LSE_x(l)),  V_i = q_i sum_j A+_ij y+_j - p_i sum_j A-_ij y-_j = p_i q_i (C+_i - C-_i),

`p_i`, `q_i` the sums of A over positives and negatives and C the centroids. Everything is in log space, in float32 or better, and
by blocks of rows, so that n x m numbers are never held at once. No gradient flows: the loss regresses on a stopped field.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.kernels import Kernel
from fewstep.shapes import distances

Normalisation = Literal["split", "joint", "both", "sharp", "sinkhorn"]


@dataclass(frozen=True, kw_only=True)
class DriftingField:
    """`field(x, positives, negatives) -> V`, of the shape of x.

    `normalisation` of the affinities:

    - `split`: each cloud by itself, `V = C+ - C-` (eq. 4);
    - `joint`: rows over both clouds, `V = p q (C+ - C-)`; of a Gaussian kernel `h^2 grad D`, D the share of positives in the
      kernel densities, the best classifier of the two;
    - `both`: rows and columns (algorithm A1);
    - `sharp`: divided by the companion kernel's densities, `V = grad log(p_# / q_#)`, a gradient for every kernel;
    - `sinkhorn`: cross and self plans scaled `rounds` times, rows and columns in turns, rows at last; `rounds = 1` is `split`
      without a mask, and of a Gaussian kernel with many rounds `-n` times the gradient of the Sinkhorn divergence of cost
      `r^2 / 2`.

    Where no negatives are given they are x itself, and `exclude_self` leaves a point out of its own (not for `sinkhorn`, which
    needs it). `floor` is the least square of an affinity of `both`: it keeps the field alive far from the data (1e-6 in the
    authors' code, not in their paper). `correct_bias` adds `sum_j w_j^2 (y_j - C)` to a centroid of `split`, whose bias then
    falls as `1 / m^2` in place of `1 / m`. `block` numbers of rows times columns are held at a time.

    Raises `UserError` where clouds do not fit, hold NaN or infinity, or are too small, and where options do not go together.
    """

    kernel: Kernel
    normalisation: Normalisation = "both"
    rounds: int = 1
    exclude_self: bool = True
    floor: float = 0.0
    correct_bias: bool = False
    block: int = 1 << 22

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.block < 1 or not 0 <= self.floor < 1:
            raise UserError(f"rounds and block count from 1 up, and a floor is in [0, 1): not {self}")
        if self.rounds > 1 and self.normalisation != "sinkhorn":
            raise UserError(
                f"rounds are those of sinkhorn, and the normalisation is {self.normalisation}: leave them at 1"
            )
        if self.floor and self.normalisation != "both":
            raise UserError("the floor is that of the affinities normalised by both axes: take normalisation='both'")
        if self.correct_bias and self.normalisation != "split":
            raise UserError("the bias is corrected of centroids by themselves: take normalisation='split'")

    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        positives: Tensor,
        negatives: Tensor | None = None,
        positive_weights: Tensor | None = None,
        negative_weights: Tensor | None = None,
    ) -> Tensor:
        """V `(.., n, d)` for clouds `(.., n, d)`, `(.., m, d)` and `(.., k, d)`; weights `(m,)`, `(k,)` multiply affinities."""
        own = negatives is None
        y_neg = x if negatives is None else negatives
        masked = own and self.exclude_self and self.normalisation != "sinkhorn"
        for cloud, name, least in ((x, "x", 1), (positives, "positives", 1), (y_neg, "negatives", 2 if masked else 1)):
            _check(cloud, x, name, least)
        dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
        centre = positives.mean(-2, keepdim=True).to(dtype)
        x_, pos, neg = (z.to(dtype) - centre for z in (x, positives, y_neg))
        clouds = (
            _Cloud(y=pos, log_w=_log_weights(positive_weights, pos), masked=False),
            _Cloud(y=neg, log_w=_log_weights(negative_weights, neg), masked=masked),
        )
        return {
            "split": self._split,
            "joint": self._product,
            "both": self._product,
            "sharp": self._sharp,
            "sinkhorn": self._sinkhorn,
        }[self.normalisation](x_, *clouds).to(x.dtype)

    def _split(self, x: Tensor, pos: "_Cloud", neg: "_Cloud") -> Tensor:
        parts = []
        for rows, first in _blocks(x, self.block // (pos.size + neg.size)):
            shares = [cloud.logits(self.kernel, rows, first).softmax(-1) for cloud in (pos, neg)]
            centroids = [w @ cloud.y for w, cloud in zip(shares, (pos, neg), strict=True)]
            if self.correct_bias:
                centroids = [
                    c + w.square() @ cloud.y - w.square().sum(-1, keepdim=True) * c
                    for c, w, cloud in zip(centroids, shares, (pos, neg), strict=True)
                ]
            parts.append(centroids[0] - centroids[1])
        return torch.cat(parts, dim=-2)

    def _product(self, x: Tensor, pos: "_Cloud", neg: "_Cloud") -> Tensor:
        """`p q (C+ - C-)`. Weights multiply after the normalisations, which do not see them."""
        bare = [cloud.bare() for cloud in (pos, neg)]
        columns = self._columns(x, bare) if self.normalisation == "both" else [None, None]
        parts = []
        for rows, first in _blocks(x, self.block // (pos.size + neg.size)):
            logits = [cloud.logits(self.kernel, rows, first) for cloud in bare]
            of_rows = torch.cat(logits, dim=-1).logsumexp(-1, keepdim=True)
            affinities = []
            for cloud, logit, column in zip((pos, neg), logits, columns, strict=True):
                log_a = logit - of_rows if column is None else logit - 0.5 * of_rows - 0.5 * column
                a = log_a.exp()
                if self.floor:
                    a = torch.where(logit.isneginf(), 0.0, a.clamp_min(math.sqrt(self.floor)))
                affinities.append(a * cloud.log_w.exp())
            p, q = (a.sum(-1, keepdim=True) for a in affinities)
            parts.append(q * (affinities[0] @ pos.y) - p * (affinities[1] @ neg.y))
        return torch.cat(parts, dim=-2)

    def _columns(self, x: Tensor, clouds: list["_Cloud"]) -> list[Tensor]:
        """`LSE_x` `(.., 1, m)` of each cloud, over the blocks of rows."""
        size = sum(cloud.size for cloud in clouds)
        found: list[Tensor] = []
        for rows, first in _blocks(x, self.block // size):
            part = [cloud.logits(self.kernel, rows, first).logsumexp(-2, keepdim=True) for cloud in clouds]
            found = part if not found else [torch.logaddexp(a, b) for a, b in zip(found, part, strict=True)]
        return found

    def _sharp(self, x: Tensor, pos: "_Cloud", neg: "_Cloud") -> Tensor:
        parts = []
        for rows, first in _blocks(x, self.block // (pos.size + neg.size)):
            scores = []
            for cloud in (pos, neg):
                logit = cloud.logits(self.kernel, rows, first)
                sharp = cloud.logits_of(self.kernel.log_sharp, rows, first).logsumexp(-1, keepdim=True)
                w = (logit - sharp).exp()
                scores.append(w @ cloud.y - w.sum(-1, keepdim=True) * rows)
            parts.append(scores[0] - scores[1])
        return torch.cat(parts, dim=-2)

    def _sinkhorn(self, x: Tensor, pos: "_Cloud", neg: "_Cloud") -> Tensor:
        return self._barycentre(x, pos) - self._barycentre(x, neg)

    def _barycentre(self, x: Tensor, cloud: "_Cloud") -> Tensor:
        """Where the scaled plan sends each row: rows, then columns, rows, ..., `rounds` half-steps; rows at last."""
        f, g = x.new_zeros(*x.shape[:-1], 1), cloud.log_w  # log-scalings of rows and columns
        n = x.shape[-2]

        def rows_of(g: Tensor) -> Tensor:
            found = [
                -(cloud.bare().logits(self.kernel, rows, first) + g).logsumexp(-1, keepdim=True)
                for rows, first in _blocks(x, self.block // cloud.size)
            ]
            return torch.cat(found, dim=-2)

        for half in range(self.rounds):
            if half % 2 == 0:
                f = rows_of(g)
                continue
            total: Tensor | None = None
            for rows, first in _blocks(x, self.block // cloud.size):
                part = cloud.bare().logits(self.kernel, rows, first) + f[..., first : first + rows.shape[-2], :]
                part = part.logsumexp(-2, keepdim=True)
                total = part if total is None else torch.logaddexp(total, part)
            assert total is not None
            share = cloud.log_w - cloud.log_w.logsumexp(-1, keepdim=True)
            g = share + math.log(n) - total
        if self.rounds % 2 == 0:
            f = rows_of(g)
        parts = [
            (cloud.bare().logits(self.kernel, rows, first) + f[..., first : first + rows.shape[-2], :] + g).exp()
            @ cloud.y
            for rows, first in _blocks(x, self.block // cloud.size)
        ]
        return torch.cat(parts, dim=-2)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cloud:
    """Points `(.., m, d)` with log-weights `(m,)`; `masked` where they are the rows themselves and no row sees itself."""

    y: Tensor
    log_w: Tensor
    masked: bool

    @property
    def size(self) -> int:
        return self.y.shape[-2]

    def bare(self) -> "_Cloud":
        """The cloud without its weights."""
        return _Cloud(y=self.y, log_w=torch.zeros_like(self.log_w), masked=self.masked)

    def logits(self, kernel: Kernel, rows: Tensor, first: int) -> Tensor:
        """`log w_j k(x_i, y_j)` `(.., rows, m)` of the rows from the one with number `first` on."""
        return self.logits_of(kernel.log_k, rows, first)

    def logits_of(self, log_k: Callable[[Tensor], Tensor], rows: Tensor, first: int) -> Tensor:
        """The same of any function of the distance."""
        found = log_k(distances(rows, self.y)) + self.log_w
        if self.masked:
            found[..., torch.arange(rows.shape[-2]), first + torch.arange(rows.shape[-2])] = -torch.inf
        return found


def _blocks(x: Tensor, rows: int) -> Iterator[tuple[Tensor, int]]:
    size = max(1, rows)
    for first in range(0, x.shape[-2], size):
        yield x[..., first : first + size, :], first


def _log_weights(weights: Tensor | None, y: Tensor) -> Tensor:
    if weights is None:
        return y.new_zeros(y.shape[-2])
    if weights.shape != (y.shape[-2],) or not ((weights >= 0) & weights.isfinite()).all() or not weights.sum() > 0:
        raise UserError(
            f"weights {tuple(weights.shape)} for {y.shape[-2]} points: one for each, not negative, not all 0"
        )
    return weights.to(y).log()


def _check(cloud: Tensor, x: Tensor, name: str, least: int) -> None:
    if cloud.ndim < 2 or cloud.shape[:-2] != x.shape[:-2] or cloud.shape[-1] != x.shape[-1]:
        raise UserError(
            f"{name} {tuple(cloud.shape)} beside x {tuple(x.shape)}: give (.., points, dimensions), all alike but points"
        )
    if cloud.shape[-2] < least:
        raise UserError(f"{cloud.shape[-2]} {name}: a field needs {least} or more")
    if not cloud.is_floating_point() or not cloud.isfinite().all():
        raise UserError(f"{name} hold NaN or infinity, or are no floating numbers: a field needs finite ones")
