"""The search for a sampler: what is tried, what is chosen, and that choosing does not flatter the chosen."""

import json
from dataclasses import replace

import pytest
import torch

from fewstep import MixturePosterior, VPSchedule, tuning
from fewstep.configuration import from_config
from fewstep.datasets import Ring
from fewstep.errors import UserError
from fewstep.models import MeanOnly
from fewstep.samplers import Ancestral, FlowMap, OfMeans, ProbabilityFlow
from fewstep.tuning import TuningPlan, candidates, table_of, tune
from test_comparison import network_contestant

RING = Ring()
EXACT = MixturePosterior(RING.mixture, VPSchedule())
PLAN = TuningPlan(nfe=4, n=300, tau_mins=(0.05,), kernels=(0.0, 1.0))


def test_everything_that_spends_the_budget_is_tried():
    """(N, M) with N M = 4, for N > 1 two grids and three kernels; one step has neither grid nor kernel."""
    model = network_contestant("stmd").model
    found = candidates(model, Ancestral(), PLAN)
    assert sorted({(s.steps, s.flow_steps) for s in found}) == [(1, 4), (2, 2), (4, 1)]
    assert len(found) == len(set(found)) == 1 + 6 + 6
    assert all(s.nfe == 4 for s in found)
    of_means = candidates(network_contestant("ddpm").model, Ancestral(), PLAN)
    assert {(s.steps, s.flow_steps) for s in of_means} == {(4, 1)}
    assert len(of_means) == 6
    assert candidates(network_contestant("mean-flow").model, FlowMap(), PLAN) == [FlowMap(steps=4)]
    assert {s.steps for s in candidates(model, ProbabilityFlow(), PLAN)} == {2}
    of_means = candidates(model, OfMeans(sampler=Ancestral()), PLAN)
    assert {s.sampler.kernel for s in of_means} == {"bridge", 0.0, 1.0}
    assert all(s.nfe == 4 for s in of_means)
    assert len(of_means) == 6


def test_a_budget_of_one_leaves_one_sampler():
    model = network_contestant("stmd").model
    assert candidates(model, Ancestral(8, flow_steps=2), replace(PLAN, nfe=1)) == [Ancestral(1)]


def test_the_best_is_the_best_and_is_measured_again():
    """Of means, steps that crowd where the ring decides are better; the winner's number is not its number in the race."""
    model = MeanOnly(EXACT)
    best, result = tune(model, RING, PLAN, sampler=Ancestral())
    values = [row["energy_distance"] for row in result["candidates"]]
    assert values == sorted(values)
    assert values[-1] > 1.2 * values[0]
    assert from_config(result["candidates"][0]["sampler"]) == best
    assert from_config(result["best"]["sampler"]) == best
    assert result["best"]["energy_distance"] != values[0]
    assert result["best"]["energy_distance"] == pytest.approx(values[0], rel=0.3)
    assert abs(result["best"]["floor"]) < 0.02
    assert json.loads(json.dumps(result)) == result
    title, header, rows = table_of({"recipe": "ring", **result})
    assert "NFE = 4" in title
    assert all(len(row) == len(header) for row in rows)
    assert "floor" in rows[0][-1]


def test_a_sampler_that_diverges_is_no_candidate(monkeypatch):
    """NaN compares with nothing: it must not win."""
    real = tuning.sample

    def broken(model, n, *, sampler, **options):
        x_0 = real(model, n, sampler=sampler, **options)
        return x_0 * torch.nan if sampler.kernel == "bridge" else x_0

    monkeypatch.setattr(tuning, "sample", broken)
    best, result = tune(MeanOnly(EXACT), RING, PLAN, sampler=Ancestral())
    assert best.kernel != "bridge"
    assert len(result["diverged"]) == 2
    assert len(result["candidates"]) == 4
    with pytest.raises(UserError, match="every sampler"):
        tune(MeanOnly(EXACT), RING, replace(PLAN, nfe=1), sampler=Ancestral())


def test_plans_out_of_range():
    with pytest.raises(UserError):
        TuningPlan(nfe=0)
