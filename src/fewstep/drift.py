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
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fewstep.clouds import Cloud, Pair, exp, log_sum_exp, pair_of
from fewstep.errors import UserError
from fewstep.kernels import Kernel

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
    - `sinkhorn`: cross and self plans scaled by `rounds` half-steps, rows and columns in turns, rows at last (an even number
      counts as the next); `rounds = 1` is `split` without a mask, and of a Gaussian kernel with many rounds `-n` times the
      gradient of the Sinkhorn divergence of cost `r^2 / 2`.

    Where no negatives are given they are x itself, and with `own` the first of them are; `exclude_self` leaves a point out of
    its own (not for `sinkhorn`, which needs it). `floor` is the least square of an affinity of `both`: it keeps the field alive
    far from the data (1e-6 in the authors' code, not in their paper). `correct_bias` adds `sum_j w_j^2 (y_j - C)` to a centroid
    of `split`, whose bias then falls as `1 / m^2` in place of `1 / m`. `block` numbers of rows times columns are held at a time.

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

    def __call__(
        self,
        x: Tensor,
        positives: Tensor,
        negatives: Tensor | None = None,
        positive_weights: Tensor | None = None,
        negative_weights: Tensor | None = None,
        own: bool = False,
    ) -> Tensor:
        """V `(.., n, d)` for clouds `(.., n, d)`, `(.., m, d)` and `(.., k, d)`.

        Weights `(m,)` or `(.., m)`, and `(k,)` or `(.., k)`, multiply affinities.
        """
        return self.of(self.pair(x, positives, negatives, positive_weights, negative_weights, own)).to(x.dtype)

    @torch.no_grad()
    def pair(
        self,
        x: Tensor,
        positives: Tensor,
        negatives: Tensor | None = None,
        positive_weights: Tensor | None = None,
        negative_weights: Tensor | None = None,
        own: bool = False,
    ) -> Pair:
        """The clouds, checked: for one field, or several of other kernels, which then share the distances."""
        masked = (own or negatives is None) and self.exclude_self and self.normalisation != "sinkhorn"
        others = x if negatives is None else negatives
        return pair_of(x, positives, others, positive_weights, negative_weights, masked, self.block)

    @torch.no_grad()
    def of(self, pair: Pair) -> Tensor:
        """V `(.., n, d)`, in float32 or better, also under autocast."""
        fields = {
            "split": self._split,
            "joint": self._product,
            "both": self._product,
            "sharp": self._sharp,
            "sinkhorn": self._sinkhorn,
        }
        with torch.autocast(pair.x.device.type, enabled=False):
            return fields[self.normalisation](pair)

    def _split(self, pair: Pair) -> Tensor:
        pos, neg = pair.pos, pair.neg

        def drift(rows: Tensor, first: int) -> Tensor:
            shares = [cloud.logits(self.kernel, rows, first).softmax(-1) for cloud in (pos, neg)]
            centroids = [w @ cloud.y for w, cloud in zip(shares, (pos, neg), strict=True)]
            if self.correct_bias:
                centroids = [
                    c + w.square() @ cloud.y - w.square().sum(-1, keepdim=True) * c
                    for c, w, cloud in zip(centroids, shares, (pos, neg), strict=True)
                ]
            return centroids[0] - centroids[1]

        return pair.by_rows(pos.size + neg.size, drift)

    def _product(self, pair: Pair) -> Tensor:
        """`p q (C+ - C-)`. Weights multiply after the normalisations, which do not see them."""
        pos, neg = pair.pos, pair.neg
        bare = [cloud.bare() for cloud in (pos, neg)]
        columns: list[Tensor | None] = [None, None]
        if self.normalisation == "both":  # -inf where the only row is masked, which then has no affinity at all
            columns = [pair.by_columns(cloud, self.kernel).nan_to_num(neginf=0.0) for cloud in bare]

        def drift(rows: Tensor, first: int) -> Tensor:
            logits = [cloud.logits(self.kernel, rows, first) for cloud in bare]
            of_rows = torch.logaddexp(*(log_sum_exp(logit, -1) for logit in logits))
            affinities = []
            for cloud, logit, column in zip((pos, neg), logits, columns, strict=True):
                a = exp(logit - of_rows if column is None else logit - (0.5 * of_rows + 0.5 * column))
                if self.floor:
                    a = cloud.leave_own_out(a.clamp_min_(math.sqrt(self.floor)), first, 0.0)
                affinities.append(a if cloud.log_w is None else a * cloud.log_w.exp())
            p, q = (a.sum(-1, keepdim=True) for a in affinities)
            return q * (affinities[0] @ pos.y) - p * (affinities[1] @ neg.y)

        return pair.by_rows(pos.size + neg.size, drift)

    def _sharp(self, pair: Pair) -> Tensor:
        def score(cloud: Cloud, rows: Tensor, first: int) -> Tensor:
            sharp = log_sum_exp(cloud.logits_of(self.kernel.log_sharp, rows, first), -1)
            w = exp(cloud.logits(self.kernel, rows, first) - sharp)
            return w @ cloud.y - w.sum(-1, keepdim=True) * rows

        def drift(rows: Tensor, first: int) -> Tensor:
            return score(pair.pos, rows, first) - score(pair.neg, rows, first)

        return pair.by_rows(pair.pos.size + pair.neg.size, drift)

    def _sinkhorn(self, pair: Pair) -> Tensor:
        return self._barycentre(pair, pair.pos) - self._barycentre(pair, pair.neg)

    def _barycentre(self, pair: Pair, cloud: Cloud) -> Tensor:
        """Where the scaled plan sends each row: rows, then columns, rows, ..., `rounds` half-steps; rows at last."""
        bare, g = cloud.bare(), cloud.log_weights  # log-scalings: f of rows, g of columns
        share = g - g.logsumexp(-1, keepdim=True) + math.log(pair.x.shape[-2])

        def to_one(rows: Tensor, first: int) -> Tensor:
            return -log_sum_exp(bare.logits(self.kernel, rows, first) + g, -1)

        f = pair.by_rows(cloud.size, to_one, width=1)
        for _ in range(self.rounds // 2):
            g = share - pair.by_columns(bare, self.kernel, f)
            f = pair.by_rows(cloud.size, to_one, width=1)

        def barycentre(rows: Tensor, first: int) -> Tensor:
            of_rows = f[..., first : first + rows.shape[-2], :]
            return exp(bare.logits(self.kernel, rows, first) + of_rows + g) @ cloud.y

        return pair.by_rows(cloud.size, barycentre)
