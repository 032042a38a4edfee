"""Draws of an exact posterior are accepted; narrowed, widened, moved draws and draws of the prior are rejected by name."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from torch import Tensor

from fewstep import MixturePosterior, VPSchedule
from fewstep.calibration import EXACT, NARROWED, OWN, PRIOR, CalibrationPlan, Prior, calibrate
from fewstep.calibration_report import document, figures, tables, verdicts
from fewstep.datasets import T2, Arrays, Digits
from fewstep.datasets.base import Dataset, TensorExamples
from fewstep.errors import UserError
from fewstep.models import ConsistencyMapConfig, DenoiserConfig, MeanFlowConfig, PosteriorFlowConfig
from fewstep.models.base import PosteriorModel
from fewstep.networks import MLPConfig
from fewstep.posterior import ParticlePosterior, Posterior
from fewstep.verdict import holm, judge, numbers, words
from problems import generator, seeded
from stats import accepts, rejects

DATA = T2()
TRUTH = MixturePosterior(DATA.mixture, VPSchedule())
NETWORK = MLPConfig(width=16, depth=1)
PLAN = CalibrationPlan(taus=(0.3,), flow_steps=(1, 2), pairs=250, draws=15)
SMALL = replace(PLAN, pairs=60, draws=7, bins=8)


@dataclass(frozen=True)
class Law(Posterior):
    q: Posterior
    factor: float
    shift: float

    def sample(self, shape=(), **options) -> Tensor:
        return self.q.mean() + self.factor * (self.q.sample(shape, **options) - self.q.mean()) + self.shift

    def mean(self, draws=1, generator=None) -> Tensor:
        return self.q.mean() + self.shift


class Changed(PosteriorModel):
    """The exact posterior with another spread and another place; below the time `until` only."""

    def __init__(self, factor: float = 1.0, shift: float = 0.0, until: float = 1.0):
        super().__init__(TRUTH.schedule, TRUTH.item_shape)
        self.factor, self.shift, self.until = factor, shift, until

    def forward(self, x_tau: Tensor, tau: Tensor | float) -> Posterior:
        changed = float(torch.as_tensor(tau).max()) <= self.until
        return Law(TRUTH(x_tau, tau), self.factor if changed else 1.0, self.shift if changed else 0.0)


def family(result: dict, name: str = "M = 1") -> dict:
    return next(f for f in result["families"] if f["name"] == name)


def small_flow(item_shape: tuple[int, ...]) -> PosteriorModel:
    with seeded(0):
        return PosteriorFlowConfig(network=NETWORK).build(item_shape).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def exact() -> dict:
    return calibrate(TRUTH, DATA, replace(PLAN, taus=(0.1, 0.3)))


@pytest.fixture(scope="module")
def flow() -> dict:
    return calibrate(small_flow((2,)), DATA, SMALL)


def test_the_exact_posterior_is_accepted_and_the_negative_controls_are_not(exact):
    assert [f["name"] for f in exact["families"]] == ["M = 1", EXACT, NARROWED, PRIOR]
    assert [f["calibrated"] for f in exact["families"]] == [True, True, False, False]
    for row in family(exact)["rows"]:
        assert row["words"] == ["calibrated"]
        assert row["composition"]["agrees"]
        assert abs(row["coverage_90"] - 0.9) < 0.04
        assert abs(row["exact"]["conditional_energy_distance"]) < 4 * row["exact"]["conditional_energy_distance_se"]
        assert row["spread_skill_interval"][0] < row["spread_skill"] < row["spread_skill_interval"][1]
    assert [row["words"] for row in family(exact, NARROWED)["rows"]] == [["too narrow"]] * 2
    assert [row["words"] for row in family(exact, PRIOR)["rows"]] == [["ignoring x_tau"]] * 2
    said = verdicts(exact | {"recipe": "t2"})
    assert "M = 1: calibrated" in said[0]
    assert f"{EXACT}: calibrated, as it has to be" in said[1]
    assert all("rejected, as it has to be" in sentence for sentence in said[2:])


@pytest.mark.parametrize(
    ("model", "word", "says"),
    [
        (Changed(factor=0.7), "too narrow", "draws vary too little"),
        (Changed(factor=1.5), "too wide", "draws vary too much"),
        (Changed(shift=0.4), "biased", "draws are biased"),
        (Prior(DATA.train().take(3000)["x_0"], VPSchedule()), "ignoring x_tau", "ignoring x_tau"),
    ],
    ids=["narrow", "wide", "biased", "prior"],
)
def test_a_wrong_twin_is_rejected_by_its_name(model, word, says):
    result = calibrate(model, DATA, PLAN)
    (row,) = family(result)["rows"]
    assert row["words"] == [word]
    assert not family(result)["calibrated"]
    assert says in verdicts(result)[0]
    assert "tau = 0.3, M = 1" in verdicts(result)[0]
    assert any("not those of the exact posterior" in sentence for sentence in verdicts(result))
    assert row["exact"]["conditional_energy_distance"] > 4 * row["exact"]["conditional_energy_distance_se"]
    if word != "ignoring x_tau":
        factor, shift = model.factor, model.shift
        assert row["exact"]["variance_ratio"] == pytest.approx(factor**2, rel=0.05)
        assert row["spread_skill"] == pytest.approx(factor / (1 + shift**2 / row["mean_rmse"] ** 2) ** 0.5, rel=0.25)


def test_times_that_disagree_are_told():
    """Without spread below tau = 0.2 only: the draws at 0.3 are exact, but not by way of x_s at 0.15."""
    result = calibrate(Changed(factor=0.0, until=0.2), DATA, replace(PLAN, pairs=400, draws=63))
    (row,) = family(result)["rows"]
    assert row["words"] == ["calibrated"]
    assert not row["composition"]["agrees"]
    assert row["composition"]["spread_skill"] < row["spread_skill"]
    assert any("two steps" in sentence for sentence in verdicts(result))


def test_a_point_mass_does_not_vary():
    with seeded(0):
        model = DenoiserConfig(network=NETWORK).build((2,)).eval().requires_grad_(False)
    result = calibrate(model, DATA, replace(SMALL, pairs=100))
    (row,) = family(result)["rows"]
    assert row["spread"] == 0
    assert "too narrow" in row["words"]
    assert "do not vary at all" in verdicts(result)[0]


def floats(value) -> list[float]:
    if isinstance(value, dict):
        return [x for part in value.values() for x in floats(part)]
    if isinstance(value, list):
        return [x for part in value for x in floats(part)]
    return [value] if isinstance(value, float | int) else []


def test_the_batch_size_changes_no_number_and_the_seed_does(flow):
    again = calibrate(small_flow((2,)), DATA, replace(SMALL, batch_size=1))
    assert floats(again) == pytest.approx(floats(flow), rel=1e-4, abs=1e-6)
    other = calibrate(small_flow((2,)), DATA, replace(SMALL, seed=1))
    assert floats(other["families"]) != pytest.approx(floats(flow["families"]), rel=1e-2)


def test_the_result_is_json_and_the_page_shows_it(flow):
    assert [f["name"] for f in flow["families"]] == ["M = 1", "M = 2", EXACT, NARROWED, PRIOR]
    assert json.loads(json.dumps(flow)) == flow
    assert flow["reference"]["n"] == 60
    assert flow["components"] == 2
    assert flow["components_left_out"] == 0
    row = family(flow, "M = 2")["rows"][0]
    assert row["flow_steps"] == 2
    assert len(row["rank_histogram"]) == 8
    assert sum(row["rank_histogram"]) == pytest.approx(8)
    assert len(row["coverage"]) == len(row["tarp"]) == len(flow["levels"]) == 19
    for _, header, rows in tables(flow):
        assert rows
        assert {len(cells) for cells in rows} == {len(header)}
    assert len(figures(flow)) == 7
    page = document(flow | {"recipe": "<t2>", "command": "fewstep calibrate here"})
    assert "&lt;t2&gt;" in page
    assert page.count("<img ") == 7
    assert "fewstep calibrate here" in page


def test_images_have_no_exact_posterior_and_constant_pixels_no_ranks():
    result = calibrate(small_flow((1, 8, 8)), Digits(), SMALL)
    x_0 = Digits().test().up_to(60)["x_0"].flatten(1)
    assert result["components_left_out"] == int((x_0.std(0) == 0).sum()) > 0
    assert result["components"] + result["components_left_out"] == 64
    assert [f["name"] for f in result["families"]] == ["M = 1", "M = 2", OWN, NARROWED, PRIOR]
    assert "exact" not in family(result)["rows"][0]
    assert len(tables(result)) == 3
    assert family(result, PRIOR)["rows"][0]["explained"] < 0.05


@pytest.mark.parametrize("factor", [0.5, 1.25])
def test_without_the_exact_posterior_the_controls_are_the_models_own_draws(tmp_path, factor):
    """However wrong the model is, they are accepted; narrowed by .8 they are rejected, also where that would mend the model."""
    np.savez(tmp_path / "points.npz", x_0=DATA.mixture.sample((1000,), generator(0)).float().numpy())
    data = Arrays(path=str(tmp_path / "points.npz"), test_share=0.6)
    result = calibrate(Changed(factor=factor), data, replace(PLAN, pairs=600, draws=31))
    assert [f["name"] for f in result["families"]] == ["M = 1", OWN, NARROWED, PRIOR]
    assert [f["calibrated"] for f in result["families"]] == [False, True, False, False]
    assert [f["positive"] for f in result["families"]] == [False, True, False, False]
    assert family(result, NARROWED)["rows"][0]["words"] == ["too narrow"]
    said = verdicts(result | {"recipe": "points"})
    assert f"{OWN}: calibrated, as it has to be" in said[-3]
    assert "rejected, as it has to be: too narrow" in said[-2]


@dataclass(frozen=True, kw_only=True)
class Levels(Dataset):
    """Images of one pixel on five grey levels, the lowest the most frequent; `told` says whether the data are known to be."""

    told: bool

    @property
    def item_shape(self) -> tuple[int, ...]:
        return (1, 1, 1)

    def train(self, root: Path | None = None) -> TensorExamples:
        index = (torch.rand(4000, 1, 1, 1, generator=generator(0)).square() * 5).long()
        return TensorExamples(name="l", item_shape=(1, 1, 1), x_0=index / 2 - 1, levels=5 if self.told else None)

    test = train


class Jittered(PosteriorModel):
    """The exact posterior of a set of items, each draw moved by up to `jitter`."""

    def __init__(self, items: Tensor, jitter: float):
        super().__init__(VPSchedule(), tuple(items.shape[1:]))
        self.register_buffer("items", items)
        self.jitter = jitter

    def forward(self, x_tau: Tensor, tau: Tensor | float) -> Posterior:
        at = torch.as_tensor(tau, dtype=torch.float64)
        alpha, sigma = self.schedule.alpha(at), self.schedule.sigma(at)
        distances = (x_tau.flatten(1)[:, None] - alpha * self.items.flatten(1)).square().sum(-1)
        return Moved(ParticlePosterior(self.items, -distances / (2 * sigma**2)), self.jitter)


@dataclass(frozen=True)
class Moved(Posterior):
    q: Posterior
    jitter: float

    def sample(self, shape=(), *, generator=None, **options) -> Tensor:
        x = self.q.sample(shape, generator=generator)
        return x + self.jitter * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) - 1)

    def mean(self, draws=1, generator=None) -> Tensor:
        return self.q.mean()


@pytest.mark.parametrize(
    ("told", "jitter", "accepted"),
    [(True, 0.0, True), (True, 0.24, True), (False, 0.24, False), (True, 0.75, False)],
    ids=["exact", "less than half a level", "levels unknown", "more than a level"],
)
def test_images_are_ranked_as_they_would_be_stored(told, jitter, accepted):
    """Noise that rounding to the grey levels takes away is no fault; where the levels are not known, and beyond them, it is."""
    data = Levels(told=told)
    result = calibrate(Jittered(data.train().x_0, jitter), data, replace(PLAN, taus=(0.1,), pairs=500, draws=31))
    assert family(result)["calibrated"] == accepted
    assert result["grey_step"] == (0.5 if told else None)


def test_without_controls_the_rest_is_the_same(flow):
    """The exact posterior stays, which the model is compared with."""
    found = calibrate(small_flow((2,)), DATA, replace(SMALL, controls=False))
    assert [f["name"] for f in found["families"]] == ["M = 1", "M = 2", EXACT]
    assert floats(found["families"]) == floats(flow["families"][:3])


def test_what_has_no_posterior_is_refused():
    for config in (MeanFlowConfig(network=NETWORK), ConsistencyMapConfig(network=NETWORK)):
        with pytest.raises(UserError, match="has no posterior"):
            calibrate(config.build((2,)), DATA, SMALL)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"pairs": 20}, "at least 50"),
        ({"draws": 60}, "16 bins do not divide"),
        ({"bins": 10}, "10 bins do not divide"),
        ({"draws": 3, "bins": 4}, "at least 4"),
        ({"taus": (0.0,)}, "above 0"),
        ({"taus": ()}, "one at least"),
        ({"flow_steps": ()}, "one M at least"),
        ({"batch_size": 0}, "from 1 up"),
        ({"level": 0.0}, "level"),
        ({"seed": -1}, "from 0"),
    ],
    ids=str,
)
def test_a_plan_out_of_range_is_refused(wrong, says):
    with pytest.raises(UserError, match=says):
        CalibrationPlan(**wrong)


def test_holm_is_between_the_raw_values_and_bonferroni():
    """By hand: 3 x .01, then 2 x .02, then the larger of .5 and what came before."""
    assert holm([0.5, 0.01, 0.02]) == pytest.approx([0.5, 0.03, 0.04])
    assert holm([0.01, 0.012]) == pytest.approx([0.02, 0.02])
    assert holm([]) == []


def test_a_calibrated_family_is_rejected_no_more_often_than_it_says():
    """Five times, three components, of uniform ranks, 90 times, at 10 %: the words, and the p-value of the composition.

    Without Holm's method, a wrong twin, it is more.
    """
    n, m, groups, level, repeats = 60, 15, 20, 0.1, 90
    source = generator(0)
    sizes = [{"size": float(n / groups)} for _ in range(groups)]
    score = dict.fromkeys(("spread_2", "skill_2", "rmse_2", "energy_score", "crps"), 1.0)
    score |= dict.fromkeys(("composed_spread_2", "composed_skill_2", "composed_energy_score"), 1.0)
    rejected, disagreeing, raw = 0, 0, 0
    for i in range(repeats):
        family = []
        for tau in (0.1, 0.2, 0.3, 0.5, 0.8):
            found = {name: torch.randint(m + 1, (n, d), generator=source) for name, d in (("ranks", 3), ("tarp", 1))}
            found |= {"composed": found["tarp"], "centres": torch.randn(n, 3, generator=source)}
            distances = torch.randn(groups, generator=source).double().tolist()
            rows = [size | score | {"distance": distance} for size, distance in zip(sizes, distances, strict=True)]
            family.append({"tau": tau, "explained_linearly": 0.5} | numbers(rows, found, m, 16, i))
        rejected += not judge(family, level)
        disagreeing += not all(row["composition"]["agrees"] for row in family)
        raw += min(row[name] for row in family for name in ("rank_p", "tarp_p")) < level
    for count in (rejected, disagreeing):
        assert accepts(float(scipy_stats.binomtest(count, repeats, level, alternative="greater").pvalue))
    assert rejects(float(scipy_stats.binomtest(raw, repeats, level, alternative="greater").pvalue))


def row_of(**changes) -> dict:
    calibrated = {
        "rank_p_adjusted": 0.5, "tarp_p_adjusted": 0.5, "spread_skill_interval": [0.98, 1.02], "rank_variance_z": 0.0,
        "rank_mean_z": 1.0, "rank_p_components": [0.5] * 10, "explained": 0.5, "explained_linearly": 0.5,
    }  # fmt: skip
    return calibrated | changes


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["calibrated"]),
        ({"rank_variance_z": 9.0, "spread_skill_interval": [0.8, 0.9]}, ["calibrated"]),  # no test rejects
        ({"rank_p_adjusted": 0.001}, ["wrong shape"]),
        ({"rank_p_adjusted": 0.001, "rank_variance_z": 9.0, "spread_skill_interval": [0.8, 0.9]}, ["too narrow"]),
        ({"rank_p_adjusted": 0.001, "rank_variance_z": 9.0}, ["wrong shape"]),  # the two statistics disagree
        ({"rank_p_adjusted": 0.001, "rank_variance_z": -9.0, "spread_skill_interval": [1.1, 1.2]}, ["too wide"]),
        ({"rank_p_adjusted": 0.001, "rank_variance_z": -9.0, "spread_skill_interval": [0.8, 0.9]}, ["wrong shape"]),
        ({"rank_p_adjusted": 0.001, "rank_mean_z": 3.2}, ["wrong shape"]),  # 1 % among ten components is at 3.29
        ({"rank_p_adjusted": 0.001, "rank_mean_z": 3.4}, ["biased"]),
        (
            {"rank_p_adjusted": 0, "rank_mean_z": 5.0, "rank_variance_z": 9.0, "spread_skill_interval": [0.8, 0.9]},
            ["too narrow", "biased"],
        ),
        ({"tarp_p_adjusted": 0.001}, ["wrong shape"]),
        ({"tarp_p_adjusted": 0.001, "explained": 0.2}, ["ignoring x_tau"]),
    ],
)
def test_the_rules(changes, expected):
    assert words(row_of(**changes), 0.01) == expected


def test_words_of_ranks_of_a_known_law():
    """Ranks of N(0, 1) among draws of N(shift, c^2): uniform, U-shaped, dome-shaped, sloped; coverage in closed form."""
    n, m = 4000, 63

    def row(c: float, shift: float = 0.0) -> dict:
        x = torch.randn(n, 1, generator=generator(1), dtype=torch.float64)
        draws = shift + c * torch.randn(m, n, 1, generator=generator(2), dtype=torch.float64)
        rank = (draws < x).sum(0)
        score = {"spread_2": c**2, "skill_2": 1 + shift**2 + c**2 / m, "rmse_2": 1.0, "energy_score": 1.0, "crps": 1.0}
        groups = [score | {"size": 40.0}] * 100
        found = {"ranks": rank, "tarp": rank, "centres": draws.mean(0)}
        return numbers(groups, found, m, 16, 0) | {"explained_linearly": 0.0}

    for c, shift, coverage, expected in (
        (1.0, 0.0, 0.9, "calibrated"),
        (0.7071, 0.0, 0.7552, "too narrow"),
        (1.4142, 0.0, 0.9800, "too wide"),
        (1.0, 0.3, None, "biased"),
    ):
        found = row(c, shift)
        calibrated = judge([found], 0.01)
        assert found["words"] == [expected]
        assert calibrated == (expected == "calibrated")
        if coverage is not None:
            assert found["coverage_90"] == pytest.approx(coverage, abs=0.015)


def test_too_few_held_out_items_are_refused(tmp_path: Path):
    np.save(tmp_path / "few.npy", torch.randn(400, 2, generator=generator(0)).numpy())
    with pytest.raises(UserError, match="40 held-out items show nothing"):
        calibrate(small_flow((2,)), Arrays(path=str(tmp_path / "few.npy")), SMALL)
