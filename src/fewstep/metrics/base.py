"""What every metric is.

Two kinds share one signature. A distance between two samples of a law takes `samples` `(n, ...)` and `reference` `(k,
...)`. A score of a forecast takes draws `samples` `(m, n, ...)`, m draws for each of n cases, and what happened,
`reference` `(n, ...)`.
"""

from abc import ABC, abstractmethod

from torch import Tensor

from fewstep.errors import UserError
from fewstep.shapes import flat


class Metric(ABC):
    """Numbers that compare samples with a reference; parameters are the fields of a frozen dataclass."""

    @abstractmethod
    def __call__(self, samples: Tensor, reference: Tensor) -> dict[str, float]:
        """The metric's numbers by name. Raises `UserError` where the shapes do not fit."""


def two_samples(samples: Tensor, reference: Tensor, at_least: int = 2) -> tuple[Tensor, Tensor]:
    """Two samples as float64 vectors `(n, d)` and `(k, d)`, their shapes checked."""
    if samples.shape[1:] != reference.shape[1:]:
        raise UserError(
            f"items of shape {tuple(samples.shape[1:])} against {tuple(reference.shape[1:])}: compare like with like"
        )
    if min(len(samples), len(reference)) < at_least:
        raise UserError(f"a distance between samples needs at least {at_least} items of each")
    return flat(samples).double(), flat(reference).double()


def forecast(samples: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Draws `(m, n, d)` and cases `(n, d)` in float64, their shapes checked; m is at least 2."""
    if samples.shape[1:] != reference.shape:
        raise UserError(
            f"draws {tuple(samples.shape)} are (m, *cases) for cases {tuple(reference.shape)}: they do not fit"
        )
    if len(samples) < 2 or len(reference) < 1:
        raise UserError("a forecast needs at least 1 case, and at least 2 draws for each")
    return samples.reshape(*samples.shape[:2], -1).double(), flat(reference).double()
