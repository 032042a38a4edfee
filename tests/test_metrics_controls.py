"""The four controls of every distance: what is accurate passes, and what is narrow, wide or biased is found worse.

Not by every number: `BLIND` says which faults a number does not hold against the samples, and the test holds it to that.
"""

from functools import cache

import pytest
import torch
from scipy import stats
from torch import Tensor

from fewstep.metrics import (
    C2ST,
    MMD,
    PRDC,
    EnergyDistance,
    FrechetDistance,
    KernelDistance,
    Metric,
    SlicedWasserstein,
    VendiScore,
    Wasserstein,
)
from fewstep.shapes import flat
from problems import doubles, generator
from stats import accepts, rejects
from test_metrics_neighbours import neighbours

METRICS: list[Metric] = [
    C2ST(classifier=neighbours),
    MMD(),
    PRDC(),
    EnergyDistance(),
    FrechetDistance(features=flat),
    KernelDistance(features=flat),
    SlicedWasserstein(projections=64),
    VendiScore(),
    Wasserstein(),
]
CONTROLS = {"narrow": (0.65, 0.0), "wide": (1.5, 0.0), "biased": (1.0, 0.6)}  # factor of the deviation, bias over it
GROSS = {"narrow": (0.5, 0.0), "wide": (2.5, 0.0), "biased": (1.0, 2.5)}
DULL = {"precision", "recall", "density"}  # see gross faults only
BLIND = {
    "precision": {"narrow"},  # narrow samples are all good samples
    "recall": {"wide"},  # what is wide reaches everything
    "density": {"narrow"},  # and rewards it: samples crowd where the balls overlap
    "vendi_ratio": {"wide", "biased"},  # variety alone: wide is more of it, and bias none of its business
}
LESS_IS_WORSE = {"precision", "recall", "density", "coverage", "vendi_ratio"}
NOT_JUDGED = {"vendi", "vendi_reference"}  # the ratio is
NUMBERS = [
    *("c2st", "mmd2", "precision", "recall", "density", "coverage", "energy_distance", "frechet", "kid"),
    *("sliced_w2", "vendi_ratio", "w2"),
]
MEAN, ROOT = doubles(0.7, -0.4), doubles(1.2, 0.0, 0.5, 0.6).reshape(2, 2)  # an asymmetric Gaussian law


@cache
def measured(control: str, gross: bool = False, repeats: int = 14, n: int = 250) -> dict[str, Tensor]:
    """Every number in independent repetitions, n samples against n."""
    factor, bias = (GROSS if gross else CONTROLS).get(control, (1.0, 0.0))
    source, rows = generator(sum(control.encode())), []
    for _ in range(repeats):
        z, w = torch.randn(2, n, 2, generator=source, dtype=torch.float64)
        samples, reference = MEAN + (factor * z + bias) @ ROOT.T, MEAN + w @ ROOT.T
        rows.append({name: value for metric in METRICS for name, value in metric(samples, reference).items()})
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def worse(name: str, control: str, gross: bool = False) -> float:
    """The p-value of Welch's one-sided test that the number is worse than real against real."""
    sign = -1 if name in LESS_IS_WORSE else 1
    found, floor = measured(control, gross)[name], measured("floor")[name]
    return float(stats.ttest_ind(sign * found, sign * floor, equal_var=False, alternative="greater").pvalue)


def test_every_number_is_judged():
    assert set(measured("floor")) == set(NUMBERS) | NOT_JUDGED


@pytest.mark.parametrize("name", NUMBERS)
def test_accurate_samples_are_at_the_floor(name):
    both = stats.ttest_ind(measured("accurate")[name], measured("floor")[name], equal_var=False)
    assert accepts(float(both.pvalue))


@pytest.mark.filterwarnings("ignore:Precision loss")  # the precision of narrow samples is 1 almost every time
@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("name", NUMBERS)
def test_what_it_sees_and_what_it_cannot_see(name, control):
    if control in BLIND.get(name, set()):
        assert accepts(worse(name, control, name in DULL))
    else:
        assert rejects(worse(name, control, name in DULL))


def test_narrow_samples_raise_the_density():
    """Which is why density is no measure of the whole: with coverage it is."""
    both = stats.ttest_ind(
        measured("narrow", gross=True)["density"], measured("floor")["density"], alternative="greater"
    )
    assert rejects(float(both.pvalue))


def test_bias_does_not_change_the_vendi_score():
    x = torch.randn(100, 2, generator=generator(0), dtype=torch.float64)
    here, there = VendiScore()(x, x.flip(1)), VendiScore()(x + 5, x.flip(1))
    assert here == pytest.approx(there, rel=1e-9)
    assert VendiScore()(1.2 * x, x.flip(1))["vendi"] > 1.1 * here["vendi"]


@pytest.mark.parametrize("name", sorted(DULL))
def test_small_faults_escape_the_dull_numbers(name):
    """At this size; coverage sees them all."""
    seen = [control for control in CONTROLS if control not in BLIND[name]]
    assert any(accepts(worse(name, control)) for control in seen)
    assert all(rejects(worse("coverage", control)) for control in CONTROLS)
