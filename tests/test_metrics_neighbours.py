"""Precision, recall, density and coverage, the exact W2 and the classifier two-sample test."""

import math
from itertools import permutations

import ot
import pytest
import torch
from scipy import stats
from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics import C2ST, PRDC, SlicedWasserstein, Wasserstein
from problems import doubles, normals
from stats import accepts, rejects
from test_metrics import mean_is, replicates


def by_definition(x: list, y: list, k: int) -> dict[str, float]:
    """Item by item, in plain Python."""
    balls_x, balls_y = ([sorted(math.dist(z, o) for o in zs if o is not z)[k - 1] for z in zs] for zs in (x, y))
    held = [[math.dist(a, b) <= r for b, r in zip(y, balls_y, strict=True)] for a in x]
    return {
        "precision": sum(any(row) for row in held) / len(x),
        "recall": sum(any(math.dist(a, b) <= r for a, r in zip(x, balls_x, strict=True)) for b in y) / len(y),
        "density": sum(sum(row) for row in held) / (k * len(x)),
        "coverage": sum(any(column) for column in zip(*held, strict=True)) / len(y),
    }


def prdc(name: str, count: int = 100, k: int = 3, n: int = 40, m: int = 30) -> Tensor:
    """One of the numbers for m samples and n items of the reference, of one law, in repetitions."""

    def number(source: torch.Generator) -> float:
        x, y = (torch.randn(size, 2, generator=source, dtype=torch.float64) for size in (m, n))
        return PRDC(k=k)(x, y)[name]

    return replicates(count, number, 0)


@pytest.mark.parametrize("d", [2, 40])
@pytest.mark.parametrize("block", [1, 7, 1024])
def test_prdc_by_its_definition_in_blocks_of_any_size(d, block):
    x, y = 0.8 * normals(30, d, seed=0), normals(21, d, seed=1) + 0.2
    for k in (1, 4):
        assert PRDC(k=k, block=block)(x, y) == pytest.approx(by_definition(x.tolist(), y.tolist(), k), rel=1e-12)
    assert by_definition(x.tolist(), y.tolist(), 5) != pytest.approx(PRDC(k=4, block=block)(x, y), rel=1e-3)


@pytest.mark.parametrize("k", [1, 5])
def test_prdc_of_a_sample_against_itself_and_against_one_far_away(k):
    """Every item lies in its own ball and in those of the items that have it among their k nearest: density (k + 1) / k."""
    x = normals(50, 3, seed=2)
    assert PRDC(k=k)(x, x) == pytest.approx({"precision": 1, "recall": 1, "density": (k + 1) / k, "coverage": 1})
    assert set(PRDC(k=k)(x + 100, x).values()) == {0}


def test_density_and_coverage_of_equal_laws():
    """Density 1; coverage 1 - C(n-1, k) / C(n+m-1, k), since a ball holds no sample if its k nearest of all are real."""
    n, m, k = 40, 30, 3
    density, coverage = prdc("density"), prdc("coverage")
    assert accepts(mean_is(density, 1.0))
    assert accepts(mean_is(coverage, 1 - math.comb(n - 1, k) / math.comb(n + m - 1, k)))
    assert rejects(mean_is(coverage, 1 - math.comb(n - 1, k - 1) / math.comb(n + m - 1, k - 1)))
    assert rejects(mean_is(prdc("density", k=2) * 2 / 3, 1.0))


def test_prdc_of_samples_that_lack_a_mode():
    """All of them are good, half of the reference is missing; the other way round half of them are bad."""
    x, y = normals(400, 2, seed=3), normals(400, 2, seed=4)
    both = y + doubles(20, 0) * (torch.arange(400) % 2)[:, None]
    lacking, adding = PRDC()(x, both), PRDC()(both, x)
    assert lacking["precision"] > 0.95 > 0.55 > max(lacking["recall"], lacking["coverage"])
    assert adding["recall"] > 0.95 > 0.55 > adding["precision"]


def test_prdc_looks_through_its_features():
    x, y = normals(50, 3, seed=5), normals(50, 3, seed=6)
    assert PRDC(features=lambda x: x[:, :2])(x, y) == PRDC()(x[:, :2], y[:, :2])
    assert PRDC()(x, y) == pytest.approx(PRDC()(x + 1e4, y + 1e4), rel=1e-12)
    with pytest.raises(UserError, match="at least 6 items"):
        PRDC()(x[:5], y)
    with pytest.raises(UserError, match="from 1 up"):
        PRDC(k=0)


def test_w2_is_the_best_of_all_matchings():
    x, y = normals(6, 2, seed=0), 2 * normals(6, 2, seed=1) + 1
    costs = [sum(math.dist(a, b) ** 2 for a, b in zip(x, y[list(p)], strict=True)) / 6 for p in permutations(range(6))]
    assert Wasserstein()(x, y)["w2"] == pytest.approx(math.sqrt(min(costs)), rel=1e-12)
    assert math.sqrt(sorted(costs)[1]) > Wasserstein()(x, y)["w2"] + 1e-6


@pytest.mark.parametrize(("n", "k"), [(60, 60), (60, 20), (60, 45), (7, 5)])
@pytest.mark.parametrize("d", [1, 3, 30])
def test_w2_against_pot(n, k, d):
    x, y = normals(n, d, seed=2), 1.5 * normals(k, d, seed=3) + 0.3
    expected = math.sqrt(ot.emd2([], [], ot.dist(x.numpy(), y.numpy())))
    assert Wasserstein()(x, y)["w2"] == pytest.approx(expected, rel=1e-8)
    assert Wasserstein()(y, x)["w2"] == pytest.approx(expected, rel=1e-8)
    assert ot.emd2([], [], ot.dist(x.numpy(), y.numpy(), metric="euclidean")) != pytest.approx(expected, rel=1e-3)


def test_w2_of_affine_maps():
    """A shift by b costs ||b||, a factor a about 0 the root of `(a - 1)^2 mean ||x||^2`."""
    x = normals(50, 3, seed=4)
    assert Wasserstein()(x, x.flip(0))["w2"] == pytest.approx(0, abs=1e-7)
    assert Wasserstein()(x, x + doubles(3, 0, 4))["w2"] == pytest.approx(5, rel=1e-12)
    assert Wasserstein()(x, 3 * x)["w2"] == pytest.approx(2 * x.square().sum(1).mean().sqrt().item(), rel=1e-12)
    assert SlicedWasserstein()(x, x + doubles(3, 0, 4))["sliced_w2"] == pytest.approx(5 / 3**0.5, rel=0.15)


def test_w2_of_one_law_has_a_floor():
    """.257 and .186 between two samples of N(0, I_2), 500 and 1000 items each: a known number, far from 0."""

    def values(count: int, n: int) -> Tensor:
        return replicates(count, lambda s: Wasserstein()(*torch.randn(2, n, 2, generator=s).double())["w2"], n)

    few, many = values(30, 500), values(12, 1000)
    assert accepts(mean_is(few, 0.257))
    assert accepts(mean_is(many, 0.186))
    assert rejects(mean_is(few, 0.186))
    assert rejects(mean_is(many, 0.257))


def test_w2_of_many_items_is_refused():
    x, y = normals(40, 2, seed=5), normals(39, 2, seed=6)
    with pytest.raises(UserError, match=r"matches 40 pairs, at most 30 expected: take SlicedWasserstein"):
        Wasserstein(at_most=30)(x, x)
    with pytest.raises(UserError, match=r"1560 pairs.*cut to equal sizes or take SlicedWasserstein"):
        Wasserstein(at_most=1000)(x, y)
    assert Wasserstein(at_most=40)(x, x)["w2"] == 0


def logistic(seed: int):
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression()


def neighbours(seed: int):
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(15)


def test_c2st_of_shifted_gaussians():
    """Between N(0, I) and N(b, I) no classifier is right more often than Phi(||b|| / 2), and a linear one can be."""

    def number(source: torch.Generator, b: float) -> float:
        x, y = (torch.randn(300, 2, generator=source, dtype=torch.float64) for _ in range(2))
        return C2ST(classifier=logistic)(x + doubles(b, 0), y)["c2st"]

    equal, apart = (replicates(40, lambda source, b=b: number(source, b), 0) for b in (0.0, 2.0))
    assert accepts(mean_is(equal, 0.5))
    assert rejects(mean_is(equal, 0.54))
    assert accepts(mean_is(apart, stats.norm.cdf(1.0)))
    assert rejects(mean_is(apart, stats.norm.cdf(1.1)))


def test_c2st_sees_what_its_classifier_can_learn():
    """A logistic regression does not see too little spread; neighbours and the perceptron do."""
    x, y = 0.5 * normals(500, 2, seed=1), normals(500, 2, seed=2)
    assert C2ST(classifier=logistic)(x, y)["c2st"] == pytest.approx(0.5, abs=0.06)
    assert C2ST(classifier=neighbours)(x, y)["c2st"] > 0.65
    assert C2ST()(2 * x, y)["c2st"] == pytest.approx(0.5, abs=0.06)
    for fault in (x, 4 * x, 2 * x + 0.7):
        assert C2ST()(fault, y)["c2st"] > 0.6
    assert C2ST()(x + 10, y)["c2st"] == 1


def test_c2st_takes_as_many_of_each():
    """Else always naming the larger sample would be right more often than not."""
    x, y = normals(500, 2, seed=3), normals(50, 2, seed=4)
    assert C2ST(classifier=logistic)(x, y)["c2st"] < 0.7 < 500 / 550
    assert C2ST(classifier=neighbours, at_most=50)(x, x)["c2st"] != C2ST(classifier=neighbours)(x, x)["c2st"]
    with pytest.raises(UserError, match="at least 5 items"):
        C2ST()(x, y[:4])
    with pytest.raises(UserError, match="folds"):
        C2ST(folds=1)


def test_c2st_is_the_same_every_time():
    x, y = normals(100, 2, seed=5), normals(100, 2, seed=6) + 0.3
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert C2ST()(x, y) == C2ST()(x, y)
    assert C2ST()(x, y) != C2ST(seed=1)(x, y)
    assert torch.equal(torch.get_rng_state(), state)
