"""Means in place of draws: DDPM and DDIM on every posterior model, with the moments that Gaussian data gives them."""

import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from fewstep import sample
from fewstep.errors import UserError
from fewstep.models import Denoiser, EvaluationCounter, MeanOnly, MixturePosterior, PosteriorFlow
from fewstep.samplers import Ancestral, OfMeans, ProbabilityFlow, ReverseSDE
from fewstep.scaling import EpsilonScaling, GaussianScaling
from fewstep.times import LogSNRGrid, UniformGrid
from problems import SCHEDULE, doubles, gaussian, generator, normals, ring, t2, tiny_network
from stats import accepts, ks, mean_and_covariance, rejects

PROBLEMS = {"t2": t2(), "ring": ring()}
EYE = torch.eye(2, dtype=torch.float64)
MEAN, STD = doubles(1.0, -0.5), 0.6
SAMPLERS = [Ancestral(3), Ancestral(3, kernel=0.0), Ancestral(3, kernel=1.0), ProbabilityFlow(3), ReverseSDE(3)]
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=str)


def posterior_flow():
    network, item_shape = tiny_network("mlp", inputs=2, times=3)
    return PosteriorFlow(network, SCHEDULE, GaussianScaling(), item_shape).double()


def denoiser():
    network, item_shape = tiny_network("mlp", inputs=1, times=1)
    return Denoiser(network, SCHEDULE, EpsilonScaling(), item_shape).double()


@every_sampler
def test_on_a_denoiser_nothing_changes(sampler):
    model, noise = denoiser(), normals(10, 3, seed=0)
    assert torch.equal(OfMeans(sampler=sampler)(model, noise, generator(1)), sampler(model, noise, generator(1)))


@every_sampler
@pytest.mark.parametrize("problem", PROBLEMS)
def test_on_an_exact_model_it_is_the_sampler_on_means(problem, sampler):
    """Bit for bit; for the ancestral sampler it is not what draws give, for the others they are no draws to replace."""
    model, noise = MixturePosterior(PROBLEMS[problem], SCHEDULE), normals(10, 2, seed=2)
    of_means = OfMeans(sampler=sampler)(model, noise, generator(3))
    assert torch.equal(of_means, sampler(MeanOnly(model), noise, generator(3)))
    assert torch.equal(of_means, sampler(model, noise, generator(3))) is not isinstance(sampler, Ancestral)


def gains(steps, grid, ddim):
    """Mean and variance of a sample's first component for `N(MEAN, STD^2 I)`, started from N(0, I): DDIM or DDPM.

    With `E[x_0 | x] = m + g (x - alpha m)` the states stay Gaussian, and each step is affine with known noise.
    """
    m, mean, variance = MEAN[0].item(), 0.0, 1.0
    for tau, s in pairwise(grid(steps, SCHEDULE).tolist()):
        (alpha, sigma), (alpha_s, sigma_s) = (
            (math.exp(log), math.sqrt(-math.expm1(2 * log))) for log in (-0.05 * q - 4.975 * q * q for q in (tau, s))
        )
        g = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        v = 1 - (alpha / alpha_s) ** 2
        if ddim:
            on_x_0, on_x, noise = alpha_s - sigma_s / sigma * alpha, sigma_s / sigma, 0.0
        else:
            on_x_0, on_x = alpha_s * v / sigma**2, alpha / alpha_s * sigma_s**2 / sigma**2
            noise = sigma_s**2 * v / sigma**2
        mean = on_x_0 * (m + g * (mean - alpha * m)) + on_x * mean
        variance = (on_x_0 * g + on_x) ** 2 * variance + noise
    return mean, variance


@pytest.mark.parametrize("grid", [UniformGrid(), LogSNRGrid()], ids=str)
@pytest.mark.parametrize("ddim", [False, True], ids=["ddpm", "ddim"])
@pytest.mark.parametrize("steps", [1, 2, 4, 16, 64])
def test_gaussian_data_has_the_moments_of_the_recursion(steps, ddim, grid):
    """At every number of steps; not 1.2 times the variance nor, at four steps, the law of the data or of the other sampler."""
    sampler = OfMeans(sampler=Ancestral(steps, grid=grid, kernel=1.0 if ddim else "bridge"))
    model = MixturePosterior(gaussian(MEAN, STD), SCHEDULE)
    x_0 = sampler(model, normals(20_000, 2, seed=4), generator(5))
    mean, variance = gains(steps, grid, ddim)
    law = doubles(mean, mean * MEAN[1] / MEAN[0]), variance * EYE
    assert accepts(mean_and_covariance(x_0, *law))
    assert rejects(mean_and_covariance(law[0] + 1.2**0.5 * (x_0 - law[0]), *law))
    if steps == 4:
        assert rejects(mean_and_covariance(x_0, MEAN, STD**2 * EYE))
        assert rejects(mean_and_covariance(x_0, law[0], gains(steps, grid, not ddim)[1] * EYE))


@pytest.mark.parametrize("steps", [1, 2, 4, 16, 64])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_draws_are_exact_at_every_number_of_steps_and_means_are_not(problem, steps):
    """The same loop from a true state: the law of the data with draws, another one with means up to 16 steps at least."""
    mixture = PROBLEMS[problem]
    model, first = MixturePosterior(mixture, SCHEDULE), mixture.affine(EYE[:1], torch.zeros(1, 1).double())
    x_1 = mixture.marginal(doubles(1.0)[0], SCHEDULE).sample((8000,), generator(12))

    def p_value(sampler):
        x_0 = sampler(model, x_1, generator(13))
        return min(mean_and_covariance(x_0, mixture.mean, mixture.covariance), ks(x_0[:, :1], first))

    assert accepts(p_value(Ancestral(steps)))
    if steps <= 16:
        assert rejects(p_value(OfMeans(sampler=Ancestral(steps))))
        assert rejects(p_value(OfMeans(sampler=Ancestral(steps, kernel=1.0))))


@pytest.mark.parametrize("draws", [1, 3])
def test_a_mean_flow_of_the_posterior_gives_its_mean_in_one_evaluation_a_draw(draws):
    """`u(z, 1, 1 | x_tau, tau)` and nothing else is asked for, `draws` times for each item and step."""
    model, times = posterior_flow(), []
    u = model.u
    model.u = lambda z, r, t, *held: times.append((r, t)) or u(z, r, t, *held)
    with EvaluationCounter(model) as counter:
        OfMeans(sampler=Ancestral(4), draws=draws)(model, normals(10, 3, seed=6), generator(7))
    assert (counter.calls, counter.items) == (4, 4 * 10 * draws)
    for sampler, cost in ((ProbabilityFlow(4, 1), 4), (ProbabilityFlow(4), 7), (ReverseSDE(4), 4)):
        with EvaluationCounter(model) as counter:
            OfMeans(sampler=sampler, draws=draws)(model, normals(10, 3, seed=6), generator(7))
        assert (counter.calls, counter.items) == (cost, cost * 10 * draws)
    assert all((r == 1).all() and (t == 1).all() for r, t in times)
    times.clear()
    Ancestral(4)(model, normals(10, 3, seed=6), generator(7))
    assert all((r == 0).all() and (t == 1).all() for r, t in times)


def test_more_draws_vary_less():
    """The estimate's variance falls as 1 / draws; with one draw it is not that of sixteen."""
    model, x_1 = posterior_flow(), normals(1, 3, seed=8).expand(4000, 3)

    def spread(draws):
        return OfMeans(sampler=Ancestral(1), draws=draws)(model, x_1, generator(9)).var(0).sum().item()

    assert spread(1) / spread(16) == pytest.approx(16, rel=0.15)


@every_sampler
def test_samplers_of_means_run_on_every_posterior_model(sampler):
    for model in (posterior_flow(), MeanOnly(posterior_flow()), MixturePosterior(t2(), SCHEDULE)):
        noise = normals(6, *model.item_shape, seed=10)
        for chosen in (sampler, OfMeans(sampler=sampler), OfMeans(sampler=sampler, draws=2)):
            x_0 = chosen(model, noise, generator(11))
            assert x_0.shape == noise.shape
            assert x_0.isfinite().all()
            assert not x_0.requires_grad


def test_numbers_of_steps_reach_the_sampler_inside():
    of_means = OfMeans(sampler=Ancestral(4, grid=LogSNRGrid(), kernel=1.0), draws=2)
    changed = of_means.with_steps(7)
    assert changed == OfMeans(sampler=Ancestral(7, grid=LogSNRGrid(), kernel=1.0), draws=2)
    with pytest.raises(UserError, match="flow_steps"):
        of_means.with_steps(7, 3)  # a mean takes none
    assert of_means.with_steps() == of_means
    assert OfMeans(sampler=OfMeans(sampler=ReverseSDE(2))).with_steps(5).sampler.sampler == ReverseSDE(5)
    with pytest.raises(UserError, match="flow_steps"):
        OfMeans(sampler=ProbabilityFlow()).with_steps(flow_steps=2)
    with pytest.raises(UserError, match="steps"):
        of_means.with_steps(0)
    model = MixturePosterior(t2(), SCHEDULE)
    given = sample(model, 5, steps=7, sampler=OfMeans(), seed=1)
    assert_close(given, sample(model, 5, sampler=OfMeans(sampler=Ancestral(7)), seed=1), rtol=0, atol=0)


@pytest.mark.parametrize("draws", [0, -1])
def test_what_is_refused(draws):
    with pytest.raises(UserError, match="at least 1 draw"):
        OfMeans(draws=draws)
