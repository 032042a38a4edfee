"""Ranks and the calibration metrics that are made of them: exactness, closed forms, ties, power.

Truth N(0, 1), forecast N(0, c^2): the truth's level among many draws is `u = Phi(z / c)`, `P(u <= v) = Phi(c Phi^-1(v))`.
"""

import math

import numpy as np
import pytest
import torch
from scipy import optimize
from scipy import stats as laws
from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics import SBC, TARP, IntervalCoverage
from fewstep.metrics.ranks import calibration_test, chi_square_uniformity, coverage, histogram, ranks, uniformity
from fewstep.metrics.tarp import tarp_ranks
from problems import doubles, generator, normals
from stats import ALPHA, accepts, chi_square, ks, rejects, share
from test_metrics import forecasts, mean_is, replicates

COVERED = {
    0.5: 0.5892,
    0.7071: 0.7552,
    0.9: 0.8612,
    1.0: 0.9,
    1.1: 0.9296,
    1.4142: 0.98,
    2.0: 0.999,
}  # by 90 % intervals


def uniform_ranks(m: int, *shape: int, seed: int) -> Tensor:
    return torch.randint(m + 1, shape, generator=generator(seed))


def distance_from_uniform(c: float) -> float:
    """`sup_v |Phi(c Phi^-1(v)) - v|`."""
    best = optimize.minimize_scalar(
        lambda z: -abs(laws.norm.cdf(c * z) - laws.norm.cdf(z)), bounds=(0, 4), method="bounded"
    )
    return -best.fun


def within(found: float, expected: float, n: int) -> bool:
    """An empirical distribution of n numbers is this close to its law (Dvoretzky, Kiefer, Wolfowitz, Massart)."""
    return abs(found - expected) < math.sqrt(math.log(2 / ALPHA) / (2 * n))


@pytest.mark.parametrize("m", [1, 2, 7, 63])
def test_ranks_of_exchangeable_truths_are_uniform(m):
    draws, truth = normals(m, 4000, 2, seed=m), normals(4000, 2, seed=m + 100)
    rank = ranks(draws, truth, generator(0))
    assert rank.dtype == torch.int64
    for column in rank.T:
        assert accepts(chi_square(column, torch.ones(m + 1).double()))
    assert (uniformity(rank, m, generator(1)) > ALPHA).all()
    for wrong in (ranks(draws + 0.5, truth, generator(0)), (rank + rank.flip(0)) // 2):
        assert rejects(chi_square(wrong[:, 0], torch.ones(m + 1).double()))
        assert rejects(uniformity(wrong, m, generator(1))[0].item())


def test_a_rank_is_the_number_of_draws_below():
    draws, truth = normals(9, 20, 2, 3, seed=0), normals(20, 2, 3, seed=1)
    assert torch.equal(ranks(draws, truth, generator(0)), (draws < truth).sum(0).flatten(1))
    assert ranks(draws[..., 0, 0], truth[..., 0, 0], generator(0)).shape == (20, 1)


@pytest.mark.parametrize("values", [1, 2, 3])
def test_ties_are_broken_at_random(values):
    """Numbers of which many are equal, with one value all: each usual way to rank equals is not uniform."""
    m, n = 15, 3000
    draws = torch.randint(values, (m, n, 2), generator=generator(0)).float()
    truth = torch.randint(values, (n, 2), generator=generator(1)).float()
    rank = ranks(draws, truth, generator(2))
    assert (uniformity(rank, m, generator(3)) > ALPHA).all()
    assert (chi_square_uniformity(rank, m) > ALPHA).all()
    below, equal = (draws < truth).sum(0), (draws == truth).sum(0)
    for wrong in (below, below + equal, below + equal // 2):
        assert (uniformity(wrong, m, generator(3)) < ALPHA).all()
        assert (chi_square_uniformity(wrong, m) < ALPHA).all()
    assert SBC()(draws, truth)["sbc_p"] > ALPHA


def test_constant_components_do_not_change_a_verdict():
    """A border that is black in every draw and every truth."""
    draws, truth = forecasts(1.0, 0.0, 15, 2000, 4, generator(0))
    for c, verdict in ((1.0, accepts), (1.5, rejects)):
        x, y = c * draws, truth.clone()
        x[..., :2], y[..., :2] = -1, -1
        assert verdict(SBC()(x, y)["sbc_p"])
        assert IntervalCoverage()(x, y)["coverage_50"] == pytest.approx(0.5 if c == 1 else 0.56, abs=0.03)


@pytest.mark.parametrize("m", [1, 3, 10])
def test_the_p_value_is_exact(m):
    """Uniform for uniform ranks, few draws or many; ranks that are not smoothed by U are steps, and theirs is not."""
    rank = uniform_ranks(m, 60, 1000, seed=m)
    assert accepts(ks(uniformity(rank, m, generator(0)), "uniform"))
    middle = ((rank + 0.5) / (m + 1)).numpy()
    assert rejects(ks(torch.from_numpy(laws.ks_1samp(middle, laws.uniform.cdf, axis=0).pvalue), "uniform"))


def test_the_p_value_against_scipy():
    values = uniform_ranks(31, 200, 3, seed=0)
    u = (values.sort(0).values + torch.rand(200, 3, generator=generator(1), dtype=torch.float64)) / 32
    expected = [laws.kstest(column, "uniform").pvalue for column in u.T.numpy()]
    assert uniformity(values, 31, generator(1)).numpy() == pytest.approx(np.array(expected), rel=1e-9)


def test_one_p_value_for_all_components_keeps_its_level():
    """`P(p <= a) <= a`; the smallest p-value of the components, not corrected, does not."""
    found, smallest = [], []
    for seed in range(400):
        rank = uniform_ranks(7, 50, 4, seed=seed)
        found.append(calibration_test(rank, 7, generator(seed))[0])
        smallest.append(uniformity(rank, 7, generator(seed)).min().item())
    for values, verdict in ((found, accepts), (smallest, rejects)):
        low = int((doubles(*values) <= 0.1).sum())
        assert verdict(float(laws.binomtest(low, 400, 0.1, alternative="greater").pvalue))


def test_chi_square_of_uniform_ranks():
    p_values = chi_square_uniformity(uniform_ranks(63, 2000, 800, seed=0), 63)
    assert accepts(ks(p_values, "uniform"))
    assert rejects(ks(chi_square_uniformity(uniform_ranks(62, 2000, 800, seed=0), 63), "uniform"))


def test_histogram_counts():
    rank = uniform_ranks(11, 300, 2, 3, seed=0)
    counts = histogram(rank, 11, 4)
    for column in range(6):
        assert counts[:, column].tolist() == np.bincount(rank.flatten(1)[:, column] // 3, minlength=4).tolist()
    assert torch.equal(histogram(rank, 11, 12).sum(0), torch.full((6,), 300))


@pytest.mark.parametrize("m", [1, 4, 19, 63])
@pytest.mark.parametrize("level", [0.0, 0.1, 0.5, 0.9, 0.987, 1.0])
def test_coverage_of_uniform_ranks_is_the_level(m, level):
    """In the mean, which over all ranks `0 .. m` is a finite sum, and whether or not m + 1 represents the level."""
    every = torch.arange(m + 1)[:, None]
    assert coverage(every, m, doubles(level)).item() == pytest.approx(level, abs=1e-12)


def test_coverage_is_that_of_smoothed_ranks():
    """`|u - 1/2| < q/2` with `u = (rank + U)/(m + 1)`, the mean over U by a fine grid."""
    rank, levels = uniform_ranks(6, 50, 2, seed=0) ** 2 // 6, doubles(0.3, 0.5, 0.9)
    u = (rank[..., None] + (torch.arange(10000) + 0.5).double() / 10000) / 7
    expected = ((u - 0.5).abs() < levels[:, None, None, None] / 2).double().mean((1, 3))
    assert torch.allclose(coverage(rank, 6, levels), expected, atol=1e-3)


def test_coverage_of_few_draws_is_exact_where_empirical_quantiles_are_not():
    """With 9 draws the interval between their 5 % and 95 % quantiles covers .78 and not .9."""
    draws, truth = forecasts(1.0, 0.0, 9, 5000, 1, generator(0))
    low, high = (draws.quantile(q, dim=0) for q in (0.05, 0.95))
    assert rejects(share((low <= truth) & (truth <= high), 0.9))
    shares = replicates(60, lambda g: IntervalCoverage()(*forecasts(1.0, 0.0, 9, 300, 1, g))["coverage_90"], 1)
    assert accepts(mean_is(shares, 0.9))


@pytest.mark.parametrize("c", COVERED)
def test_coverage_of_wrong_spread(c):
    """`2 Phi(c z) - 1`; with 511 draws the bias is far below the error of 40 x 300 cases."""
    values = replicates(40, lambda g: IntervalCoverage()(*forecasts(c, 0.0, 511, 300, 1, g))["coverage_90"], 3)
    assert accepts(mean_is(values, COVERED[c]))
    for other in set(COVERED) - {c}:
        assert rejects(mean_is(values, COVERED[other]))


def test_levels_have_their_names():
    result = IntervalCoverage(levels=(0.55, 0.9, 0.975))(*forecasts(1.0, 0.0, 9, 50, 1, generator(0)))
    assert list(result) == ["coverage_55", "coverage_90", "coverage_97.5"]
    assert sorted(result.values()) == list(result.values())


@pytest.mark.parametrize("c", [0.5, 1.0, 1.5])
def test_sbc_of_wrong_spread(c):
    n = 5000
    found = SBC()(*forecasts(c, 0.0, 255, n, 1, generator(0)))["sbc_ks"]
    for other in (0.5, 1.0, 1.5):
        assert within(found, distance_from_uniform(other), n) == (c == other)


@pytest.mark.parametrize("c", [0.5, 1.0, 1.5])
def test_tarp_about_the_true_mean(c):
    """`P(|draw| < |truth|) = 2/pi atan(1/c)`, and the distance of `|2u - 1|` from uniform is twice that of u."""
    shift = normals(5000, 1, seed=1)

    def tarp(n: int, source: torch.Generator) -> dict[str, float]:
        draws, truth = forecasts(c, 0.0, 63, n, 1, source)
        return TARP(references=shift[:n])(draws + shift[:n], truth + shift[:n])

    once, biases = tarp(5000, generator(0)), replicates(40, lambda source: tarp(250, source)["tarp_bias"], 2)
    assert accepts(once["tarp_p"]) == (c == 1)
    for other in (0.5, 1.0, 1.5):
        assert within(once["tarp_ks"], 2 * distance_from_uniform(other), 5000) == (c == other)
        assert accepts(mean_is(biases, 2 / math.pi * math.atan(1 / other) - 0.5)) == (c == other)


@pytest.mark.parametrize("c", [0.9, 1.1])
def test_five_thousand_cases_show_a_spread_that_is_wrong_by_a_tenth(c):
    """Five hundred do not; the test of u alone does not either, whose distance is half that of `|2u - 1|`."""
    draws, truth = forecasts(c, 0.0, 63, 5000, 2, generator(0))
    rank = ranks(draws, truth, generator(1))
    assert rejects(SBC()(draws, truth)["sbc_p"])
    assert (chi_square_uniformity(rank, 63) < ALPHA).all()
    assert (uniformity(rank, 63, generator(1)) > ALPHA).all()
    assert accepts(SBC()(draws[:, :500], truth[:500])["sbc_p"])
    assert accepts(SBC()(draws / c, truth)["sbc_p"])


def test_tarp_ranks_by_definition():
    draws, truth, points = normals(9, 30, 2, 2, seed=0), normals(30, 2, 2, seed=1), normals(30, 2, 2, seed=2)
    rank = tarp_ranks(draws, truth, points, generator(0))
    assert rank.shape == (30, 1)
    for i in range(30):
        far = math.dist(truth[i].flatten(), points[i].flatten())
        assert rank[i].item() == sum(math.dist(x.flatten(), points[i].flatten()) < far for x in draws[:, i])
    assert torch.equal(tarp_ranks(draws + 3, truth + 3, points + 3, generator(0)), rank)


def test_tarp_of_the_wrong_dependence():
    """SBC sees each component by itself; the distance from a point on the diagonal sees that they go together."""
    n, root = 3000, doubles(1.0, 0.0, 0.9, math.sqrt(1 - 0.81)).reshape(2, 2)
    truth, apart = normals(n, 2, seed=0) @ root.T, normals(63, n, 2, seed=1)
    for draws, verdict in ((apart @ root.T, accepts), (apart, rejects)):
        assert accepts(SBC()(draws, truth)["sbc_p"])
        assert verdict(TARP(references=torch.full((n, 2), 3.0))(draws, truth)["tarp_p"])


def test_bad_inputs_are_refused():
    draws, truth = forecasts(1.0, 0.0, 9, 20, 2, generator(0))
    rank = ranks(draws, truth, generator(0))
    with pytest.raises(UserError, match="do not fit"):
        ranks(draws, truth[:5], generator(0))
    for x, y in ((draws * math.nan, truth), (draws, truth * math.nan)):
        with pytest.raises(UserError, match="NaN"):
            ranks(x, y, generator(0))
    with pytest.raises(UserError, match=r"divide 10, or a number of draws like 15"):
        chi_square_uniformity(rank, 9)
    for bad in (rank - 5, rank[:0], rank[0, 0]):
        with pytest.raises(UserError, match="from 0 to 9"):
            uniformity(bad, 9, generator(0))
    with pytest.raises(UserError, match="levels"):
        coverage(rank, 9, doubles(90))
    for levels in ((), (90.0,), (0.5, 1.0)):
        with pytest.raises(UserError, match=r"like \(0.5, 0.9\)"):
            IntervalCoverage(levels=levels)
    for points in (truth[:5], truth[:, :1], truth[..., None]):
        with pytest.raises(UserError, match="one point"):
            TARP(references=points)(draws, truth)
    with pytest.raises(UserError, match="one reference"):
        tarp_ranks(draws, truth, truth[:5], generator(0))
