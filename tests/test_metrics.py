"""Metrics against known numbers and the four controls of a forecast: accurate, too narrow, too wide, biased."""

import math
from collections.abc import Callable
from itertools import combinations, product

import numpy as np
import ot
import pytest
import scoringrules
import torch
from scipy import linalg, optimize, stats
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.metrics import EnergyDistance, EnergyScore, FrechetDistance, SlicedWasserstein, SpreadSkill
from problems import doubles, generator, normals, seeded
from stats import accepts, rejects

CRPS = {1.0: 0.564190, 0.5: 0.609967, 2.0: 0.655745}  # E CRPS of the forecast N(0, c^2) of N(0, 1)
CALIBRATED = {1: 0.564190, 2: 0.886227, 8: 1.938621, 64: 5.634801}  # E energy score of N(0, I_d), itself the truth
IDENTITY = FrechetDistance(features=lambda x: x.flatten(1))


def replicates(count: int, number: Callable[[torch.Generator], float], seed: int) -> Tensor:
    """The number in independent repetitions."""
    source = generator(seed)
    return torch.tensor([number(source) for _ in range(count)], dtype=torch.float64)


def mean_is(values: Tensor, expected: float) -> float:
    """The p-value of Student's test of a mean."""
    return float(stats.ttest_1samp(values.numpy(), expected).pvalue)


def forecasts(c: float, bias: float, m: int, n: int, d: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """`m` draws from N(bias, c^2) for each of `n` outcomes from N(0, I_d)."""
    draws = bias + c * torch.randn(m, n, d, generator=source, dtype=torch.float64)
    return draws, torch.randn(n, d, generator=source, dtype=torch.float64)


def scores(c: float = 1.0, bias: float = 0.0, m: int = 8, d: int = 1, seed: int = 0) -> Tensor:
    return replicates(60, lambda source: EnergyScore()(*forecasts(c, bias, m, 250, d, source))["energy_score"], seed)


def gini(x: Tensor) -> float:
    """The mean distance between two different items, pair by pair."""
    return float(np.mean([math.dist(a, b) for a, b in combinations(x.tolist(), 2)]))


def whitened(n: int, d: int, seed: int) -> Tensor:
    """A sample whose mean is exactly 0 and whose (unbiased) covariance is exactly the identity."""
    x = normals(n, d, seed=seed)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (n - 1))).T


@pytest.mark.parametrize("c", CRPS)
def test_energy_score_on_the_line_is_the_crps(c):
    values = scores(c)
    assert accepts(mean_is(values, CRPS[c]))
    for other in set(CRPS) - {c}:
        assert rejects(mean_is(values, CRPS[other]))


def test_energy_score_of_a_biased_forecast():
    """`E|X - x|` is the mean of a folded normal law; the score is proper, so every fault costs."""
    bias = 0.7
    distance = stats.foldnorm.mean(bias / math.sqrt(2), scale=math.sqrt(2))
    values = scores(bias=bias)
    assert accepts(mean_is(values, distance - CRPS[1.0]))
    assert rejects(mean_is(values, CRPS[1.0]))
    assert min(CRPS[0.5], CRPS[2.0], distance - CRPS[1.0]) > CRPS[1.0]


@pytest.mark.parametrize("d", CALIBRATED)
def test_energy_score_of_the_truth(d):
    values = scores(d=d, seed=d)
    assert accepts(mean_is(values, CALIBRATED[d]))
    assert rejects(mean_is(scores(c=1.5, d=d, seed=d), CALIBRATED[d]))
    assert rejects(mean_is(values, CALIBRATED[d] * 1.05))


@pytest.mark.parametrize("m", [2, 5, 20])
def test_energy_score_does_not_depend_on_the_number_of_draws(m):
    """The plug-in, which counts every draw as its own neighbour, is too large by the factor 1 + 1/m."""

    def plug_in(source: torch.Generator) -> float:
        draws, truth = forecasts(1.0, 0.0, m, 200, 1, source)
        spread = sum((draws[i] - draws[j]).abs() for i, j in product(range(m), repeat=2)) / m**2
        return ((draws - truth).abs().mean(0) - spread / 2).mean().item()

    assert accepts(mean_is(scores(m=m, seed=m), CRPS[1.0]))
    plugged_in = replicates(60, plug_in, m)
    assert rejects(mean_is(plugged_in, CRPS[1.0]))
    assert accepts(mean_is(plugged_in, CRPS[1.0] * (1 + 1 / m)))


def test_energy_score_against_scoringrules():
    """Their fair estimator is ours; their default is the plug-in."""
    draws, truth = normals(6, 40, 3, seed=2), normals(40, 3, seed=3)
    theirs = [
        scoringrules.es_ensemble(truth.numpy(), draws.numpy(), m_axis=0, estimator=e).mean() for e in ("fair", "nrg")
    ]
    found = EnergyScore()(draws, truth)["energy_score"]
    assert found == pytest.approx(theirs[0], rel=1e-9)
    assert found != pytest.approx(theirs[1], rel=1e-2)


@pytest.mark.parametrize("m", [2, 6, 30])
def test_spread_over_skill_of_the_truth_is_one(m):
    """For every number of draws; without the factor sqrt(1 + 1/m) it would not be."""

    def number(name: str, c: float = 1.0, bias: float = 0.0) -> Tensor:
        return replicates(60, lambda source: SpreadSkill()(*forecasts(c, bias, m, 1000, 2, source))[name], m)

    assert accepts(mean_is(number("spread_skill"), 1.0))
    for c, bias in ((0.9, 0.0), (1.1, 0.0), (1.0, 0.4)):
        assert rejects(mean_is(number("spread_skill", c, bias), 1.0))
    bare = number("spread") / number("skill")
    assert rejects(mean_is(bare, 1.0))


@pytest.mark.parametrize(("c", "bias"), [(1.0, 0.0), (0.5, 0.0), (2.0, 0.0), (1.0, 1.0)])
def test_spread_and_skill(c, bias):
    """`E spread^2 = c^2` and `E skill^2 = 1 + c^2/m + bias^2`; with many draws the ratio is c / sqrt(1 + bias^2)."""
    few = [SpreadSkill()(*forecasts(c, bias, 5, 400, 1, source)) for source in [generator(1)] * 60]
    for name, expected in (("spread", c**2), ("skill", 1 + c**2 / 5 + bias**2)):
        squares = doubles(*(result[name] ** 2 for result in few))
        assert accepts(mean_is(squares, expected))
        assert rejects(mean_is(squares, 1.1 * expected))
    many = SpreadSkill()(*forecasts(c, bias, 1000, 3000, 1, generator(2)))["spread_skill"]
    assert many == pytest.approx(c / math.sqrt(1 + bias**2), rel=0.04)


def test_spread_over_skill_of_a_point_mass_is_zero():
    point = normals(30, 2, seed=0)
    result = SpreadSkill()(point.expand(4, 30, 2), normals(30, 2, seed=1))
    assert result["spread"] == 0
    assert result["spread_skill"] == 0


def test_scores_of_vectors_flatten_the_items():
    draws, truth = normals(6, 20, 12, seed=0), normals(20, 12, seed=1)
    for metric in (EnergyScore(), SpreadSkill()):
        assert metric(draws.reshape(6, 20, 3, 2, 2), truth.reshape(20, 3, 2, 2)) == metric(draws, truth)


def test_energy_distance_of_equal_laws_is_zero_in_the_mean():
    """The U-statistic is; the plug-in, whose means count the distance of an item to itself, is not."""

    def pair(source: torch.Generator) -> tuple[Tensor, Tensor]:
        return tuple(torch.randn(k, 2, generator=source, dtype=torch.float64) for k in (40, 30))

    def unbiased(source: torch.Generator) -> float:
        return EnergyDistance()(*pair(source))["energy_distance"]

    def plug_in(source: torch.Generator) -> float:
        x, y = pair(source)
        distance = torch.cdist(torch.cat([x, y]), torch.cat([x, y]))
        a, b = distance[:40, :40].mean(), distance[40:, 40:].mean()
        return (2 * distance[:40, 40:].mean() - a - b).item()

    values = replicates(300, unbiased, 3)
    assert accepts(mean_is(values, 0.0))
    assert values.min() < 0
    assert rejects(mean_is(replicates(300, plug_in, 3), 0.0))


def test_energy_distance_of_shifted_gaussians():
    """`2 E|N(b, 2)| - 2 E|N(0, 2)|`, means of folded normal laws."""
    b, root = 1.0, math.sqrt(2)
    exact = 2 * stats.foldnorm.mean(b / root, scale=root) - 2 * stats.halfnorm.mean(scale=root)

    def number(source: torch.Generator) -> float:
        x, y = (torch.randn(k, 1, generator=source, dtype=torch.float64) for k in (150, 100))
        return EnergyDistance()(x + b, y)["energy_distance"]

    values = replicates(100, number, 4)
    assert accepts(mean_is(values, exact))
    assert rejects(mean_is(values, math.sqrt(exact)))
    assert rejects(mean_is(values, exact / 2))


def test_energy_distance_against_scipy():
    """scipy's is the root of the plug-in, which is smaller within each sample by the factor (n - 1) / n."""
    x, y = normals(37, 1, seed=5), 1.5 * normals(23, 1, seed=6) + 0.5
    plug_in = stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2
    expected = plug_in - gini(x) / 37 - gini(y) / 23
    assert EnergyDistance()(x, y)["energy_distance"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("block", [1, 7, 2048])
def test_energy_distance_pair_by_pair_in_blocks_of_any_size(block):
    x, y = normals(40, 3, seed=7), normals(31, 3, seed=8) + 0.3
    cross = np.mean([math.dist(a, b) for a, b in product(x.tolist(), y.tolist())])
    expected = 2 * cross - gini(x) - gini(y)
    found = EnergyDistance(block=block)(x, y)["energy_distance"]
    assert found == pytest.approx(expected, abs=1e-7)
    assert EnergyDistance()(y, x)["energy_distance"] == pytest.approx(found, abs=1e-9)


def test_energy_distance_far_from_the_origin():
    x, y = normals(60, 2, seed=9), normals(50, 2, seed=10) + 0.5
    here, there = EnergyDistance()(x, y), EnergyDistance()(x + 100, y + 100)
    assert there["energy_distance"] == pytest.approx(here["energy_distance"], abs=1e-6)


def test_sliced_wasserstein_on_the_line_is_the_best_matching():
    x, y = normals(40, 1, seed=0), 2 * normals(40, 1, seed=1) + 1
    cost = (x - y.T).square().numpy()
    expected = math.sqrt(cost[optimize.linear_sum_assignment(cost)].mean())
    assert SlicedWasserstein(projections=3)(x, y)["sliced_w2"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("k", [1, 2, 7])
def test_sliced_wasserstein_of_unequal_sizes(k):
    """Exact where one size divides the other; an item repeated is an item of more weight."""
    x, y = normals(30, 1, seed=2), normals(30 * k, 1, seed=3) + 0.2
    expected = math.sqrt(ot.emd2_1d(x[:, 0].numpy(), y[:, 0].numpy()))
    assert SlicedWasserstein()(x, y)["sliced_w2"] == pytest.approx(expected, rel=1e-9)
    assert SlicedWasserstein()(y, x)["sliced_w2"] == pytest.approx(expected, rel=1e-9)
    assert SlicedWasserstein()(x, x.repeat(k, 1))["sliced_w2"] == 0


def test_sliced_wasserstein_of_sizes_that_do_not_divide():
    x, y = normals(400, 1, seed=2), normals(300, 1, seed=3) + 0.3
    expected = math.sqrt(ot.emd2_1d(x[:, 0].numpy(), y[:, 0].numpy()))
    assert SlicedWasserstein()(x, y)["sliced_w2"] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("d", [2, 5])
def test_sliced_wasserstein_of_a_shift(d):
    """Every projection moves by b . theta, whose mean square on the sphere is ||b||^2 / d."""
    x = normals(25, d, seed=4)
    b = torch.arange(1.0, d + 1).double()
    squares = doubles(
        *(SlicedWasserstein(projections=64, seed=seed)(x, x + b)["sliced_w2"] ** 2 for seed in range(200))
    )
    expected = b.square().sum().item() / d
    assert accepts(mean_is(squares, expected))
    assert rejects(mean_is(squares, 1.1 * expected))
    assert SlicedWasserstein()(x, x)["sliced_w2"] == 0


def test_sliced_wasserstein_of_gaussians():
    """Between N(0, I) and N(b, 9 I) every projection is at `(b . theta)^2 + (3 - 1)^2`."""
    x, y = normals(5000, 2, seed=5), 3 * normals(5000, 2, seed=6) + doubles(1.0, 0.0)
    assert SlicedWasserstein()(x, y)["sliced_w2"] == pytest.approx(math.sqrt(0.5 + 4), rel=0.03)
    assert SlicedWasserstein()(x, normals(5000, 2, seed=7))["sliced_w2"] < 0.06


def test_sliced_wasserstein_keeps_its_directions():
    x, y = normals(30, 4, seed=8), normals(30, 4, seed=9)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert SlicedWasserstein(projections=4)(x, y) == SlicedWasserstein(projections=4)(x, y)
    assert SlicedWasserstein(projections=4)(x, y) != SlicedWasserstein(projections=4, seed=1)(x, y)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("d", [1, 2, 6])
def test_frechet_distance_of_affine_maps(d):
    """A shift costs ||b||^2, a factor a costs (a - 1)^2 Tr C, a rotation of the identity nothing."""
    x = whitened(50, d, seed=0)
    b = torch.arange(1.0, d + 1).double()
    assert IDENTITY(x, x)["frechet"] == pytest.approx(0, abs=1e-9)
    assert IDENTITY(x, x + b)["frechet"] == pytest.approx(b.square().sum().item(), rel=1e-9)
    assert IDENTITY(x, 3 * x)["frechet"] == pytest.approx(4 * d, rel=1e-9)
    rotation = torch.linalg.qr(normals(d, d, seed=1)).Q
    assert IDENTITY(x, x @ rotation)["frechet"] == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_covariances_that_do_not_commute():
    """2 x 2, by hand: `Tr (C_1 C_2)^(1/2) = sqrt(Tr C_1 C_2 + 2 sqrt(det C_1 C_2))`."""
    first, second = doubles(2, 0.6, 0.6, 0.5).reshape(2, 2), doubles(1, -0.4, -0.4, 3).reshape(2, 2)
    x = whitened(40, 2, seed=2) @ torch.linalg.cholesky(first).T
    y = whitened(60, 2, seed=3) @ torch.linalg.cholesky(second).T + doubles(0.5, -1.0)
    root = math.sqrt(torch.trace(first @ second) + 2 * math.sqrt(torch.det(first) * torch.det(second)))
    expected = 1.25 + 2.5 + 4 - 2 * root
    assert IDENTITY(x, y)["frechet"] == pytest.approx(expected, rel=1e-9)
    assert IDENTITY(y, x)["frechet"] == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_against_scipy():
    mixing = normals(5, 5, seed=4)
    x, y = normals(80, 5, seed=5), normals(60, 5, seed=6) @ mixing + 0.3
    c_1, c_2 = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    root = linalg.sqrtm(c_1 @ c_2).real
    shift = np.square(x.numpy().mean(0) - y.numpy().mean(0)).sum()
    assert IDENTITY(x, y)["frechet"] == pytest.approx(shift + np.trace(c_1 + c_2 - 2 * root), rel=1e-8)


def test_frechet_distance_looks_through_its_features():
    x, y = normals(50, 3, seed=7), normals(50, 3, seed=8) + 1
    assert FrechetDistance(features=lambda x: x[:, :2])(x, y) == IDENTITY(x[:, :2], y[:, :2])


def test_frechet_distance_against_torchmetrics():
    """Given the same module of features; without the means it would be another number."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    with seeded(0):
        module = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Tanh()).double()
    module.num_features = 6
    x, y = normals(200, 1, 4, 4, seed=9), 0.8 * normals(150, 1, 4, 4, seed=10) + 0.2
    theirs = FrechetInceptionDistance(feature=module, normalize=True).set_dtype(torch.float64)
    theirs.update(y, real=True)
    theirs.update(x, real=False)
    found = FrechetDistance(features=module)(x, y)["frechet"]
    assert found == pytest.approx(theirs.compute().item(), rel=1e-8)
    means = (module(x).mean(0) - module(y).mean(0)).square().sum().item()
    assert found != pytest.approx(found - means, rel=1e-2)


def test_bad_inputs_are_refused():
    x = normals(6, 5, seed=0)
    for metric in (EnergyDistance(), SlicedWasserstein(), IDENTITY):
        with pytest.raises(UserError, match="compare like with like"):
            metric(normals(20, 3, seed=0), normals(20, 4, seed=0))
        with pytest.raises(UserError, match="at least 2"):
            metric(x[:1], x)
        with pytest.raises(UserError, match="at least 2"):
            metric(x, x[:1])
    with pytest.raises(UserError, match="more than 5 items"):
        IDENTITY(x, x[:5])
    assert math.isfinite(IDENTITY(x, x)["frechet"])
    for metric in (EnergyScore(), SpreadSkill()):
        with pytest.raises(UserError, match="do not fit"):
            metric(x.expand(4, 6, 5), x[:5])
        with pytest.raises(UserError, match="at least 2 draws"):
            metric(x[None], x)
