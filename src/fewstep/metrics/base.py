"""What every metric is.

Two kinds share one signature. A distance between two samples of a law takes `samples` `(n, ...)` and `reference` `(k,
...)`. A score of a forecast takes draws `samples` `(m, n, ...)`, m draws for each of n cases, and what happened,
`reference` `(n, ...)`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.shapes import flat

Features = Callable[[Tensor], Tensor]
"""Items `(n, ...)` to vectors `(n, d)`: a function, or an `nn.Module` in evaluation mode."""


class Metric(ABC):
    """Numbers that compare samples with a reference; parameters are the fields of a frozen dataclass."""

    @abstractmethod
    def __call__(self, samples: Tensor, reference: Tensor) -> dict[str, float]:
        """The metric's numbers by name. Raises `UserError` where the shapes do not fit."""


def two_samples(samples: Tensor, reference: Tensor, at_least: int = 2) -> tuple[Tensor, Tensor]:
    """Two samples as float64 vectors `(n, d)` and `(k, d)` without gradients, their shapes checked."""
    if samples.shape[1:] != reference.shape[1:]:
        raise UserError(
            f"items of shape {tuple(samples.shape[1:])} against {tuple(reference.shape[1:])}: compare like with like"
        )
    if min(len(samples), len(reference)) < at_least:
        raise UserError(f"a distance between samples needs at least {at_least} items of each")
    x, y = flat(samples.detach()).double(), flat(reference.detach()).double()
    bad = int((~x.isfinite()).any(1).sum())
    if bad:
        raise UserError(
            f"{bad} of {len(x)} samples hold NaN or infinity: the sampler diverged, take more steps or another"
        )
    return x, y


@torch.no_grad()
def two_samples_in(features: Features, samples: Tensor, reference: Tensor, at_least: int = 2) -> tuple[Tensor, Tensor]:
    """What `features` makes of two samples, as `two_samples` gives them."""
    return two_samples(features(samples), features(reference), at_least)


def forecast(samples: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Draws `(m, n, d)` and cases `(n, d)` in float64 without gradients, their shapes checked; m is at least 2."""
    if samples.shape[1:] != reference.shape:
        raise UserError(
            f"draws {tuple(samples.shape)} are (m, *cases) for cases {tuple(reference.shape)}: they do not fit"
        )
    if len(samples) < 2 or len(reference) < 1:
        raise UserError("a forecast needs at least 1 case, and at least 2 draws for each")
    draws = samples.detach().reshape(*samples.shape[:2], -1).double()
    return draws, flat(reference.detach()).double()


def distances(x: Tensor, y: Tensor) -> Tensor:
    """`||x_i - y_j||` `(n, k)` of `(n, d)` and `(k, d)`: by differences where d is small, else by a matrix product.

    The product is many times faster, and loses digits far from the origin: centre first.
    """
    few = x.shape[1] <= 25  # where the two take the same time
    return torch.cdist(x, y, compute_mode=f"{'donot_' if few else ''}use_mm_for_euclid_dist")


def subset(x: Tensor, at_most: int, generator: torch.Generator) -> Tensor:
    """At most `at_most` rows of `(n, d)` at random; they are put in lexicographic order first, so that theirs is no matter."""
    order = torch.from_numpy(np.lexsort(x.T.flip(0).cpu().numpy()))
    return x[order[torch.randperm(len(x), generator=generator)[:at_most]].to(x.device)]
