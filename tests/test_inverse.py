"""Methods for inverse problems with the exact posterior model of T2, where `p(x_0 | y)` is known in closed form.

`A = [1, .5]`, noise of variance .25, `y = .5`; noiseless inpainting: the first coordinate is .5. The exact model separates an
algorithm's error from a network's.
"""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fewstep import particles
from fewstep.errors import UserError
from fewstep.inverse import (
    DPS,
    MALA,
    PCN,
    DecoupledSIR,
    DegeneracyWarning,
    InverseMethod,
    LookAhead,
    NestedSMC,
    NullSpace,
    SplitGibbs,
)
from fewstep.inverse.base import Problem
from fewstep.metrics import IntervalCoverage, SlicedWasserstein
from fewstep.models import MeanFlow, MixturePosterior, PosteriorFlow
from fewstep.models.base import PosteriorModel
from fewstep.operators import Gaussian, HDRClip, Inpainting, Matrix, NoNoise, Poisson, TensorMask
from fewstep.posterior import DiracPosterior
from fewstep.scaling import GaussianScaling, IdentityScaling
from fewstep.steering.samples import _equal, _put_together
from fewstep.steering.value import gradient_through_draws, shift_of_draws
from problems import SCHEDULE, TINY_MLP, doubles, generator, generators, normals, randomise, seeded, t2, tau_of
from stats import accepts, rejects, z_tests

pytestmark = pytest.mark.filterwarnings("ignore::fewstep.inverse.DegeneracyWarning")  # of those that are not asked for

MIXTURE, MODEL = t2(), MixturePosterior(t2(), SCHEDULE)
MATRIX, SIGMA = doubles(1.0, 0.5)[None], 0.5
A, NOISE, Y = Matrix(item_shape=(2,), matrix=MATRIX), Gaussian(sigma=SIGMA), doubles(0.5)[None]
TRUTH = MIXTURE.condition(Y[0], MATRIX, SIGMA**2 * torch.eye(1).double())
LOG_Z = -3.5676335577


def weights(x, law=TRUTH):
    """How often a sample `(n, 2)` comes from each component."""
    return law.responsibilities(x).mean(0)


def total_variation(x, law=TRUTH):
    return 0.5 * (weights(x, law) - law.weights).abs().sum().item()


def sliced(x, law=TRUTH):
    return SlicedWasserstein()(x, law.sample((len(x),), generator(99)))["sliced_w2"]


def samples(method, k=2000, y=Y, model=MODEL, operator=A, seed=0):
    return method(model, operator, y, k, generator(seed))


class Mean(PosteriorModel):
    """The mean in place of draws."""

    def forward(self, x_tau, tau):
        return DiracPosterior(MODEL(x_tau, tau).mean())


MEAN = Mean(SCHEDULE, (2,))


# --- particles


def test_the_effective_sample_size_counts_equal_weights():
    equal, one, some = torch.zeros(5).double(), doubles(0, *[-math.inf] * 4), doubles(1, 2, 3, 4, 0).log()
    found = particles.effective_sample_size(torch.stack([equal, one, some], dim=1) + 7)
    assert_close(found, doubles(5, 1, 100 / 30))
    assert_close(particles.log_mean_exp(torch.stack([equal, some], dim=1) + 7), doubles(7, 7 + math.log(2)))


def test_systematic_resampling_is_unbiased_and_within_one():
    log_w = doubles(0.1, 0.3, 0.05, 0.55).log()[:, None].expand(4, 4000)
    counts = torch.nn.functional.one_hot(particles.systematic(log_w, generator(0)), 4).sum(0).double()
    expected = 4 * doubles(0.1, 0.3, 0.05, 0.55)
    assert accepts(z_tests(counts, expected))
    assert rejects(z_tests(counts, doubles(0.5, 1.2, 0.2, 2.1)))
    assert ((counts - expected).abs() < 1).all()


def test_particles_are_taken_along_their_axis():
    x = torch.arange(24).reshape(2, 3, 2, 2)  # draws, particles, problems, components
    index = torch.tensor([[2, 0], [2, 1], [0, 1]])
    found = particles.take(x, index, axis=1)
    for i in range(3):
        for j in range(2):
            assert torch.equal(found[:, i, j], x[:, index[i, j], j])


# --- exact or consistent


def test_decoupled_sir():
    """K = 5, J = 64; the more draws the closer, and with one draw it ignores y."""
    found = samples(DecoupledSIR(noise=NOISE, levels=5, draws=64)).x[:, 0]
    assert total_variation(found) < 0.05
    assert sliced(found) < 0.15
    with pytest.warns(DegeneracyWarning):
        few = samples(DecoupledSIR(noise=NOISE, levels=5, draws=4)).x[:, 0]
    assert sliced(few) > 0.4
    assert sliced(samples(DecoupledSIR(noise=NOISE, draws=1)).x[:, 0]) > 0.9


@pytest.mark.parametrize("rho", [0.5, 1.0])
def test_split_gibbs_has_its_stationary_law(rho):
    """`p(x | y)` with the covariance `sigma_y^2 + rho^2 A A'`, not that without the second term."""
    found = samples(SplitGibbs(noise=NOISE, rho=rho, anneal=20, steps=400, weigh_above=None)).x[:, 0]
    law = MIXTURE.condition(Y[0], MATRIX, (SIGMA**2 + rho**2 * 1.25) * torch.eye(1).double())
    assert sliced(found, law) < 0.1
    assert sliced(found) > 0.2
    if rho == 0.5:
        assert_close(law.weights, doubles(0.18502929, 0.25915828, 0.55581244), atol=1e-7, rtol=0)


@pytest.mark.parametrize("rho", [0.15, 0.5])
def test_weighed_split_gibbs_is_exact_at_any_rho(rho):
    """At 40 evaluations a sample; without weights the modes are as annealing chose them, and at rho = .5 the law is another."""
    method = SplitGibbs(noise=NOISE, rho=rho, weigh_above=0.0)
    found = samples(method, 6000).unweighted(generator(1))[:, 0]
    assert total_variation(found) < 0.02
    assert sliced(found) < 0.08
    alone = samples(replace(method, weigh_above=None))
    assert sliced(alone.x[:, 0]) > 0.25
    assert alone.log_z is None
    assert_close(alone.log_w, torch.full((2000, 1), -math.log(2000)).double())


def test_split_gibbs_weighs_modes_by_default():
    """Down to rho = .25, and then they are drawn anew; without weights, or where those are dropped, the modes are wrong."""
    method = SplitGibbs(noise=NOISE)
    found = samples(method, 4000)
    assert total_variation(found.x[:, 0]) < 0.12
    assert sliced(found.x[:, 0]) < 0.3
    assert particles.effective_sample_size(found.log_w).item() == pytest.approx(4000)
    alone = samples(replace(method, weigh_above=None), 4000).x[:, 0]
    assert total_variation(alone) > 0.2


def test_split_gibbs_goes_on_exactly_where_it_weighs_to_the_end():
    """Its last rho above `weigh_above`, as with `weigh_above = 0`; and it knows the evidence."""
    ends = [samples(SplitGibbs(noise=NOISE, rho=0.5, weigh_above=w), 2000) for w in (0.0, 0.25)]
    assert torch.equal(ends[0].x, ends[1].x)
    assert_close(ends[0].log_z, ends[1].log_z)
    assert samples(SplitGibbs(noise=NOISE, rho=0.2)).log_z is None


def test_resampling_on_the_way_steadies_the_evidence():
    """Many levels and few samples: weights that are only carried scatter more."""
    method = SplitGibbs(noise=Gaussian(sigma=0.05), rho=0.015, anneal=30, steps=1, weigh_above=0.0, max_batch=10**6)
    steady, carried = (
        samples(replace(method, resample=share), 16, Y.expand(600, 1)).log_z.std() for share in (0.5, 0.0)
    )
    assert carried > 1.1 * steady


def test_families_of_split_gibbs_are_told():
    """Of samples that stem from one, and were moved a little since, the effective number is small, though all differ."""
    sharp = SplitGibbs(noise=Gaussian(sigma=0.01), rho_start=0.5, anneal=4, steps=3, weigh_above=0.0)
    whole = Inpainting(item_shape=(2,), mask=TensorMask(observed=torch.tensor([True, True])))
    with pytest.warns(DegeneracyWarning, match="take more samples, or a larger weigh_above"):
        found = sharp(MODEL, whole, doubles(0.0, -2.0)[None], 40, generator(0))
    assert len(found.x[:, 0].unique(dim=0)) > 30
    assert found.ess.item() < 4
    assert particles.effective_sample_size(found.log_w).item() > 2 * found.ess.item()


def test_an_inexact_prox_is_told():
    """A solver that stops early spoils the weights; the exact one says nothing."""

    class Early(Matrix):
        def prox_l2(self, z, y, gamma):
            return z + 0.9 * (super().prox_l2(z, y, gamma) - z)

    early = Early(item_shape=(2,), matrix=MATRIX)
    with pytest.warns(DegeneracyWarning, match="prox_l2 stopped early"):
        samples(SplitGibbs(noise=NOISE), 50, operator=early)
    assert samples(SplitGibbs(noise=NOISE), 50).notes == ()


def test_weighed_split_gibbs_estimates_the_evidence_without_bias(monkeypatch):
    """400 problems, 64 samples; the distance to `z` left out of the exponent, it is off."""
    method = SplitGibbs(noise=NOISE, rho=0.3, anneal=10, steps=2, weigh_above=0.0, max_batch=10**6)
    off = samples(method, 64, Y.expand(400, 1)).log_z - LOG_Z
    one = torch.ones(1).double()
    assert accepts(z_tests(off.exp()[:, None], one))
    assert off.std() < 0.3
    right = SplitGibbs._fit

    def wrong(self, problem, x, y, rho):
        z = problem.operator.prox_l2(x, y, (rho / SIGMA) ** 2) if rho else x
        return right(self, problem, z, y, 0.0)

    monkeypatch.setattr(SplitGibbs, "_fit", wrong)
    assert rejects(z_tests((samples(method, 64, Y.expand(400, 1)).log_z - LOG_Z).exp()[:, None], one))


@pytest.mark.parametrize(
    "operator", [A, Inpainting(item_shape=(2,), mask=TensorMask(observed=torch.tensor([True, False])))]
)
def test_the_weights_of_split_gibbs_are_ratios_of_gaussian_densities(operator):
    """`N(y; A x, sigma^2 I + rho^2 A A')` by a dense covariance, but for what is the same for all x; at rho = 0 too."""
    x, dense = normals(6, 2, seed=1), MATRIX if operator is A else doubles(1.0, 0.0)[None]
    y = operator.A(normals(1, 2, seed=2)).expand(6, *operator.A(x).shape[1:]) + 0.3
    problem = Problem(model=MODEL, operator=operator, noise=NOISE, y=y[:1], generator=None, flow_steps=1, max_batch=10)
    for rho in (0.0, 0.2, 1.3):
        fit = SplitGibbs(noise=NOISE)._fit(problem, x, y, rho)[0][:, 0]
        law = torch.distributions.MultivariateNormal(y[0, :1], SIGMA**2 * torch.eye(1) + rho**2 * dense @ dense.T)
        expected = law.log_prob(x @ dense.T)
        assert_close(fit - fit[0], expected - expected[0])
        assert fit.std() > 0.1


def test_nested_smc_estimates_the_evidence_without_bias():
    """N = 64, K = 20, J = 16, 400 problems at once: mean of `Zhat / Z` 1, small scatter; without annealing more of it."""
    method = NestedSMC(noise=NOISE, steps=20, draws=16, prior_variance=3.0, max_batch=10**6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegeneracyWarning)
        found, plain = (
            samples(m, 64, Y.expand(400, 1), seed=1).log_z - LOG_Z for m in (method, replace(method, anneal=0.0))
        )
    for log_ratio in (found, plain):
        ratio = log_ratio.exp()
        assert abs(ratio.mean() - 1) < 3 * ratio.std() / 20
    assert found.std() < 0.3
    assert found.std() < plain.std()


def test_nested_smc_has_the_posterior_with_one_draw_each():
    """Exact in the number of particles for any J, J = 1 too: weighted means of 20 runs, each problem by itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegeneracyWarning)
        found = samples(NestedSMC(noise=NOISE, steps=15, draws=1, prior_variance=3.0), 2000, Y.expand(20, 1))
    means = found.mean
    assert accepts(z_tests(means, TRUTH.mean))
    assert rejects(z_tests(means, MIXTURE.mean))
    unweighted = found.x.mean(0)
    assert (unweighted.mean(0) - TRUTH.mean).norm() > (means.mean(0) - TRUTH.mean).norm()


# --- the look-ahead gradient


@pytest.mark.parametrize("draws", [16, 64])
def test_the_gradient_from_draws(draws):
    """At `x_tau = (.4, -.7)`, alpha^2 = .5, 2000 times: unbiased to .03 with 64 draws."""
    tau, x_tau = tau_of(0.5), doubles(0.4, -0.7)
    exact = doubles(0.91474041, -0.49837737)
    problem = problem_of(MODEL)
    x_0 = problem.draw(x_tau.expand(2000, 2), tau, draws)
    scale = SCHEDULE.alpha(tau) / SCHEDULE.sigma(tau) ** 2
    found = scale * shift_of_draws(x_0, problem.log_potential(x_0))
    bias, rmse = (found.mean(0) - exact).abs().max(), (found - exact).square().sum(1).mean().sqrt()
    assert bias < (0.03 if draws == 64 else 0.1)
    assert rmse < (0.4 if draws == 64 else 0.9)


def problem_of(model, y=Y, operator=A):
    return Problem(
        model=model, operator=operator, noise=NOISE, y=y, generator=generator(0), flow_steps=1, max_batch=10**6
    )


def flow(scaling=GaussianScaling()):
    with seeded(0):
        network = randomise(TINY_MLP.build((2,), inputs=2, times=3).double())
    return PosteriorFlow(network, SCHEDULE, scaling, (2,)).double()


def test_the_gradient_through_draws_is_a_central_difference():
    model, tau, x = flow(), doubles(0.4)[0], normals(3, 2, seed=1)
    problem, z = problem_of(model, Y.expand(3, 1)), normals(5, 3, 2, seed=2)

    def value(at):
        with torch.no_grad():
            return particles.log_mean_exp(problem.log_potential(problem.push(at, tau, z)))

    found = gradient_through_draws(problem, x, tau, z)
    for i in range(2):
        step = torch.zeros(2).double()
        step[i] = 1e-5
        assert_close(found[:, i], (value(x + step) - value(x - step)) / 2e-5, rtol=1e-6, atol=1e-8)


# --- chains in the noise of a draw


@pytest.mark.parametrize("chain", [PCN(length=60, size=0.5), MALA(length=60, size=0.7)], ids=["PCN", "MALA"])
def test_a_chain_has_the_law_of_the_noise_given_y(chain):
    """For a draw `2 z + 1` seen through noise of deviation .8 the law is Gaussian; without Metropolis' step it is another."""
    n, target = 6000, 0.3
    problem = problem_of(flow())

    def value(z):
        return 2 * z + 1, -0.5 * ((2 * z[:, 0] + 1 - target) / 0.8) ** 2

    z = torch.randn(n, 1, generator=generator(3), dtype=torch.float64)
    x_0, accepted = chain.run(problem, value, z)
    assert 0.1 < accepted.mean() < 0.99
    precision = 1 + 4 / 0.64
    mean, variance = 2 * (2 * (target - 1) / 0.64) / precision + 1, 4 / precision
    moments = torch.cat([x_0 - mean, (x_0 - mean).square()], dim=1)
    assert accepts(z_tests(moments, doubles(0.0, variance)))
    assert rejects(z_tests(moments, doubles(0.0, 1.2 * variance)))

    class Always(type(chain)):
        def propose(self, problem, value, z):
            proposal, _ = super().propose(problem, value, z)
            return proposal, torch.full((len(z),), 1e9, dtype=torch.float64)

    wrong, _ = Always(length=60, size=chain.size).run(problem, value, z)
    assert rejects(z_tests(torch.cat([wrong - mean, (wrong - mean).square()], dim=1), doubles(0.0, variance)))


def test_sir_with_a_chain_agrees_with_sir_of_many_draws():
    """On a network's draws: both have the law `q(x_0 | x_tau) p(y | x_0)` at one level; the chain alone, short, has not."""
    model = flow()
    many = DecoupledSIR(noise=NOISE, levels=1, draws=300)
    chained = DecoupledSIR(noise=NOISE, levels=1, draws=2, chain=PCN(length=60, size=0.5))
    a, b = (samples(m, 1500, model=model, seed=s).x[:, 0] for m, s in ((many, 0), (chained, 1)))
    floor = SlicedWasserstein()(a, samples(many, 1500, model=model, seed=2).x[:, 0])["sliced_w2"]
    assert SlicedWasserstein()(a, b)["sliced_w2"] < 2 * floor + 0.02
    short = samples(replace(chained, chain=PCN(length=1, size=0.1)), 1500, model=model, seed=1).x[:, 0]
    assert SlicedWasserstein()(a, short)["sliced_w2"] > 3 * floor
    with pytest.raises(UserError, match="no function of Gaussian noise"):
        samples(chained, 4)


# --- heuristics, and what they get wrong


def test_null_space_keeps_the_observation_and_the_wrong_weights():
    """Noiseless inpainting, 200 steps: about .574/.426 on the two live modes, where the truth is .029/.971."""
    mask = Inpainting(item_shape=(2,), mask=TensorMask(observed=torch.tensor([True, False])))
    y = doubles(0.5, 0.0)[None]
    found = NullSpace(noise=NoNoise(), steps=200)(MODEL, mask, y, 2000, generator(0)).x[:, 0]
    assert (found[:, 0] - 0.5).abs().max() < 1e-12
    upper = (found[:, 1] > 0).double().mean()
    assert 0.5 < upper < 0.65
    softened = NullSpace(noise=Gaussian(sigma=1e-4), steps=50)(MODEL, mask, y, 500, generator(0)).x[:, 0]
    assert (softened[:, 0] - 0.5).abs().max() < 1e-2
    assert (softened[:, 1] > 0).double().mean() > 0.3


def test_the_heuristics_miss_the_posterior():
    """Guards on the documentation: DPS and null-space projection are far off where SIR of draws is near (floor .05)."""
    assert sliced(samples(NullSpace(noise=NOISE, steps=50), 1000).x[:, 0]) > 0.3
    assert sliced(samples(DPS(noise=NOISE, steps=100), 500).x[:, 0]) > 0.3
    assert sliced(samples(LookAhead(noise=NOISE, steps=40, draws=64), 1000).x[:, 0]) < 0.3


def test_draws_cover_and_means_do_not():
    """90 % intervals of split Gibbs, 3000 problems, 40 samples each: .87 to .91 with draws, at most .82 with the mean."""
    n = 3000
    x_0 = MIXTURE.sample((n,), generator(5))
    y = x_0 @ MATRIX.T + SIGMA * torch.randn(n, 1, generator=generator(6), dtype=torch.float64)
    method = SplitGibbs(noise=NOISE, max_batch=10**6)
    covered = {
        name: IntervalCoverage()(samples(method, 40, y, model).unweighted(generator(7)), x_0)["coverage_90"]
        for name, model in (("draws", MODEL), ("mean", MEAN))
    }
    assert 0.87 <= covered["draws"] <= 0.91
    assert covered["mean"] <= 0.82


# --- what all methods share

METHODS = [
    NullSpace(noise=NOISE, steps=3),
    DPS(noise=NOISE, steps=3),
    LookAhead(noise=NOISE, steps=3, draws=4),
    DecoupledSIR(noise=NOISE, levels=2, draws=4),
    SplitGibbs(noise=NOISE, anneal=2, steps=2),
    SplitGibbs(noise=NOISE, anneal=2, steps=2, weigh_above=0.0, resample=0.9),
    NestedSMC(noise=NOISE, steps=3, draws=4),
]


@pytest.mark.filterwarnings("ignore::fewstep.inverse.DegeneracyWarning")
@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("model", ["exact", "flow"])
def test_shapes_weights_and_the_generators_of_problems(method, model):
    """With a generator for each problem, neither the other problems nor the memory bound change a sample."""
    model = MODEL if model == "exact" else flow(IdentityScaling())
    y = doubles(0.5, -1.0, 2.0)[:, None]
    found = method(model, A, y, 5, generators(1, 2, 3))
    assert found.x.shape == (5, 3, 2)
    assert found.x.isfinite().all()
    assert found.log_w.shape == (5, 3)
    assert_close(found.log_w.exp().sum(0), torch.ones(3).double())
    assert found.ess.shape == (3,)
    assert found.nfe > 0
    assert (found.log_z is not None) == (isinstance(method, NestedSMC) or getattr(method, "weigh_above", 1) == 0)
    small = replace(method, max_batch=5 * method.held)(model, A, y, 5, generators(1, 2, 3))
    assert_close(small.x, found.x, rtol=1e-6, atol=1e-6)
    alone = method(model, A, y[1:2], 5, generators(2))
    assert_close(alone.x[:, 0], found.x[:, 1], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(method(model, A, y, 5, generators(4, 5, 6)).x, found.x)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_bad_input_is_told(method):
    with pytest.raises(UserError, match="NaN"):
        method(MODEL, A, doubles(math.nan)[None], 2)
    with pytest.raises(UserError, match="give \\(batch, 1\\)"):
        method(MODEL, A, doubles(0.5, 0.5)[None], 2)
    with pytest.raises(UserError, match="counts from 1"):
        method(MODEL, A, Y, 0)
    with pytest.raises(UserError, match="model of q"):
        method(MeanFlow(nn.Identity(), (2,)), A, Y, 2)
    clip = HDRClip(item_shape=(2,))
    if method.linear_only:
        with pytest.raises(UserError, match="needs a linear operator"):
            method(MODEL, clip, doubles(0.5, 0.5)[None], 2)
    with pytest.raises(UserError, match="2 generators for 1 problems"):
        method(MODEL, A, Y, 2, generators(1, 2))
    if isinstance(method, NullSpace):
        with pytest.raises(UserError, match="knows Gaussian noise and none"):
            replace(method, noise=Poisson(gain=9.0))(MODEL, A, Y, 2)
    if isinstance(method, SplitGibbs):
        with pytest.raises(UserError, match="Gaussian noise"):
            replace(method, noise=NoNoise())(MODEL, A, Y, 2)
    if isinstance(method, DecoupledSIR | NestedSMC | LookAhead):
        with pytest.raises(UserError, match="no likelihood"):
            replace(method, noise=NoNoise())(MODEL, A, Y, 2)


def test_nothing_observed_gives_the_prior_and_everything_the_truth():
    blind = Inpainting(item_shape=(2,), mask=TensorMask(observed=torch.tensor([False, False])))
    whole = Inpainting(item_shape=(2,), mask=TensorMask(observed=torch.tensor([True, True])))
    y = doubles(0.4, -1.2)[None]
    for method in (
        NullSpace(noise=NoNoise(), steps=8),
        LookAhead(noise=NOISE, steps=8, draws=4),
        DecoupledSIR(noise=NOISE, levels=2, draws=4),
        SplitGibbs(noise=NOISE, rho=0.5, anneal=20, steps=400),
        SplitGibbs(noise=NOISE, rho=0.5, anneal=20, steps=400, weigh_above=0.0),
        NestedSMC(noise=NOISE, steps=8, draws=4),
    ):
        found = samples(method, 2000, y, operator=blind)
        assert sliced(found.x[:, 0], MIXTURE) < 0.2, method
        assert found.log_z is None or found.log_z.abs().max() < 1e-12  # that nothing is observed is certain
    exact = NullSpace(noise=NoNoise(), steps=8)(MODEL, whole, y, 50, generator(0))
    assert_close(exact.x[:, 0], y.expand(50, 2))


@pytest.mark.filterwarnings("ignore::fewstep.inverse.DegeneracyWarning")
@pytest.mark.parametrize(
    "method",
    [NestedSMC(noise=NOISE, steps=10, draws=4, prior_variance=3.0), LookAhead(noise=NOISE, steps=4)],
    ids=lambda m: type(m).__name__,
)
def test_a_problem_that_goes_badly_changes_no_other(method):
    """One measurement far out, whose particles are resampled at every step."""
    y = doubles(0.5, -6.0, 2.0, 9.0)[:, None]
    together = method(MODEL, A, y, 16, generators(1, 2, 3, 4))
    for i in range(4):
        alone = method(MODEL, A, y[i : i + 1], 16, generators(i + 1))
        assert_close(alone.x[:, 0], together.x[:, i])
        assert_close(alone.log_w[:, 0], together.log_w[:, i])


@pytest.mark.parametrize("model", ["exact", "flow"])
@pytest.mark.parametrize(
    "method",
    [
        NestedSMC(noise=Poisson(gain=20.0), steps=4, draws=2, anneal=0.0),
        DecoupledSIR(noise=Poisson(gain=20.0), levels=2, draws=2),
        LookAhead(noise=Poisson(gain=20.0), steps=3, draws=2),
    ],
    ids=lambda m: type(m).__name__,
)
def test_draws_that_cannot_explain_y_are_no_numbers_lost(model, method):
    """Photons where a draw is dark: likelihood 0. Samples stay finite; impossible ones have no weight, or a note says so."""
    model = MODEL if model == "exact" else flow()
    whole = Inpainting(item_shape=(2,), mask=TensorMask(observed=torch.tensor([True, True])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegeneracyWarning)
        found = method(model, whole, doubles(0.6, 0.9)[None], 12, generator(0))
    assert found.x.isfinite().all()
    assert not found.log_w.isnan().any()
    assert not found.ess.isnan().any()
    if isinstance(method, NestedSMC):
        assert not found.log_z.isnan().any()
        impossible = (found.x <= -1).any(-1)
        assert found.log_w[impossible].isneginf().all()
    if isinstance(method, DecoupledSIR):
        assert found.notes


def test_split_gibbs_takes_its_rho_from_the_noise():
    """Everything observed, noise of .05: intervals cover; with a rho of twice the noise they are far too wide, and it says so."""
    whole = Inpainting(item_shape=(2,), mask=TensorMask(observed=torch.tensor([True, True])))
    noise, x_0 = Gaussian(sigma=0.05), MIXTURE.sample((300,), generator(0))
    y = noise.sample(x_0, generator(1))
    fine = SplitGibbs(noise=noise)(MODEL, whole, y, 31, generator(2))
    assert abs(IntervalCoverage()(fine.x, x_0)["coverage_90"] - 0.9) < 0.04
    assert fine.notes == ()
    with pytest.warns(DegeneracyWarning, match="take a smaller rho"):
        coarse = SplitGibbs(noise=noise, rho=0.1)(MODEL, whole, y, 31, generator(2))
    assert IntervalCoverage()(coarse.x, x_0)["coverage_90"] > 0.97


def test_equal_samples_count_once():
    """Four samples of equal weight, two of them one and the same: three different ones of weights 1/2, 1/4, 1/4."""
    x = doubles(1, 2, 1, 3)[:, None, None].expand(4, 2, 3).clone()
    x[:, 1] += normals(4, 3, seed=0)  # in the second problem all differ
    found = _put_together(torch.full((4, 2), 0.25).double().log(), _equal(x))
    assert_close(particles.effective_sample_size(found), doubles(1 / (1 / 4 + 2 / 16), 4))
    assert_close(found.exp().sum(0), doubles(1, 1))


def test_a_collapse_to_one_ancestor_is_told():
    """Resampled to copies of one particle, the samples have equal weights and are one."""
    sharp = NestedSMC(noise=Gaussian(sigma=0.002), steps=2, draws=4, anneal=0.0)
    with pytest.warns(DegeneracyWarning, match="one sample carries"):
        found = sharp(MODEL, A, Y, 20, generator(0))
    assert len(found.x[:, 0].unique(dim=0)) == 1
    assert found.ess.item() == pytest.approx(1)
    assert particles.effective_sample_size(found.log_w).item() == pytest.approx(20)  # the weights alone do not tell


def test_degeneracy_is_told():
    """Precise observations: few draws explain them, and the methods say so and what to change."""
    sharp = Gaussian(sigma=0.002)
    with pytest.warns(DegeneracyWarning, match="take more draws or levels, or a chain"):
        found = samples(DecoupledSIR(noise=sharp, levels=2, draws=8), 50)
    assert any("more than half" in note for note in found.notes)
    whole = Inpainting(item_shape=(2,), mask=TensorMask(observed=torch.tensor([True, True])))
    with pytest.warns(DegeneracyWarning, match="at some level"):  # at the last level alone nothing is wrong
        samples(DecoupledSIR(noise=Gaussian(sigma=0.1), draws=64), 50, doubles(0.0, -2.0)[None], operator=whole)
    for k in (50, 6):
        with pytest.warns(DegeneracyWarning, match="take more samples or draws"):
            samples(NestedSMC(noise=sharp, steps=4, draws=2, anneal=0.0, resample=0.0), k)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DegeneracyWarning)
        assert samples(DecoupledSIR(noise=NOISE, draws=64), 50).notes == ()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: NullSpace(noise=NOISE, steps=0),
        lambda: DPS(noise=NOISE, step=-1.0),
        lambda: LookAhead(noise=NOISE, draws=1),
        lambda: DecoupledSIR(noise=NOISE, levels=0),
        lambda: SplitGibbs(noise=NOISE, rho=0.0),
        lambda: SplitGibbs(noise=NOISE, rho=2.0, rho_start=1.0),
        lambda: NestedSMC(noise=NOISE, resample=1.5),
        lambda: NestedSMC(noise=NOISE, prior_variance=0.0),
        lambda: PCN(size=1.5),
        lambda: MALA(length=0),
        lambda: SplitGibbs(noise=NOISE, max_batch=0),
        lambda: SplitGibbs(noise=NOISE, steps=0),
        lambda: SplitGibbs(noise=NOISE, weigh_above=-0.1),
        lambda: SplitGibbs(noise=NOISE, weigh_above=math.nan),
        lambda: SplitGibbs(noise=NOISE, resample=1.5),
        lambda: NestedSMC(noise=NOISE, draws=0),
    ],
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(UserError):
        wrong()


def test_every_method_says_what_it_is():
    """Exact, consistent or heuristic: a reader is told in its docstring."""
    for method in (NullSpace, DPS, LookAhead, DecoupledSIR, SplitGibbs, NestedSMC):
        assert issubclass(method, InverseMethod)
        assert "*Consistent*" in method.__doc__ or "*Heuristic*" in method.__doc__
