"""The shipped recipes reach what the README says: minutes of training each, run by make test-slow."""

import pytest
import torch

import fewstep
from fewstep.comparison import ComparisonPlan, Contestant, compare
from fewstep.datasets import Digits
from fewstep.evaluation import EvaluationPlan, evaluate
from fewstep.features import GREY, write_classifier
from fewstep.recipes import find_recipe
from fewstep.samplers import Ancestral
from fewstep.training import train
from test_training import options

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _all_cores():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def rows(result) -> dict[tuple[int, int], dict[str, float]]:
    return {(row["steps"], row["flow_steps"]): row for row in result["samples"]}


def test_ring_stmd(tmp_path):
    """Energy distance (unbiased, 6000 samples) at most .006 at N = 1 and 4, M = 1 and 4; draws vary as much as they err."""
    recipe = find_recipe("ring-stmd")
    train(recipe, options(tmp_path))
    result = evaluate(fewstep.load(tmp_path), recipe.dataset, EvaluationPlan(steps=(1, 4), batch_size=6000))
    assert all(row["energy_distance"] <= 0.006 for row in rows(result).values())
    assert all(0.9 < row["spread_skill"] < 1.1 for row in result["posterior"])


def test_ring_ddpm_needs_many_steps(tmp_path):
    """The mean in place of draws: far off at 4 steps, close at 64."""
    recipe = find_recipe("ring-ddpm")
    train(recipe, options(tmp_path))
    result = evaluate(fewstep.load(tmp_path), recipe.dataset, EvaluationPlan(steps=(4, 64), batch_size=6000))
    distances = {key: row["energy_distance"] for key, row in rows(result).items()}
    assert distances[4, 1] > 0.1
    assert distances[64, 1] < 0.02


def test_digits_stmd(tmp_path):
    """At N = 4, M = 4 the Frechet distance is at most four times its floor, and the draws vary as much as they err."""
    recipe = find_recipe("digits-stmd")
    train(recipe, options(tmp_path))
    model = fewstep.load(tmp_path)
    result = evaluate(model, recipe.dataset, EvaluationPlan(steps=(4,)))
    assert rows(result)[4, 4]["frechet"] < 4 * result["floor"]["frechet"]
    late = [row["spread_skill"] for row in result["posterior"] if row["flow_steps"] == 4 and row["tau"] >= 0.2]
    assert all(0.85 < value < 1.15 for value in late)


def test_more_steps_of_the_digits_do_no_harm(tmp_path):
    """With M = 1 the energy distance at no N up to 32 is above that at N = 1, beyond joint intervals of ten seeds."""
    recipe = find_recipe("digits-stmd")
    train(recipe, options(tmp_path))
    model = fewstep.load(tmp_path)
    cost = {"step": recipe.steps, "images": 0, "seconds": 0, "parameters": 0, "peak_memory": 0}
    contestant = Contestant(name="a", run="a", model=model, sampler=Ancestral(), recipe=recipe, training=cost)
    compared = compare([contestant], ComparisonPlan(flow_steps=(1,), seeds=10, taus=(0.5,), pairs=10))
    assert compared["runs"][0]["rises"] == []


@pytest.mark.parametrize(("method", "nfe"), [("mean-flow", 4), ("consistency", 4), ("ddpm", 32)])
def test_the_rivals_on_the_digits(tmp_path, method, nfe):
    """Each reaches a Frechet distance of at most four times its floor, at its number of evaluations."""
    recipe = find_recipe(f"digits-{method}")
    train(recipe, options(tmp_path))
    model = fewstep.load(tmp_path)
    if method == "consistency":
        model.sampler = Ancestral(kernel=0.0)
    result = evaluate(model, recipe.dataset, EvaluationPlan(steps=(nfe,), taus=()))
    assert rows(result)[nfe, 1]["frechet"] < 4 * result["floor"]["frechet"]


def test_the_classifier_of_the_digits_is_accurate(tmp_path):
    """The recipe of the shipped weights, run again."""
    record = write_classifier(Digits(), GREY, tmp_path / "c")
    assert record["accuracy"] >= 0.985
