"""Frechet distance between the features of two samples (Heusel et al. 2017, arXiv 1706.08500, eq. 6)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics.base import Features, Metric, two_samples_in


@dataclass(frozen=True, kw_only=True)
class FrechetDistance(Metric):
    """`||m_1 - m_2||^2 + Tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))` of the features, `{name: ...}`, "frechet" or as given.

    `features` maps items `(n, ...)` to vectors `(n, k)`: a function, or a module in evaluation mode. The trace of the
    root is the sum of the roots of the eigenvalues of `C_1^(1/2) C_2 C_1^(1/2)`, in float64. Biased upwards by the
    sample size: compare equal sizes, and with a floor. Raises `UserError` where a sample has no more items than
    features, because its covariance is then singular.
    """

    features: Features
    name: str = "frechet"

    def __call__(self, samples: Tensor, reference: Tensor) -> dict[str, float]:
        x, y = two_samples_in(self.features, samples, reference)
        if min(len(x), len(y)) <= x.shape[1]:
            raise UserError(
                f"a Frechet distance in {x.shape[1]} features needs more than {x.shape[1]} items of each, "
                f"not {len(x)} and {len(y)}"
            )
        covariances = (torch.atleast_2d(z.T.cov()) for z in (x, y))
        return {self.name: between_gaussians(x.mean(0), y.mean(0), *covariances)}


def between_gaussians(mean_1: Tensor, mean_2: Tensor, covariance_1: Tensor, covariance_2: Tensor) -> float:
    """`||m_1 - m_2||^2 + Tr(C_1 + C_2 - 2 (C_1^1/2 C_2 C_1^1/2)^1/2)`: W2^2 of two Gaussians, means `(d,)`."""
    values, vectors = torch.linalg.eigh(covariance_1)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance_2 @ root).clamp_min(0).sqrt().sum()
    trace = covariance_1.trace() + covariance_2.trace() - 2 * cross
    return ((mean_1 - mean_2).square().sum() + trace).item()
