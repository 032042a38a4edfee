"""What every metric is.

Three kinds share one signature. A distance between two samples of a law takes `samples` `(n, ...)` and `reference` `(k,
...)`. A score of a forecast takes draws `samples` `(m, n, ...)`, m draws for each of n cases, and what happened,
`reference` `(n, ...)`. A comparison of two conditional laws takes draws of the model `samples` `(m, n, ...)` and draws of
the truth `reference` `(k, n, ...)` for the same n conditions; only where the true law is known are there such draws.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.shapes import distances, flat

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
    refuse_divergence(x)
    return x, y


@torch.no_grad()
def two_samples_in(features: Features, samples: Tensor, reference: Tensor, at_least: int = 2) -> tuple[Tensor, Tensor]:
    """What `features` makes of two samples, as `two_samples` gives them."""
    return two_samples(features(samples), features(reference), at_least)


def refuse_divergence(x: Tensor) -> None:
    """Raise `UserError` where one of the samples `(..., d)` holds NaN or infinity."""
    bad = int((~x.isfinite()).any(-1).sum())
    if bad:
        raise UserError(
            f"{bad} of {x.shape[:-1].numel()} samples hold NaN or infinity: the sampler diverged, take more steps or another"
        )


def forecast(samples: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Draws `(m, n, d)` and cases `(n, d)` in float64 without gradients, their shapes checked; m is at least 2."""
    if samples.shape[1:] != reference.shape:
        raise UserError(
            f"draws {tuple(samples.shape)} are (m, *cases) for cases {tuple(reference.shape)}: they do not fit"
        )
    if len(samples) < 2 or len(reference) < 1:
        raise UserError("a forecast needs at least 1 case, and at least 2 draws for each")
    draws = samples.detach().reshape(*samples.shape[:2], -1).double()
    refuse_divergence(draws)
    return draws, flat(reference.detach()).double()


def conditional(samples: Tensor, reference: Tensor, block: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Draws of the model `(m, n, ...)` and of the truth `(k, n, ...)`, by blocks of cases, their shapes checked.

    A block of b cases comes as `(b, m, d)` and `(b, k, d)` in float64 without gradients; m and k are at least 2.
    """
    if min(samples.ndim, reference.ndim) < 2 or samples.shape[1:] != reference.shape[1:]:
        raise UserError(
            f"draws {tuple(samples.shape)} against {tuple(reference.shape)}: give (m, n, ...) draws of the model and "
            "(k, n, ...) of the truth for the same n cases"
        )
    if min(len(samples), len(reference)) < 2 or samples.shape[1] < 1:
        raise UserError(
            "a comparison of conditional laws needs at least 1 case, and at least 2 draws of each law for it"
        )
    return _blocks(samples.detach(), reference.detach(), block)


def _blocks(samples: Tensor, reference: Tensor, block: int) -> Iterator[tuple[Tensor, Tensor]]:
    for parts in zip(samples.split(block, 1), reference.split(block, 1), strict=True):
        x, y = (part.reshape(*part.shape[:2], -1).transpose(0, 1).double() for part in parts)
        refuse_divergence(x)
        yield x.contiguous(), y.contiguous()


def distances_within(x: Tensor) -> Tensor:
    """`||x_i - x_j||` `(..., n, n)` of `(..., n, d)`; an item's distance to itself is 0 and not a product's rounding."""
    found = distances(x, x)
    found.diagonal(dim1=-2, dim2=-1).zero_()
    return found


def subset(x: Tensor, at_most: int, generator: torch.Generator) -> Tensor:
    """At most `at_most` rows of `(n, d)` at random; they are put in lexicographic order first, so that theirs is no matter."""
    order = torch.from_numpy(np.lexsort(x.T.flip(0).cpu().numpy()))
    return x[order[torch.randperm(len(x), generator=generator)[:at_most]].to(x.device)]
