"""Fidelity and variety apart: precision and recall, density and coverage, by nearest neighbours."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics.base import Features, Metric, two_samples_in
from fewstep.shapes import distances, flat


@dataclass(frozen=True, kw_only=True)
class PRDC(Metric):
    """`{"precision", "recall", "density", "coverage"}`: with `B(z)` the closed ball to the `k`-th neighbour of z in its sample,

    precision  share of samples in some `B(y)` of the reference; recall  share of the reference in some `B(x)`
    density    mean over samples of the number of balls `B(y)` that hold it, over k; 1 in the mean for equal laws
    coverage   share of the balls `B(y)` that hold a sample

    Kynkaanniemi et al. 2019, eq. 1-2 (arXiv 1904.06991); Naeem et al. 2020, eq. 3-4 (arXiv 2002.09797; their k = 5).
    All depend on the sample sizes: compare equal sizes, and with a floor. `features` maps items `(n, ...)` to vectors;
    as they are, flattened, where left out. Works through blocks of `block` rows. Raises `UserError` unless `k >= 1` and
    there are more than k items of each.
    """

    features: Features = flat
    k: int = 5
    block: int = 1024

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"neighbours count from 1 up, not k = {self.k}")

    def __call__(self, samples: Tensor, reference: Tensor) -> dict[str, float]:
        x, y = two_samples_in(self.features, samples, reference, at_least=self.k + 1)
        x, y = x - y.mean(0), y - y.mean(0)
        radius_x, radius_y = self._radii(x), self._radii(y)
        in_some_ball, in_balls = 0, 0
        hit, recalled = torch.zeros_like(radius_y, dtype=torch.bool), torch.zeros_like(radius_y, dtype=torch.bool)
        for first, rows in self._blocks(x, y):
            inside = rows <= radius_y
            in_some_ball += int(inside.any(1).sum())
            in_balls += int(inside.sum())
            hit |= inside.any(0)
            recalled |= (rows <= radius_x[first : first + len(rows), None]).any(0)
        return {
            "precision": in_some_ball / len(x),
            "recall": recalled.double().mean().item(),
            "density": in_balls / (self.k * len(x)),
            "coverage": hit.double().mean().item(),
        }

    def _radii(self, x: Tensor) -> Tensor:
        """The distance of each item to its k-th neighbour, itself not counted."""
        radii = []
        for first, rows in self._blocks(x, x):
            rows.diagonal(offset=first).fill_(torch.inf)
            radii.append(rows.kthvalue(self.k, dim=1).values)
        return torch.cat(radii)

    def _blocks(self, x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor]]:
        for first in range(0, len(x), self.block):
            yield first, distances(x[first : first + self.block], y)
