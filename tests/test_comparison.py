"""Comparisons on equal terms: what is measured at which cost, the intervals, and what they let one say."""

import json
from dataclasses import replace

import pytest
import torch
from scipy import stats as scipy_stats

from fewstep import MixturePosterior, VPSchedule
from fewstep.comparison import (
    ComparisonPlan,
    Contestant,
    common_dataset,
    compare,
    interval,
    rises,
    samplers_for,
    unequal_terms,
)
from fewstep.comparison_report import document, figure, notes, tables
from fewstep.datasets import Digits, Ring
from fewstep.errors import UserError
from fewstep.models import MeanOnly
from fewstep.recipes import find_recipe
from fewstep.samplers import Ancestral, FlowMap, OfMeans, ProbabilityFlow, ReverseSDE
from fewstep.times import CustomGrid
from problems import doubles, generator, seeded

RING = Ring()
COST = {"parameters": 10, "images": 20, "seconds": 3.0, "peak_memory": 2**20}
PLAN = ComparisonPlan(nfe=(1, 2, 4), flow_steps=(1, 2), n=400, seeds=3, pairs=40, taus=(0.3,))


def network_contestant(name: str, sampler=None) -> Contestant:
    """A recipe of the ring with a small untrained network."""
    recipe = find_recipe(f"ring-{name}")
    recipe = replace(recipe, model=replace(recipe.model, network=replace(recipe.model.network, width=16, depth=1)))
    with seeded(0):
        model = recipe.model.build((2,)).eval().requires_grad_(False)
    return Contestant(name=name, run=name, model=model, sampler=sampler or recipe.sampler, recipe=recipe, training=COST)


def exact_contestant(name: str, model) -> Contestant:
    return Contestant(
        name=name, run=name, model=model, sampler=Ancestral(), recipe=find_recipe("ring-stmd"), training=COST
    )


@pytest.fixture(scope="module")
def exact() -> dict:
    model = MixturePosterior(RING.mixture, VPSchedule())
    contestants = [exact_contestant("draws", model), exact_contestant("means", MeanOnly(model))]
    return {"command": "fewstep compare draws means", **compare(contestants, PLAN)}


@pytest.mark.parametrize(
    ("name", "sampler", "expected"),
    [
        ("stmd", None, [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)]),
        ("mean-flow", None, [(1, 1), (2, 1), (4, 1)]),
        ("ddpm", None, [(1, 1), (2, 1), (4, 1)]),
        ("consistency", None, [(1, 1), (2, 1), (4, 1)]),
        ("ddpm", ProbabilityFlow(), [(1, 1), (2, 1)]),
        ("ddpm", ReverseSDE(), [(1, 1), (2, 1), (4, 1)]),
        ("stmd", OfMeans(sampler=Ancestral(kernel=1.0)), [(1, 1), (2, 1), (4, 1)]),
    ],
)
def test_each_number_of_evaluations_is_spent_in_every_way_that_there_is(name, sampler, expected):
    """And as claimed: the counted evaluations are the sampler's own number."""
    contestant = network_contestant(name, sampler)
    chosen = samplers_for(contestant, PLAN)
    assert all(sampler.nfe <= budget for sampler, budget in chosen.items())
    result = compare([contestant], PLAN)["runs"][0]
    assert [(row["steps"], row["flow_steps"]) for row in result["rows"]] == expected
    assert [row["nfe"] for row in result["rows"]] == [s.nfe for s in chosen]
    assert all(row["nfe"] <= 4 for row in result["rows"])


def test_the_exact_draws_are_at_the_floor_and_the_means_are_not(exact):
    """And more steps help the means only."""
    draws, means = exact["runs"]
    floor = exact["floor"]["energy_distance"]
    for row in draws["rows"]:
        cell = row["energy_distance"]
        assert abs(cell["mean"]) < max(map(abs, floor["values"])) + cell["half_width"]
    values = [row["energy_distance"]["mean"] for row in means["rows"]]
    assert values == sorted(values, reverse=True)
    assert values[-1] > 10 * max(map(abs, floor["values"]))
    assert draws["rises"] == means["rises"] == []


def test_every_cell_holds_its_values_and_every_run_its_terms(exact):
    assert json.loads(json.dumps(exact)) == exact
    for run in exact["runs"]:
        assert run["training"] == COST
        for row in run["rows"]:
            assert {"nfe", "seconds", "peak_memory"} <= row.keys()
            assert row["peak_memory"] > 2**20
            cell = row["sliced_w2"]
            assert len(set(cell["values"])) == PLAN.seeds
            assert cell == interval(cell["values"])
    assert exact["reference"]["split"] == "test"
    assert exact["posterior"]["draws"][0]["spread_skill"] > 0.7
    assert exact["posterior"]["means"][0]["spread_skill"] == 0


def test_tables_figure_notes_and_page(exact):
    found = tables(exact)
    for _, header, rows in found:
        assert all(len(row) == len(header) for row in rows)
    titles = [title for title, _, _ in found]
    assert "energy distance, 400 samples against 400 held-out items; real vs real" in titles[0]
    assert any("network, optimiser, steps, batch size and averaging agree" in title for title in titles)
    image = figure(exact)
    assert image.startswith(b"\x89PNG")
    page = document(exact, image)
    assert "fewstep compare draws means" in page
    assert "data:image/png;base64," in page
    assert all(note.replace("'", "&#x27;") in page for note in notes(exact))
    assert "no run" in notes(exact)[0]


def test_students_interval_covers_as_often_as_it_says():
    sample = torch.randn(4000, 3, generator=generator(0), dtype=torch.float64)
    covered = [abs(cell["mean"]) <= cell["half_width"] for cell in map(interval, sample.tolist())]
    normal = sample.mean(1).abs() <= 1.96 * sample.std(1) / 3**0.5
    assert scipy_stats.binomtest(sum(covered), 4000, 0.95).pvalue > 1e-5
    assert scipy_stats.binomtest(int(normal.sum()), 4000, 0.95).pvalue < 1e-5


def rows_of(means: list[float], scale: float = 0.01) -> list[dict]:
    noise = torch.randn(len(means), 5, generator=generator(1), dtype=torch.float64)
    values = (doubles(*means)[:, None] + scale * noise).tolist()
    return [{"steps": 2**i, "flow_steps": 1, "energy_distance": {"values": value}} for i, value in enumerate(values)]


def test_a_rise_is_found_and_chance_is_not():
    assert rises(rows_of([0.5, 0.2, 0.1, 0.5])) == []
    (found,) = rises(rows_of([0.5, 0.2, 0.9, 0.5]))
    assert (found["steps"], found["flow_steps"]) == (4, 1)
    assert found["mean"] == pytest.approx(0.4, abs=0.03)
    assert rises(rows_of([0.5, 0.51], scale=0.5)) == []
    note = notes({"runs": [{"name": "a", "rises": [found]}], "seeds": 5})[0]
    assert "a: N = 4, M = 1 is worse than the fewest steps in energy distance by 0.4" in note


def test_joint_intervals_are_rarely_all_wrong():
    """Under equal means the share of tables with any rise is at most (1 - level) / 2, one side of it."""
    source, hits, uncorrected = generator(2), 0, 0
    for _ in range(1500):
        values = torch.randn(9, 5, generator=source, dtype=torch.float64).tolist()
        rows = [{"steps": i, "flow_steps": 1, "energy_distance": {"values": v}} for i, v in enumerate(values)]
        hits += bool(rises(rows))
        uncorrected += bool(rises(rows, level=1 - 8 * 0.05))
    assert scipy_stats.binomtest(hits, 1500, 0.025, alternative="greater").pvalue > 1e-5
    assert scipy_stats.binomtest(uncorrected, 1500, 0.025, alternative="greater").pvalue < 1e-5


def test_runs_on_other_data_are_refused():
    other = replace(network_contestant("ddpm"), recipe=find_recipe("digits-ddpm"))
    with pytest.raises(UserError, match="compare runs on one data set"):
        common_dataset([network_contestant("stmd"), other])
    assert Digits() != RING


def test_unequal_terms_are_named():
    a, b = network_contestant("stmd"), network_contestant("ddpm")
    assert unequal_terms([a, b]) == []
    longer = replace(b, recipe=replace(b.recipe, steps=7))
    assert unequal_terms([a, longer]) == [f"ddpm against stmd: steps: {a.recipe.steps} -> 7"]
    shown = tables(compare([a, longer], replace(PLAN, nfe=(1,), seeds=2, n=50, taus=())))[-1]
    assert f"steps: {a.recipe.steps} -> 7" in shown[0]


def test_a_training_that_was_cut_short_is_not_on_equal_terms():
    a, b = network_contestant("stmd"), network_contestant("ddpm")
    short = replace(b, training=COST | {"step": 5, "images": 12})
    full = replace(a, training=COST | {"step": 9, "images": 20})
    assert unequal_terms([full, short]) == [
        "ddpm against stmd: trained step: 9 -> 5",
        "ddpm against stmd: trained images: 20 -> 12",
    ]


def test_a_run_that_can_spend_nothing_is_named():
    with pytest.raises(UserError, match="stmd can spend none of the NFE"):
        samplers_for(network_contestant("stmd"), replace(PLAN, nfe=(1, 2), flow_steps=(4,)))


def test_a_grid_of_given_times_is_kept_where_it_fits():
    own = Ancestral(2, grid=CustomGrid(times=(1.0, 0.3, 0.0)))
    chosen = list(samplers_for(network_contestant("ddpm", own), PLAN))
    assert chosen == [Ancestral(1), own, Ancestral(4)]


def test_a_consistency_map_has_no_posterior():
    result = compare([network_contestant("consistency"), network_contestant("ddpm")], replace(PLAN, nfe=(1,)))
    assert result["posterior"]["consistency"] == []
    assert len(result["posterior"]["ddpm"]) == 1
    rows = [row for title, _, body in tables(result) if "RMSE" in title for row in body]
    assert [row[0] for row in rows] == ["ddpm"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"nfe": (0,)},
        {"seeds": 1},
        {"flow_steps": (0,)},
        {"pairs": 0},
        {"nfe": ()},
        {"taus": (3.0,)},
        {"n": 0},
        {"n": -5},
    ],
)
def test_plans_out_of_range(wrong):
    with pytest.raises(UserError):
        ComparisonPlan(**wrong)


def test_a_flow_map_takes_steps_of_its_own_clock():
    assert [s.steps for s in samplers_for(network_contestant("mean-flow", FlowMap()), PLAN)] == [1, 2, 4]
