"""Tests of a law at `ALPHA = 1e-5`: each function returns a p-value, and `accepts` and `rejects` judge it.

A true law fails one seed in 100 000; a test is worth its name only where a deliberately wrong twin is rejected.
"""

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from fewstep.mixture import GaussianMixture

ALPHA = 1e-5


def accepts(p_value: float) -> bool:
    return p_value > ALPHA


def rejects(p_value: float) -> bool:
    return p_value < ALPHA


def ks(sample: Tensor, law: GaussianMixture | str) -> float:
    """Kolmogorov-Smirnov against a mixture on the line or a law that scipy knows by name."""
    cdf = cdf_of(law) if isinstance(law, GaussianMixture) else law
    return float(stats.kstest(sample.detach().flatten().double().numpy(), cdf).pvalue)


def chi_square(draws: Tensor, probabilities: Tensor) -> float:
    """Indices drawn with these probabilities; an index of probability zero must not be drawn at all."""
    counts = np.bincount(draws.flatten().numpy(), minlength=len(probabilities))
    live = probabilities.numpy() > 0
    if counts[~live].any():
        return 0.0
    expected = probabilities.double().numpy()[live] / probabilities.double().sum().item() * counts.sum()
    return float(stats.chisquare(counts[live], expected).pvalue)


def share(hits: Tensor, probability: float) -> float:
    """Exact binomial test of a share of true entries."""
    return float(stats.binomtest(int(hits.sum()), hits.numel(), probability).pvalue)


def mean_and_covariance(sample: Tensor, mean: Tensor, covariance: Tensor) -> float:
    """z-tests of every component of the mean and every entry of the covariance, `sample` `(n, d)`; Bonferroni's minimum."""
    centred = (sample - mean).double()
    rows, columns = torch.triu_indices(centred.shape[1], centred.shape[1])
    values = torch.cat([centred, centred[:, rows] * centred[:, columns]], dim=1)
    expected = torch.cat([torch.zeros_like(mean), covariance[rows, columns]])
    return z_tests(values, expected)


def z_tests(values: Tensor, expected: Tensor) -> float:
    """z-tests of the means of the columns of `(n, k)`; Bonferroni's minimum."""
    values = values.reshape(values.shape[0], -1)
    z = (values.mean(0) - expected.reshape(-1)).abs() / (values.std(0) / values.shape[0] ** 0.5)
    return float(min(1.0, values.shape[1] * 2 * stats.norm.sf(z.max().item())))


def cdf_of(mixture: GaussianMixture):
    """The distribution function of a mixture on the line."""
    weights, means, deviations = _parts(mixture)
    return lambda x: (weights * stats.norm.cdf((np.asarray(x)[..., None] - means) / deviations)).sum(-1)


def wasserstein_1(sample: Tensor, mixture: GaussianMixture) -> float:
    """W1 between a sample and a mixture on the line, exact: the integral of `|F_n - F|`, cut where the two cross."""
    weights, means, deviations = _parts(mixture)
    cdf = cdf_of(mixture)

    def integral(x: np.ndarray) -> np.ndarray:  # of F from -inf to x
        z = (x[..., None] - means) / deviations
        return (weights * deviations * (z * stats.norm.cdf(z) + stats.norm.pdf(z))).sum(-1)

    x = np.sort(sample.detach().flatten().double().numpy())
    level = np.arange(1, len(x)) / len(x)
    low, high = x[:-1].copy(), x[1:].copy()
    for _ in range(60):  # F = level: inside the interval, or at its nearer end
        middle = (low + high) / 2
        below = cdf(middle) < level
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    area = integral(x)
    cut = (low + high) / 2
    left = level * (cut - x[:-1]) - (integral(cut) - area[:-1])
    right = (area[1:] - integral(cut)) - level * (x[1:] - cut)
    tails = area[0] + (area[-1] - x[-1] + (weights * means).sum())
    return float(left.sum() + right.sum() + tails)


def _parts(mixture: GaussianMixture) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    variances = mixture.covariances[..., 0, 0]
    return mixture.weights.numpy(), mixture.means[..., 0].numpy(), variances.sqrt().numpy()
