"""The evaluation passes what is exact, fails what is not, and says in which features it looked."""

import json

import pytest
import torch
from scipy import stats as scipy_stats

from fewstep import MixturePosterior, VPSchedule, transition
from fewstep.configuration import to_config
from fewstep.datasets import Digits, Ring
from fewstep.errors import UserError
from fewstep.evaluation import EvaluationPlan, evaluate, posterior_scores, tables, uses_flow
from fewstep.models import DenoiserConfig, MeanFlowConfig, MeanOnly, PosteriorFlowConfig
from fewstep.models.base import PosteriorModel
from fewstep.networks import MLPConfig
from fewstep.posterior import Posterior
from fewstep.samplers import Ancestral, FlowMap, OfMeans, ProbabilityFlow, ReverseSDE
from problems import doubles, generator, seeded
from stats import accepts, rejects

RING = Ring()
EXACT = MixturePosterior(RING.mixture, VPSchedule())
NETWORK = MLPConfig(width=16, depth=1)
PLAN = EvaluationPlan(n=300, steps=(1, 3), flow_steps=(1, 2), taus=(0.3, 0.8), pairs=40, draws=4, batch_size=100)
SEEDS = range(12)


class Scaled(PosteriorModel):
    """The draws of a model, spread around its mean by another factor and moved: a forecast that is wrong on purpose."""

    def __init__(self, model: PosteriorModel, factor: float, shift: float = 0.0):
        super().__init__(model.schedule, model.item_shape)
        self.model, self.factor, self.shift = model, factor, shift

    def forward(self, x_tau: torch.Tensor, tau: torch.Tensor | float) -> Posterior:
        q, factor, shift = self.model(x_tau, tau), self.factor, self.shift

        class Law(Posterior):
            def sample(self, shape=(), **options):
                return q.mean() + factor * (q.sample(shape, **options) - q.mean()) + shift

            def mean(self, draws=1, generator=None):
                return q.mean() + shift

        return Law()


def scores(model: PosteriorModel, tau: float, name: str = "spread_skill") -> torch.Tensor:
    """One score for each of several seeds, each with its own held-out items."""
    found = []
    for seed in SEEDS:
        x_0 = RING.test().take(200, seed=seed)["x_0"]
        found.append(posterior_scores(model, x_0, tau, flow_steps=1, draws=6, seed=seed)[name])
    return doubles(*found)


def is_one(values: torch.Tensor) -> float:
    return float(scipy_stats.ttest_1samp(values.numpy(), 1.0).pvalue)


@pytest.fixture(scope="module")
def exact_result() -> dict:
    return evaluate(EXACT, RING, PLAN)


def flow_model(item_shape: tuple[int, ...] = (2,)) -> PosteriorModel:
    with seeded(0):
        model = PosteriorFlowConfig(network=NETWORK).build(item_shape)
    model.sampler = Ancestral(4)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module", autouse=True)
def _default_sampler():
    EXACT.sampler = Ancestral(4)
    yield
    EXACT.sampler = None


@pytest.mark.parametrize("tau", [0.3, 0.8])
def test_an_exact_posterior_is_calibrated_and_the_wrong_ones_are_not(tau):
    assert accepts(is_one(scores(EXACT, tau)))
    for wrong in (Scaled(EXACT, 0.85), Scaled(EXACT, 1.15), Scaled(EXACT, 1.0, shift=0.5)):
        assert rejects(is_one(scores(wrong, tau)))


def test_the_mean_alone_has_no_spread_and_a_worse_score():
    point = scores(MeanOnly(EXACT), 0.3)
    assert (point == 0).all()
    worse = scores(MeanOnly(EXACT), 0.3, "energy_score") - scores(EXACT, 0.3, "energy_score")
    assert rejects(float(scipy_stats.ttest_1samp(worse.numpy(), 0.0).pvalue))
    assert worse.mean() > 0


def test_the_plan_is_carried_out(exact_result):
    assert exact_result["n"] == 300
    assert exact_result["reference"] == {"dataset": to_config(RING), "split": "test", "n": 300}
    assert exact_result["sampler"] == to_config(Ancestral(4))
    assert [(row["steps"], row["flow_steps"]) for row in exact_result["samples"]] == [(1, 1), (3, 1)]
    assert [(row["tau"], row["flow_steps"]) for row in exact_result["posterior"]] == [(0.3, 1), (0.8, 1)]
    assert all(row["pairs"] == 40 for row in exact_result["posterior"])
    assert json.loads(json.dumps(exact_result)) == exact_result


def test_every_distance_has_its_floor(exact_result):
    distances = exact_result["floor"].keys() - {"n"}
    assert distances == {"energy_distance", "sliced_w2"}
    assert exact_result["floor"]["n"] == 300
    assert 0 < exact_result["floor"]["sliced_w2"] < 0.3
    for row in exact_result["samples"]:
        assert distances < row.keys()


def test_the_exact_sampler_is_at_the_floor_and_the_mean_alone_is_not(exact_result):
    floor = exact_result["floor"]
    collapsed = MeanOnly(EXACT)
    collapsed.sampler = Ancestral(4)
    mean = evaluate(collapsed, RING, EvaluationPlan(n=300, steps=(1,), taus=(), pairs=10))["samples"][0]
    for row in exact_result["samples"]:
        assert row["sliced_w2"] < 2 * floor["sliced_w2"]
        assert abs(row["energy_distance"]) < 0.02
    assert mean["sliced_w2"] > 4 * floor["sliced_w2"]
    assert mean["energy_distance"] > 0.2


def test_network_evaluations_are_counted():
    """One for each step of the diffusion clock and of the flow clock; a denoiser knows no flow steps."""
    flow = evaluate(flow_model(), RING, PLAN)
    counts = [(row["steps"], row["flow_steps"], row["nfe"]) for row in flow["samples"]]
    assert counts == [(1, 1, 1), (3, 1, 3), (1, 2, 2), (3, 2, 6)]
    with seeded(0):
        denoiser = DenoiserConfig(network=NETWORK).build((2,)).eval().requires_grad_(False)
    denoiser.sampler = Ancestral(4)
    counts = [(row["steps"], row["flow_steps"], row["nfe"]) for row in evaluate(denoiser, RING, PLAN)["samples"]]
    assert counts == [(1, 1, 1), (3, 1, 3)]
    assert uses_flow(flow_model())
    assert not uses_flow(denoiser)
    assert not uses_flow(EXACT)


def test_the_batch_size_changes_nothing_and_the_seed_does(exact_result):
    def numbers(result: dict) -> list[float]:
        rows = [result["floor"], *result["samples"], *result["posterior"]]
        return [value for row in rows for name, value in row.items() if name not in ("seconds", "peak_memory")]

    smaller = evaluate(EXACT, RING, EvaluationPlan(**{**vars(PLAN), "batch_size": 17}))
    assert numbers(smaller) == pytest.approx(numbers(exact_result), rel=1e-4, abs=1e-6)
    other = evaluate(EXACT, RING, EvaluationPlan(**{**vars(PLAN), "seed": 1}))
    assert numbers(other) != pytest.approx(numbers(exact_result), rel=1e-4, abs=1e-6)


def test_tables_show_every_row(exact_result):
    (title, header, rows), (_, posterior_header, posterior_rows) = tables({"recipe": "ring", **exact_result})
    assert "ring" in title
    assert "300" in title
    assert [len(row) for row in rows] == [len(header)] * 3
    assert rows[0][0] == "real vs real (300)"
    assert [row[0] for row in rows[1:]] == ["1", "3"]
    assert [len(row) for row in posterior_rows] == [len(posterior_header)] * 2
    assert "Frechet distance" not in header


def test_images_are_compared_in_the_features_of_the_shipped_classifier():
    """Its accuracy and hash are in the result, and what was done to the images."""
    plan = EvaluationPlan(n=160, steps=(1,), flow_steps=(1,), taus=(0.5,), pairs=10, draws=3)
    result = evaluate(flow_model((1, 8, 8)), Digits(), plan)
    assert result["features"]["accuracy"] > 0.985
    assert len(result["features"]["sha256"]) == 64
    assert "classifier of digits" in result["features"]["extractor"]
    assert result["features"]["quantisation"] == result["features"]["resize"] == "none"
    assert result["samples"][0]["frechet"] > 3 * result["floor"]["frechet"] > 0
    assert "Frechet distance" in tables({"recipe": "digits", **result})[0][1]

    with pytest.raises(UserError, match="128 features needs more than that"):
        evaluate(flow_model((1, 8, 8)), Digits(), EvaluationPlan(n=100, steps=(1,), flow_steps=(1,), taus=()))


def test_another_sampler_than_the_default_and_what_it_costs():
    """Means take no flow steps; Heun takes two evaluations a step but for the last."""
    for sampler, nfe in ((OfMeans(sampler=Ancestral()), [1, 3]), (ProbabilityFlow(), [1, 5]), (ReverseSDE(), [1, 3])):
        result = evaluate(flow_model(), RING, PLAN, sampler=sampler)
        assert [row["nfe"] for row in result["samples"]] == nfe
        assert [row["flow_steps"] for row in result["samples"]] == [1, 1]
        assert {row["flow_steps"] for row in result["posterior"]} == {1, 2}


def test_a_mean_flow_has_samples_and_no_posterior():
    with seeded(0):
        model = MeanFlowConfig(network=NETWORK).build((2,)).eval().requires_grad_(False)
    model.sampler = FlowMap()
    result = evaluate(model, RING, PLAN)
    assert [row["nfe"] for row in result["samples"]] == [1, 3]
    assert result["posterior"] == []
    assert len(tables({"recipe": "ring", **result})) == 1


def test_the_error_of_the_mean_is_that_of_the_denoiser():
    """The exact posterior's is the smallest there is, `E Tr Cov(x_0 | x_tau) / d`; a shifted one has the shift more."""
    at = doubles(0.3)[0]
    x_0 = RING.test().take(4000)["x_0"]
    x_tau = transition.sample(x_0.double(), torch.zeros_like(at), at, VPSchedule(), generator(1))
    covariance = RING.mixture.posterior(x_tau, at, VPSchedule()).covariance
    expected = covariance.diagonal(dim1=-2, dim2=-1).mean()

    def squares(model: PosteriorModel) -> torch.Tensor:
        held_out = [RING.test().take(200, seed=seed)["x_0"] for seed in SEEDS]
        return doubles(*(posterior_scores(model, x, 0.3, 1, 2, s)["mean_rmse"] ** 2 for s, x in enumerate(held_out)))

    assert accepts(float(scipy_stats.ttest_1samp(squares(EXACT), expected.item()).pvalue))
    shifted = squares(Scaled(EXACT, 1.0, shift=0.5))
    assert rejects(float(scipy_stats.ttest_1samp(shifted, expected.item()).pvalue))
    assert accepts(float(scipy_stats.ttest_1samp(shifted, expected.item() + 0.25).pvalue))
