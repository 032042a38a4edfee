"""CRPS, variogram and energy scores, variance ratio and conditional energy distance: closed forms, other libraries."""

import math
from itertools import combinations

import numpy as np
import pytest
import scoringrules
import torch
from scipy import special
from scipy import stats as laws
from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics import CRPS, ConditionalEnergyDistance, EnergyScore, VarianceRatio, VariogramScore
from problems import doubles, generator, normals
from stats import accepts, ks, rejects
from test_metrics import forecasts, gini, mean_is, replicates

EXPECTED = {0.0: 0.797885, 0.5: 0.609967, 0.9: 0.565673, 1.0: 0.564190, 1.4142: 0.584092, 2.0: 0.655745}  # E CRPS


def crps(c: float, m: int, seed: int, count: int = 60) -> Tensor:
    return replicates(count, lambda source: CRPS()(*forecasts(c, 0.0, m, 400, 1, source))["crps"], seed)


@pytest.mark.parametrize("c", [0.0, 0.5, 1.0, 1.4142, 2.0])
def test_crps_of_a_gaussian(c):
    """`sqrt(2/pi) (sqrt(1 + c^2) - c/sqrt 2)`."""
    values = crps(c, 16, seed=0)
    assert accepts(mean_is(values, EXPECTED[c]))
    for other in set(EXPECTED) - {c, 0.9}:
        assert rejects(mean_is(values, EXPECTED[other])) or abs(EXPECTED[other] - EXPECTED[c]) < 0.03


@pytest.mark.parametrize("m", [2, 5, 20])
def test_crps_is_fair_and_the_plug_in_is_not(m):
    """The plug-in counts a draw as its own neighbour and is too large by the factor 1 + 1/m."""
    values = crps(1.0, m, seed=m)
    assert accepts(mean_is(values, EXPECTED[1.0]))

    def plug_in(source: torch.Generator) -> float:
        draws, truth = forecasts(1.0, 0.0, m, 400, 1, source)
        return scoringrules.crps_ensemble(truth.numpy(), draws.numpy(), m_axis=0, estimator="nrg").mean()

    wrong = replicates(60, plug_in, m)
    assert rejects(mean_is(wrong, EXPECTED[1.0]))
    assert accepts(mean_is(wrong, EXPECTED[1.0] * (1 + 1 / m)))


def test_crps_against_scoringrules_and_the_energy_score():
    draws, truth = normals(7, 30, 4, seed=0), normals(30, 4, seed=1)
    found = CRPS()(draws, truth)["crps"]
    for estimator, agrees in (("fair", True), ("nrg", False)):
        theirs = scoringrules.crps_ensemble(truth.numpy(), draws.numpy(), m_axis=0, estimator=estimator).mean()
        assert (found == pytest.approx(theirs, rel=1e-9)) == agrees
    each = [EnergyScore()(draws[..., [i]], truth[:, [i]])["energy_score"] for i in range(4)]
    assert found == pytest.approx(np.mean(each), rel=1e-9)
    assert CRPS()(draws + 1e6, truth + 1e6)["crps"] == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize("power", [0.5, 1.0, 1.6])
@pytest.mark.parametrize("c", [0.5, 1.0])
def test_energy_score_of_any_power(power, c):
    """`E|N(0, s^2)|^p = (sqrt 2 s)^p Gamma((p + 1)/2) / sqrt(pi)`."""
    moment = 2 ** (power / 2) * special.gamma((power + 1) / 2) / math.sqrt(math.pi)
    exact = moment * ((1 + c**2) ** (power / 2) - 0.5 * (2 * c**2) ** (power / 2))
    metric = EnergyScore(power=power)
    values = replicates(60, lambda source: metric(*forecasts(c, 0.0, 8, 400, 1, source))["energy_score"], 4)
    assert accepts(mean_is(values, exact))
    assert rejects(mean_is(values, 1.1 * exact))


def test_energy_score_of_two_would_see_the_mean_alone():
    for power in (0.0, 2.0, -1.0):
        with pytest.raises(UserError, match="between 0 and 2"):
            EnergyScore(power=power)
    draws, truth = forecasts(1.0, 0.0, 150, 200, 2, generator(0))
    almost = EnergyScore(power=2 - 1e-9)
    gap = [almost(c * draws, truth)["energy_score"] - almost(draws, truth)["energy_score"] for c in (0.5, 2.0)]
    assert gap == pytest.approx([0, 0], abs=0.04)
    gap = [
        EnergyScore()(c * draws, truth)["energy_score"] - EnergyScore()(draws, truth)["energy_score"]
        for c in (0.5, 2.0)
    ]
    assert min(gap) > 0.05


def variogram(c: float, m: int, power: float = 1.0) -> Tensor:
    metric = VariogramScore(power=power)
    return replicates(60, lambda source: metric(*forecasts(c, 0.0, m, 400, 2, source))["variogram_score"], m)


@pytest.mark.parametrize(("c", "m"), [(1.0, 2), (1.0, 9), (0.5, 2), (2.0, 5)])
def test_variogram_score_of_a_gaussian(c, m):
    """With D ~ N(0, 2), p = 1: `Var|D| + (1 - c)^2 (E|D|)^2 = 2 - 4/pi + (1 - c)^2 4/pi` for every m.

    Not for the plain score, which is larger by the variance of the mean of the draws, `c^2 (2 - 4/pi) / m`.
    """
    values, exact = variogram(c, m), 2 - 4 / math.pi + (1 - c) ** 2 * 4 / math.pi
    assert accepts(mean_is(values, exact))
    assert rejects(mean_is(values, exact + c**2 * (2 - 4 / math.pi) / m))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_variogram_score_against_scoringrules(power):
    """Theirs is plain, and the sum over both orders of a pair."""
    d, m = 5, 6
    draws, truth = normals(m, 20, d, seed=0), normals(20, d, seed=1)
    theirs = scoringrules.vs_ensemble(truth.numpy(), draws.numpy(), m_axis=0, p=power).mean() / (d * (d - 1))
    pairs = list(combinations(range(d), 2))
    noise = np.mean([(draws[..., a] - draws[..., b]).abs().pow(power).var(0).mean().item() / m for a, b in pairs])
    found = VariogramScore(power=power)(draws, truth)["variogram_score"]
    assert found == pytest.approx(theirs - noise, rel=1e-9)
    assert found != pytest.approx(theirs, rel=1e-2)


def test_variogram_score_of_some_pairs():
    """Random pairs give the score of all in the mean, `pairs` of 784 components are affordable, and a seed is a seed."""
    draws, truth = normals(4, 10, 30, seed=0) * torch.arange(1.0, 31.0), normals(10, 30, seed=1)
    every = VariogramScore()(draws, truth)["variogram_score"]
    some = doubles(*(VariogramScore(pairs=40, seed=seed)(draws, truth)["variogram_score"] for seed in range(200)))
    assert accepts(mean_is(some, every))
    assert rejects(mean_is(some, 1.1 * every))
    assert some.unique().numel() > 100
    assert VariogramScore(pairs=435)(draws, truth)["variogram_score"] == every
    images = normals(5, 20, 1, 28, 28, seed=2), normals(20, 1, 28, 28, seed=3)
    assert VariogramScore(seed=3)(*images) == VariogramScore(seed=3)(*images)


def test_variogram_score_sees_dependence_and_not_a_common_bias():
    root = doubles(1.0, 0.0, 0.8, 0.6).reshape(2, 2)

    def gap(metric, name: str, bias: float = 0.0, mixed: Tensor = root) -> Tensor:
        def number(source: torch.Generator) -> float:
            draws, truth = forecasts(1.0, 0.0, 8, 300, 2, source)
            worse = metric(draws @ mixed.T + bias, truth @ root.T)[name]
            return worse - metric(draws @ root.T, truth @ root.T)[name]

        return replicates(40, number, 5)

    eye = torch.eye(2).double()
    assert rejects(mean_is(gap(VariogramScore(), "variogram_score", mixed=eye), 0.0))
    assert accepts(mean_is(gap(CRPS(), "crps", mixed=eye), 0.0))
    assert gap(VariogramScore(), "variogram_score", bias=1.0).abs().max() < 1e-9
    assert rejects(mean_is(gap(CRPS(), "crps", bias=1.0), 0.0))


def draws_of_two(
    n: int, m: int, k: int, model: Tensor, truth: Tensor, bias: float, source: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draws `N(mean_i + bias, model model')` and `N(mean_i, truth truth')` about means that differ from case to case."""
    d = len(truth)
    mean = 3 * torch.randn(n, d, generator=source, dtype=torch.float64)
    x, y = (torch.randn(size, n, d, generator=source, dtype=torch.float64) for size in (m, k))
    return mean + bias + x @ model.T, mean + y @ truth.T


TRUTH = doubles(2.0, 0.0, 0.0, 0.5).reshape(2, 2)
TURN = doubles(0.8, -0.6, 0.6, 0.8).reshape(2, 2)


@pytest.mark.parametrize(
    ("factors", "expected"),
    [((1.0, 1.0), (1.0, 1.0, 1.0)), ((1.0, 1.3), (4.4225 / 4.25, 1.0, 1.69)), ((0.8, 1.0), (2.81 / 4.25, 0.64, 1.0))],
)
def test_variance_ratio_along_and_across(factors, expected):
    """The truth is `N(., R diag(4, 1/4) R')`, and the model's deviations along its axes are wrong by these factors."""
    model = TURN @ TRUTH @ torch.diag(doubles(*factors))
    names = ("variance_ratio", "variance_ratio_largest", "variance_ratio_smallest")
    rows = []
    for source in [generator(6)] * 40:
        x, y = draws_of_two(300, 4, 6, model, TURN @ TRUTH, 0.7, source)
        rows.append(doubles(*(VarianceRatio()(x, y)[name] for name in names)))
    for values, exact in zip(torch.stack(rows).T, expected, strict=True):
        assert accepts(mean_is(values, exact))
        assert rejects(mean_is(values, 1.1 * exact))
        assert rejects(mean_is(values * 3 / 4, exact))  # the variance of 4 draws as their mean square


def test_variance_ratio_leaves_out_what_does_not_vary():
    """A border of constant pixels in the truth, also where the model is not constant there."""
    x, y = draws_of_two(200, 5, 5, TRUTH, TRUTH, 0.0, generator(7))
    border = torch.full((5, 200, 3), -1.0).double()
    bare, framed = VarianceRatio()(x, y), VarianceRatio()(torch.cat([x, border], -1), torch.cat([y, border], -1))
    assert framed == pytest.approx(bare, rel=1e-9)
    noisy = VarianceRatio()(torch.cat([x, border + normals(5, 200, 3, seed=8)], -1), torch.cat([y, border], -1))
    assert noisy["variance_ratio"] > 1.5
    assert noisy["variance_ratio_smallest"] == pytest.approx(bare["variance_ratio_smallest"], rel=1e-9)
    with pytest.raises(UserError, match="do not vary"):
        VarianceRatio()(x, y[:1].expand(3, -1, -1))


@pytest.mark.parametrize(("c", "bias"), [(1.0, 0.0), (0.7, 0.0), (1.5, 0.0), (1.0, 0.5)])
def test_conditional_energy_distance_of_gaussians(c, bias):
    """On the line, `2 E|N(b, 1 + c^2)| - E|N(0, 2 c^2)| - E|N(0, 2)|`, whatever the means of the cases."""
    scale, one = math.sqrt(1 + c**2), torch.ones(1, 1).double()
    exact = 2 * laws.foldnorm.mean(bias / scale, scale=scale) - 2 * (1 + c) / math.sqrt(math.pi)
    metric, name = ConditionalEnergyDistance(), "conditional_energy_distance"
    values = replicates(60, lambda source: metric(*draws_of_two(300, 3, 5, c * one, one, bias, source))[name], 8)
    assert accepts(mean_is(values, exact))
    assert rejects(mean_is(values, exact + 0.05))

    def plug_in(source: torch.Generator) -> float:  # the distance of a draw to itself counted
        x, y = draws_of_two(300, 3, 5, c * one, one, bias, source)
        within = sum((z[:, None] - z).abs().mean().item() for z in (x, y))
        return 2 * (x[:, None] - y).abs().mean().item() - within

    assert rejects(mean_is(replicates(60, plug_in, 8), exact))


def test_conditional_energy_distance_says_how_sure_it_is():
    """Its z-values are standard normal where the laws are equal; without the root of n they are not."""
    z = []
    for source in [generator(9)] * 300:
        found = ConditionalEnergyDistance()(*draws_of_two(200, 2, 2, TRUTH, TRUTH, 0.0, source))
        z.append(found["conditional_energy_distance"] / found["conditional_energy_distance_se"])
    assert accepts(ks(doubles(*z), "norm"))
    assert rejects(ks(doubles(*z) * 1.4, "norm"))


def test_conditional_energy_distance_is_of_the_same_cases():
    """Draws for other conditions have the right marginal law and are found out."""
    x, y = draws_of_two(500, 3, 3, TRUTH, TRUTH, 0.0, generator(10))
    right, wrong = ConditionalEnergyDistance()(x, y), ConditionalEnergyDistance()(x.roll(1, 1), y)
    name = "conditional_energy_distance"
    assert abs(right[name]) < 4.4 * right[f"{name}_se"]
    assert wrong[name] > 4.4 * wrong[f"{name}_se"]


@pytest.mark.parametrize("d", [2, 40])
def test_conditional_metrics_case_by_case_in_blocks_of_any_size(d):
    x, y = normals(5, 9, d, seed=11) + 50, 1.2 * normals(4, 9, d, seed=12) + 50
    each = [
        2 * np.mean([math.dist(a, b) for a in x[:, i] for b in y[:, i]]) - gini(x[:, i]) - gini(y[:, i])
        for i in range(9)
    ]
    variances = [np.mean([np.trace(np.atleast_2d(np.cov(z[:, i].numpy().T))) for i in range(9)]) for z in (x, y)]
    for block in (1, 4, 64):
        found = ConditionalEnergyDistance(block=block)(x, y)
        assert found["conditional_energy_distance"] == pytest.approx(np.mean(each), rel=1e-9)
        assert found["conditional_energy_distance_se"] == pytest.approx(np.std(each, ddof=1) / 3, rel=1e-9)
        assert VarianceRatio(block=block)(x, y)["variance_ratio"] == pytest.approx(variances[0] / variances[1])


def test_bad_inputs_are_refused():
    x, y = normals(4, 6, 2, seed=0), normals(3, 6, 2, seed=1)
    for metric in (VarianceRatio(), ConditionalEnergyDistance()):
        for bad in ((x, y[:, :5]), (x, y[0]), (x[0], y), (x[0, 0], y[0, 0])):
            with pytest.raises(UserError, match="the same n cases"):
                metric(*bad)
        for bad in ((x[:1], y), (x, y[:1])):
            with pytest.raises(UserError, match="at least 2 draws"):
                metric(*bad)
    with pytest.raises(UserError, match="standard error"):
        ConditionalEnergyDistance()(x[:, :1], y[:, :1])
    for bad in ({"power": 0.0}, {"pairs": 0}):
        with pytest.raises(UserError, match="power above 0 and 1 pair"):
            VariogramScore(**bad)
    with pytest.raises(UserError, match="take CRPS"):
        VariogramScore()(x[..., :1], y[0, :, :1])
