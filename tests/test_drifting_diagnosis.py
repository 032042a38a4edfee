"""The diagnosis of drifting: exact numbers in every dimension, the cases that are marked, and the command."""

import json
import math

import pytest
import torch
from torch.testing import assert_close

from fewstep.cli import main
from fewstep.drifting_diagnosis import CASES, DriftingPlan, diagnose, random_centres, residual_cases, ring, slopes
from fewstep.drifting_figures import figures, notes, tables
from fewstep.errors import UserError
from fewstep.kernels import Gaussian, Laplace
from fewstep.mixture import GaussianMixture
from fewstep.score_view import IsotropicMixture, decompose_population, mean_square_distance
from problems import generator

SMALL = DriftingPlan(dims=(2, 64), draws=2, points=16, samples=64, grid=4)


@pytest.mark.parametrize("kernel", [Gaussian(bandwidth=0.8), Laplace(bandwidth=0.8)], ids=["gaussian", "laplace"])
@pytest.mark.parametrize("d", [2, 5])
def test_isotropic_mixtures_are_mixtures(kernel, d):
    """Without covariance matrices, the same numbers to 1e-10; another deviation gives others."""
    law = random_centres(d, generator(0), 0.6)
    whole = GaussianMixture(law.weights, law.means, 0.36 * torch.eye(d).double().expand(6, d, d))
    x = law.sample(7, generator(1))
    short, long = decompose_population(kernel, x, law), decompose_population(kernel, x, whole)
    for name in ("shift", "score", "alpha"):
        assert_close(getattr(short, name), getattr(long, name), atol=1e-10, rtol=1e-10)
    other = IsotropicMixture(weights=law.weights, means=law.means, std=0.7)
    assert (decompose_population(kernel, x, other).shift - short.shift).abs().max() > 1e-3
    assert law.spread == pytest.approx(whole.covariance.trace().item())
    assert_close(law.mean, whole.mean)


def test_mean_square_distance_and_draws():
    p, q = ring(5, generator(0)), random_centres(5, generator(1), 0.8)
    x, y = q.sample(100_000, generator(2)), p.sample(100_000, generator(3))
    assert (x - y).square().sum(1).mean().item() == pytest.approx(mean_square_distance(p, q), rel=0.01)


def test_the_table_of_random_centres_and_rings():
    """Section 3 K at D = 256, two draws: cosine and `C* / C_alpha` within 2 %, the plateau of rings, unequal radii apart."""
    plan = DriftingPlan(dims=(64, 256), draws=2, points=64, samples=64, grid=2)
    found = {case["name"]: {row["dim"]: row["population"] for row in case["rows"]} for case in diagnose(plan)["cases"]}

    def mean(name, dim, key):
        return found[name][dim][key]["mean"]

    assert mean("random centres", 256, "cosine") == pytest.approx(0.9971, rel=0.02)
    assert mean("random centres", 256, "c_star_over_c_alpha") == pytest.approx(1.001, rel=0.02)
    assert mean("rings", 256, "cosine") == pytest.approx(0.984, rel=0.02)
    assert mean("rings", 256, "c_star_over_c_alpha") == pytest.approx(0.858, rel=0.02)
    assert mean("rings", 256, "relative") == pytest.approx(0.061, rel=0.1)
    assert mean("unequal radii", 256, "cosine") < 0.8
    assert mean("unequal radii", 256, "relative_to_gaussian") < 1e-3
    rows = [{"dim": dim, "population": numbers} for dim, numbers in found["random centres"].items()]
    assert -3 < slopes(rows, "gap_energy") < -1.2


def test_slopes_are_of_powers():
    rows = [{"dim": d, "population": {"a": {"mean": 3 * d**-1.5}}} for d in (2, 64, 128, 1024)]
    assert slopes(rows, "a") == pytest.approx(-1.5)
    assert math.isnan(slopes(rows[:1], "a"))


def test_the_residual_of_figure_2():
    """Across the score where far mass lies on one side, nearly none in the other two cases; it is orthogonal."""
    across = {case["name"]: case["across"] for case in residual_cases()}
    assert across["far mass across the score"] > 0.5
    assert max(across["near mass along the score"], across["far mass on both sides"]) < 0.02
    for case in residual_cases():
        score, delta = (torch.tensor(case[key]) for key in ("score", "delta_across"))
        assert abs(score @ delta) < 1e-5 * score.norm()


def test_gaussian_fields_are_parallel_and_laplace_ones_are_not():
    fields = {f["kernel"]: f for f in diagnose(SMALL)["fields"]}
    for kind in ("population", "finite"):
        assert fields["Gaussian"][kind]["cosine"]["least"] > 1 - 1e-9
        assert fields["Laplace"][kind]["cosine"]["least"] < 0.99


def test_the_command_writes_what_it_says(tmp_path, capsys):
    flags = ["--dims", "2", "64", "--draws", "2", "--points", "16", "--samples", "64", "--grid", "4"]
    assert main(["diagnose", "drifting", *flags, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "drifting.json").read_text())
    assert [case["name"] for case in result["cases"]] == list(CASES)
    marked = [title for title, _, _ in tables(result) if "(!)" in title]
    assert len(marked) == 2
    assert any(note.startswith("(!) finite samples") for note in notes(result))
    assert {f"{name}.png" for name in figures(result)} | {"drifting.json", "drifting.html"} == {
        path.name for path in tmp_path.iterdir()
    }
    assert "written to" in printed
    assert "(!)" in printed
    numbers = result["cases"][0]["rows"][1]
    assert set(numbers) == {"dim", "population", "finite"}
    assert numbers["population"]["cosine"].keys() == {"mean", "sd"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"dims": (1, 2)},
        {"dims": ()},
        {"dims": (64, 64)},
        {"draws": 0},
        {"samples": 1},
        {"share": 0.0},
        {"share": math.inf},
        {"seed": -1},
    ],
)
def test_bad_numbers_are_told(wrong):
    with pytest.raises(UserError):
        DriftingPlan(**wrong)


def test_an_unknown_method_is_told(capsys):
    assert main(["diagnose", "magic"]) == 1
    assert "drifting" in capsys.readouterr().err


def test_populations_in_many_dimensions_are_quick_and_finite():
    p = random_centres(2048, generator(0))
    found = decompose_population(Laplace(bandwidth=0.2 * 32), p.sample(8, generator(1)), p)
    assert found.shift.isfinite().all()
    assert found.alpha.min() > 0
