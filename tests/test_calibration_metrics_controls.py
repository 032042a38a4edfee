"""Five controls of every score of a forecast: accurate, narrow, wide, biased, and draws from the prior, which ignore x.

The problem is T2 seen through noise, `x = (x_0 + eps) / sqrt 2`, whose posterior is known. The prior is calibrated: its
draws pass every test that asks of ranks, intervals and spreads alone, and only what looks at x rejects them: a proper
score, TARP with points that depend on x, and a comparison with draws of the true conditional law.
"""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from scipy import stats as laws
from torch import Tensor

from fewstep.metrics import (
    CRPS,
    SBC,
    TARP,
    ConditionalEnergyDistance,
    EnergyScore,
    IntervalCoverage,
    Metric,
    SpreadSkill,
    VarianceRatio,
    VariogramScore,
)
from fewstep.mixture import GaussianMixture
from problems import generator, t2
from stats import accepts, rejects
from test_metrics import mean_is

FAULTS = {"narrow": (0.7, 0.0), "wide": (1.4, 0.0), "biased": (1.0, 0.4)}  # factor of the deviations, bias
CONTROLS = ("accurate", *FAULTS, "prior")
CALIBRATED = {"coverage_50": 0.5, "coverage_90": 0.9, "spread_skill": 1.0}
CONDITIONAL: list[Metric] = [VarianceRatio(), ConditionalEnergyDistance()]
RATIOS = ("variance_ratio", "variance_ratio_largest", "variance_ratio_smallest")


@dataclass(frozen=True)
class Problem:
    """Cases `x_0` `(n, 2)` of T2, what is seen of them, `x`, and the exact posterior."""

    x_0: Tensor
    x: Tensor
    posterior: GaussianMixture

    def draws(self, control: str, m: int, source: torch.Generator) -> Tensor:
        """`(m, n, 2)`: of the posterior, with a fault, or of the prior."""
        if control == "prior":
            return t2().sample((m, len(self.x_0)), source)
        factor, bias = FAULTS.get(control, (1.0, 0.0))
        mean = self.posterior.mean
        return mean + factor * (self.posterior.sample((m,), source) - mean) + bias


def problem(n: int, source: torch.Generator) -> Problem:
    half = 0.5 * torch.eye(2).double()
    x_0 = t2().sample((n,), source)
    x = (x_0 + torch.randn(n, 2, generator=source, dtype=torch.float64)) * 0.5**0.5
    return Problem(x_0, x, t2().condition(x, 2**0.5 * half, half))


@cache
def p_values(control: str, n: int = 5000, m: int = 63) -> dict[str, float]:
    """Of SBC, and of TARP with points that know x, as a noisy copy of it, and points that do not."""
    source = generator(0)
    cases = problem(n, source)
    draws = cases.draws(control, m, source)
    at_x, at_random = 2**0.5 * cases.x, t2().sample((n,), source)
    return {
        "sbc": SBC()(draws, cases.x_0)["sbc_p"],
        "tarp at x": TARP(references=at_x)(draws, cases.x_0)["tarp_p"],
        "tarp at random": TARP(references=at_random)(draws, cases.x_0)["tarp_p"],
    }


@cache
def measured(control: str, repeats: int = 40, n: int = 400, m: int = 15) -> dict[str, Tensor]:
    """Every other number in independent repetitions; of proper scores, how much worse than fresh accurate draws."""
    rows = []
    for i in range(repeats):
        source = generator(1000 + i)
        cases = problem(n, source)
        accurate, draws = (cases.draws(c, m, source) for c in ("accurate", control))
        row: dict[str, float] = {}
        for metric in (IntervalCoverage(), SpreadSkill()):
            row |= metric(draws, cases.x_0)
        for metric in (CRPS(), EnergyScore(), EnergyScore(power=0.5), VariogramScore()):
            (name, value), (floor,) = next(iter(metric(draws, cases.x_0).items())), metric(accurate, cases.x_0).values()
            power = f" {metric.power}" if isinstance(metric, EnergyScore) else ""
            row[name + power] = value - floor
        for metric in CONDITIONAL:
            row |= metric(draws, accurate)
        rows.append(row)
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def worse(name: str, control: str) -> float:
    """The p-value of Student's one-sided test that a loss is above that of accurate draws."""
    return float(laws.ttest_1samp(measured(control)[name].numpy(), 0.0, alternative="greater").pvalue)


LOSSES = ("crps", "energy_score 1.0", "energy_score 0.5", "variogram_score", "conditional_energy_distance")
BLIND = {"variogram_score": {"biased"}} | {name: {"biased"} for name in RATIOS}  # a bias common to the components


def test_every_number_is_judged():
    judged = {*CALIBRATED, *LOSSES, *RATIOS}
    assert set(measured("accurate")) - judged == {"spread", "skill", "conditional_energy_distance_se"}


@pytest.mark.parametrize("test", ["sbc", "tarp at x", "tarp at random"])
def test_accurate_draws_pass_and_faults_do_not(test):
    assert accepts(p_values("accurate")[test])
    for fault in FAULTS:
        assert rejects(p_values(fault)[test]), fault


def test_the_prior_passes_every_test_that_does_not_look_at_x():
    """SBC, TARP with points drawn at random, coverage, spread over skill: and every one of them sees a fault."""
    assert accepts(p_values("prior")["sbc"])
    assert accepts(p_values("prior")["tarp at random"])
    for name, expected in CALIBRATED.items():
        assert accepts(mean_is(measured("prior")[name], expected))


def test_only_what_looks_at_x_rejects_the_prior():
    assert rejects(p_values("prior")["tarp at x"])
    for name in LOSSES:
        assert rejects(worse(name, "prior")), name
    for name in RATIOS:
        assert rejects(mean_is(measured("prior")[name], 1.0)), name


@pytest.mark.parametrize(("name", "expected"), CALIBRATED.items())
def test_coverage_and_spread(name, expected):
    assert accepts(mean_is(measured("accurate")[name], expected))
    for fault in FAULTS:
        assert rejects(mean_is(measured(fault)[name], expected)), fault
    wide, narrow = measured("wide")[name].mean(), measured("narrow")[name].mean()
    assert narrow < expected < wide


@pytest.mark.parametrize("name", LOSSES)
def test_a_fault_costs(name):
    accurate = laws.ttest_1samp(measured("accurate")[name].numpy(), 0.0)
    assert accepts(float(accurate.pvalue))
    for fault in FAULTS:
        verdict = accepts if fault in BLIND.get(name, set()) else rejects
        assert verdict(worse(name, fault)), fault


@pytest.mark.parametrize("name", RATIOS)
def test_variance_ratios_are_the_squares_of_the_factors(name):
    for control, (factor, _) in {"accurate": (1.0, 0.0), **FAULTS}.items():
        assert accepts(mean_is(measured(control)[name], factor**2)), control
        assert rejects(mean_is(measured(control)[name], 1.1 * factor**2)), control
    if name not in BLIND:
        assert rejects(mean_is(measured("biased")[name], 1.0))
