"""The kernel distances (KID, MMD) and the Vendi score against scalar loops, closed forms and other libraries."""

import math
from collections.abc import Callable
from itertools import combinations, product

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.kernels import Gaussian
from fewstep.metrics import MMD, KernelDistance, VendiScore
from fewstep.metrics.kernels import cosine, median_distance, mmd2
from fewstep.shapes import flat
from problems import doubles, normals
from stats import accepts, rejects
from test_metrics import mean_is, replicates

KID = KernelDistance(features=flat)


def scalar_mmd2(
    kernel: Callable[[np.ndarray, np.ndarray], float], x: Tensor, y: Tensor, plug_in: bool = False
) -> float:
    """Pair by pair; the plug-in counts every item as its own neighbour."""

    def within(z: np.ndarray) -> float:
        pairs = [kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if plug_in or i != j]
        return float(np.mean(pairs))

    x, y = x.numpy(), y.numpy()
    return within(x) + within(y) - 2 * float(np.mean([kernel(a, b) for a, b in product(x, y)]))


def gaussian(h: float) -> Callable[[np.ndarray, np.ndarray], float]:
    return lambda a, b: math.exp(-(math.dist(a, b) ** 2) / (2 * h * h))


def polynomial(a: np.ndarray, b: np.ndarray) -> float:
    return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3


@pytest.mark.parametrize("block", [1, 7, 2048])
def test_pair_by_pair_in_blocks_of_any_size(block):
    x, y = normals(23, 3, seed=0), 1.3 * normals(17, 3, seed=1) + 0.4
    expected = scalar_mmd2(gaussian(0.8), x, y)
    assert MMD(bandwidth=0.8, block=block)(x, y)["mmd2"] == pytest.approx(expected, rel=1e-9)
    assert scalar_mmd2(gaussian(0.8), x, y, plug_in=True) != pytest.approx(expected, rel=1e-2)
    expected = scalar_mmd2(polynomial, x, y)
    assert KernelDistance(features=flat, block=block)(x, y)["kid"] == pytest.approx(expected, rel=1e-9)
    assert scalar_mmd2(polynomial, x, y, plug_in=True) != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize(("metric", "kernel"), [(MMD(bandwidth=1.0), gaussian(1.0)), (KID, polynomial)])
def test_equal_laws_are_at_zero_in_the_mean(metric, kernel):
    """The U-statistic is; the plug-in is not."""

    def pair(source: torch.Generator) -> tuple[Tensor, Tensor]:
        return tuple(torch.randn(k, 2, generator=source, dtype=torch.float64) for k in (15, 12))

    values = replicates(300, lambda source: next(iter(metric(*pair(source)).values())), 0)
    assert accepts(mean_is(values, 0.0))
    assert values.min() < 0
    assert rejects(mean_is(replicates(100, lambda s: scalar_mmd2(kernel, *pair(s), plug_in=True), 0), 0.0))


@pytest.mark.parametrize(("h", "b", "s"), [(1.0, 0.7, 1.0), (0.5, 0.0, 1.6)])
def test_mmd_of_gaussians(h, b, s):
    """`E k(X, Y) = (h^2 / (h^2 + v))^(d/2) exp(-||b||^2 / (2 (h^2 + v)))`, v the variance of a component of X - Y."""

    def mean(v: float, b: float) -> float:
        return h * h / (h * h + v) * math.exp(-b * b / (2 * (h * h + v)))

    def number(source: torch.Generator) -> float:
        x, y = (torch.randn(k, 2, generator=source, dtype=torch.float64) for k in (200, 150))
        return MMD(bandwidth=h)(s * x + doubles(b, 0), y)["mmd2"]

    exact = mean(2 * s * s, 0) + mean(2, 0) - 2 * mean(1 + s * s, b)
    values = replicates(100, number, 1)
    assert accepts(mean_is(values, exact))
    assert rejects(mean_is(values, 1.2 * exact))
    assert rejects(mean_is(values, math.sqrt(exact)))


def test_the_bandwidth_is_the_median_distance_of_the_reference():
    x, y = 3 * normals(40, 3, seed=2), normals(30, 3, seed=3)
    median = float(np.median([math.dist(a, b) for a, b in combinations(y.tolist(), 2)]))
    assert median_distance(y) == pytest.approx(median, rel=1e-12)
    assert MMD()(x, y)["mmd2"] == pytest.approx(MMD(bandwidth=median)(x, y)["mmd2"], rel=1e-9)
    assert MMD()(y, x)["mmd2"] != pytest.approx(MMD()(x, y)["mmd2"], rel=1e-2)
    few = median_distance(normals(3000, 3, seed=4), at_most=300)
    assert few == pytest.approx(median_distance(normals(3000, 3, seed=4), at_most=3000), rel=0.05)
    with pytest.raises(UserError, match="set one"):
        MMD()(x, y[:1].repeat(9, 1))
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(UserError, match="bandwidth above 0"):
            MMD(bandwidth=wrong)


def test_a_bandwidth_that_is_far_too_large_hides_a_fault():
    x, y = 0.5 * normals(200, 2, seed=5), normals(200, 2, seed=6)
    assert MMD()(x, y)["mmd2"] > 0.05
    assert abs(MMD(bandwidth=100.0)(x, y)["mmd2"]) < 1e-4


def test_kid_against_torchmetrics():
    from torchmetrics.image.kid import poly_mmd

    x, y = normals(40, 6, seed=7), 0.7 * normals(40, 6, seed=8) + 0.3
    assert KID(x, y)["kid"] == pytest.approx(poly_mmd(y, x).item(), rel=1e-12)
    assert poly_mmd(y, x, degree=2).item() != pytest.approx(KID(x, y)["kid"], rel=1e-2)


@pytest.mark.parametrize(("b", "s"), [(0.5, 1.0), (0.0, 1.3), (-0.4, 0.8)])
def test_kid_compares_three_moments(b, s):
    """On the line `(x y + 1)^3` gives `3 d_1^2 + 3 d_2^2 + d_3^2`, `d_j` the difference of the j-th moments about 0."""
    exact = 3 * b**2 + 3 * (s**2 + b**2 - 1) ** 2 + (b**3 + 3 * b * s**2) ** 2

    def number(source: torch.Generator) -> float:
        x, y = (torch.randn(k, 1, generator=source, dtype=torch.float64) for k in (400, 300))
        return KID(s * x + b, y)["kid"]

    values = replicates(200, number, 2)
    assert accepts(mean_is(values, exact))
    assert rejects(mean_is(values, 1.4 * exact))


def test_kid_does_not_see_what_three_moments_do_not_show():
    """`sqrt(3) {-1, 0, 1}` with weights 1/6, 2/3, 1/6 has the first five moments of N(0, 1); MMD sees the difference."""

    def number(metric: KernelDistance | MMD, name: str) -> Tensor:
        def one(source: torch.Generator) -> float:
            u = torch.rand(200, 1, generator=source, dtype=torch.float64)
            x = 3**0.5 * ((u > 5 / 6).double() - (u < 1 / 6).double())
            return metric(x, torch.randn(200, 1, generator=source, dtype=torch.float64))[name]

        return replicates(100, one, 3)

    assert accepts(mean_is(number(KID, "kid"), 0.0))
    assert rejects(mean_is(number(MMD(bandwidth=0.5), "mmd2"), 0.0))


def test_kid_looks_through_its_features():
    x, y = normals(50, 3, seed=7), normals(50, 3, seed=8) + 1
    assert KernelDistance(features=lambda x: x[:, :2])(x, y) == KID(x[:, :2], y[:, :2])


def test_vendi_counts_the_items_that_differ():
    """Equal items are 1, orthogonal ones as many as there are, clusters of shares p `exp(-sum p log p)`."""
    basis = torch.eye(6, dtype=torch.float64)
    score = VendiScore(kernel=cosine)
    assert score(basis[:1].repeat(6, 1), basis) == pytest.approx(
        {"vendi": 1.0, "vendi_reference": 6.0, "vendi_ratio": 1 / 6}, rel=1e-9
    )
    clusters = basis[[0] * 5 + [1] * 3 + [2] * 2]
    entropy = -sum(p * math.log(p) for p in (0.5, 0.3, 0.2))
    assert score(clusters, clusters)["vendi"] == pytest.approx(math.exp(entropy), rel=1e-9)
    apart = VendiScore(kernel=Gaussian(bandwidth=0.01))(clusters, normals(10, 6, seed=0))
    assert apart["vendi"] == pytest.approx(math.exp(entropy), rel=1e-9)
    assert apart["vendi_reference"] == pytest.approx(10, rel=1e-9)


@pytest.mark.parametrize("name", ["gaussian", "cosine"])
def test_vendi_against_numpy(name):
    x, y = normals(25, 3, seed=9), normals(25, 3, seed=10)
    h = median_distance(y)
    kernels = {"gaussian": (None, gaussian(h)), "cosine": (cosine, lambda a, b: a @ b / np.sqrt(a @ a * (b @ b)))}
    kernel, scalar = kernels[name]
    values = np.linalg.eigvalsh(np.array([[scalar(a, b) for b in x.numpy()] for a in x.numpy()]) / 25)
    values = values[values > 1e-12]
    expected = math.exp(-np.sum(values * np.log(values)))
    assert VendiScore(kernel=kernel)(x, y)["vendi"] == pytest.approx(expected, rel=1e-8)
    assert expected != pytest.approx(1 / np.sum(values**2), rel=1e-2)  # the score of order 2


def test_vendi_takes_as_many_of_each():
    """The score grows with the number of items, so that scores of different numbers cannot be compared."""
    x, y, kernel = normals(900, 8, seed=11), normals(300, 8, seed=12), Gaussian(bandwidth=1.0)
    assert VendiScore(kernel=kernel)(x, y)["vendi_ratio"] == pytest.approx(1, abs=0.1)
    more, fewer = (VendiScore(kernel=kernel, at_most=m)(x, x)["vendi"] for m in (900, 300))
    assert more > 1.2 * fewer
    assert VendiScore(at_most=100)(x, y) != VendiScore(at_most=100, seed=1)(x, y)
    with pytest.raises(UserError, match="set a kernel"):
        VendiScore()(x, y[:1].repeat(9, 1))


def test_the_mean_of_a_kernel_is_of_pairs_of_different_items():
    """A kernel that is 1 on an item with itself and 0 elsewhere has mean 0."""
    x = normals(9, 2, seed=13)
    assert mmd2(lambda a, b: (a[:, None] == b).all(-1).double(), x, x + 1, block=4) == 0
