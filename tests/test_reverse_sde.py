"""The reverse SDE in small steps: weak order 1, its exact moments on Gaussian data, and the law of pairs of states."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fewstep.bridge import bridge_c
from fewstep.draws import item_generators, normal_like
from fewstep.errors import UserError
from fewstep.models import EvaluationCounter, MeanOnly, MixturePosterior, PosteriorFlow
from fewstep.posterior import score
from fewstep.samplers import Ancestral, ReverseSDE
from fewstep.scaling import GaussianScaling
from fewstep.times import CustomGrid, LogSNRGrid, UniformGrid
from fewstep.transition import moments
from problems import SCHEDULE, doubles, gaussian, generator, normals, ring, t2, tau_of, tiny_network
from stats import accepts, ks, mean_and_covariance, rejects, z_tests

PROBLEMS = {"t2": t2(), "ring": ring()}
EYE = torch.eye(2, dtype=torch.float64)
MEAN, STD = doubles(1.0, -0.5), 0.6
GAUSSIAN = MixturePosterior(gaussian(MEAN, STD), SCHEDULE)
NOISE = "fewstep.samplers.reverse_sde.normal_like"
every_problem = pytest.mark.parametrize("problem", PROBLEMS)
both = pytest.mark.parametrize("exponential", [True, False], ids=["exponential", "euler-maruyama"])


def order(steps, values):
    """The exponent p of a fit `error = C N^-p`."""
    return -np.polyfit(np.log(steps), np.log(np.abs(values)), 1)[0]


def moments_of(sampler, monkeypatch, scale=1.0):
    """The mean and variance of the first component of a sample of Gaussian data, without a draw.

    The sample is affine in the N noises: item 0 sees zeros, item j nothing but a one in place j, so that the coefficients
    are read off. `scale` multiplies the deviation of the noise of the steps.
    """
    ones = torch.cat([torch.zeros(1, sampler.steps), torch.eye(sampler.steps)]).double()[:, :, None].expand(-1, -1, 2)
    place = iter(range(1, sampler.steps))
    with monkeypatch.context() as patch:
        patch.setattr(NOISE, lambda x, source: scale * ones[:, next(place)])
        x_0 = sampler(GAUSSIAN, ones[:, 0])[:, 0]
    return x_0[0].item(), (x_0[1:] - x_0[0]).square().sum().item()


def recursion(sampler):
    """The same two numbers from the score `-(x - alpha m) / (alpha^2 s^2 + sigma^2)` of the marginals, step by step."""
    mean, variance = 0.0, 1.0
    for tau, s in pairwise(sampler.grid(sampler.steps, SCHEDULE).tolist()):
        log_alpha, log_alpha_s = (-0.5 * (0.1 * q + 0.5 * 19.9 * q * q) for q in (tau, s))
        alpha, beta, m = math.exp(log_alpha), 0.1 + 19.9 * tau, MEAN[0].item()
        total = alpha**2 * STD**2 + 1 - alpha**2
        if s == 0:
            gain = alpha * STD**2 / total
            return m + gain * (mean - alpha * m), gain**2 * variance
        if sampler.exponential:
            e = math.exp(log_alpha_s - log_alpha)
            factor, pull, noise = e, 2 * (e - 1), e * e - 1
        else:
            factor, pull, noise = 1 + beta * (tau - s) / 2, beta * (tau - s), beta * (tau - s)
        mean, variance = factor * mean - pull * (mean - alpha * m) / total, (factor - pull / total) ** 2 * variance
        variance += noise
    raise AssertionError("the grid ends at 0")


GRIDS = [UniformGrid(), LogSNRGrid(tau_min=0.01)]


@both
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 4, 16, 64])
def test_gaussian_data_has_the_moments_of_the_recursion(steps, grid, exponential, monkeypatch):
    """Exactly, and in samples, which have neither a variance 1.2 times larger nor, at four steps, the data's."""
    sampler = ReverseSDE(steps, exponential, grid)
    mean, variance = moments_of(sampler, monkeypatch)
    assert_close((mean, variance), recursion(sampler), rtol=1e-9, atol=1e-10)
    wide = moments_of(sampler, monkeypatch, scale=1.2**0.5)
    if steps > 1:
        assert abs(wide[1] / variance - 1) > 0.01
    x_0 = sampler(GAUSSIAN, normals(20_000, 2, seed=13), generator(14))
    # the second component has the same gain and another mean: the mean is affine in m
    law = doubles(mean, mean * MEAN[1] / MEAN[0]), variance * EYE
    assert accepts(mean_and_covariance(x_0, *law))
    assert rejects(mean_and_covariance(law[0] + 1.2**0.5 * (x_0 - law[0]), *law))
    if steps == 4:
        assert rejects(mean_and_covariance(x_0, MEAN, STD**2 * EYE))


@both
def test_weak_order_one_on_gaussian_data(exponential, monkeypatch):
    """The error of the variance, without any noise of sampling, falls as 1/N; with noise of 1.2 times the variance it stays."""
    steps = [32, 64, 128]

    def errors(scale=1.0):
        return [moments_of(ReverseSDE(n, exponential), monkeypatch, scale)[1] - STD**2 for n in steps]

    assert abs(order(steps, errors()) - 1) < 0.15
    wide = errors(1.2**0.5)
    assert order(steps, wide) < 0.5
    assert wide[-1] > 0.15 * STD**2


@both
@every_problem
def test_one_step_has_weak_order_one_on_mixtures(problem, exponential, monkeypatch):
    """One step's mean and covariance miss those of the reverse SDE by h^2, which is what order 1 of all the steps needs.

    The truth is the bridge around the posterior: `E[x_s|x_tau]` and `Cov[x_s|x_tau]` in closed form. With noise of 1.2
    times the variance the covariance misses by h.
    """
    mixture, sampler = PROBLEMS[problem], ReverseSDE(4, exponential)
    tau, steps = doubles(0.4)[0], 0.4 * 2.0 ** -torch.arange(7, 12).double()
    x_tau = mixture.marginal(tau, SCHEDULE).sample((40,), generator(1))
    posterior, model = mixture.posterior(x_tau, tau, SCHEDULE), MixturePosterior(mixture, SCHEDULE)
    slope = score(posterior.mean, x_tau, tau, SCHEDULE)

    def errors(scale):
        of_mean, of_covariance = [], []
        for h in steps:
            s = tau - h
            a, v = moments(s, tau, SCHEDULE)
            weight = SCHEDULE.alpha(s) * v / SCHEDULE.sigma(tau) ** 2
            at_tau = a * SCHEDULE.sigma(s) ** 2 / SCHEDULE.sigma(tau) ** 2
            mean = weight * posterior.mean + at_tau * x_tau
            spread = SCHEDULE.sigma(s) ** 2 * v / SCHEDULE.sigma(tau) ** 2
            covariance = weight**2 * posterior.covariance + spread * EYE
            ends = []
            for xi in (0.0, 1.0):
                monkeypatch.setattr(NOISE, lambda x, source, xi=xi: torch.full_like(x, xi))
                ends.append(sampler._step(x_tau, slope, s, tau, model, None))
            std = scale * (ends[1] - ends[0])
            of_mean.append((ends[0] - mean).square().mean().sqrt().item())
            of_covariance.append((std[:, :, None] ** 2 * EYE - covariance).square().mean().sqrt().item())
        return of_mean, of_covariance

    of_mean, of_covariance = errors(1.0)
    assert abs(order(1 / steps, of_mean) - 2) < 0.1
    assert abs(order(1 / steps, of_covariance) - 2) < 0.1
    _, of_covariance = errors(1.2**0.5)
    assert abs(order(1 / steps, of_covariance) - 1) < 0.1


@both
def test_weak_order_one_of_the_whole_path_on_a_mixture(exponential, monkeypatch):
    """`E[-log p(X)]` on T2, along one Brownian path at every number of steps: what N steps differ from 2 N halves each time.

    The differences of pairs have little variance. With noise of 1.2 times the variance, what remains does not fall.
    """
    n, steps, mixture = 3000, [16, 32, 64, 128], PROBLEMS["t2"]
    model, x_1 = MixturePosterior(mixture, SCHEDULE), normals(n, 2, seed=1)
    increments = normals(steps[-1], n, 2, seed=2)
    entropy = -mixture.log_prob(mixture.sample((200_000,), generator(3))).mean()

    def surprise(count, scale=1.0):
        joined = increments.reshape(count, -1, n, 2)
        path = iter(scale * joined.sum(1) / joined.shape[1] ** 0.5)
        monkeypatch.setattr(NOISE, lambda x, source: next(path))
        return -mixture.log_prob(ReverseSDE(count, exponential)(model, x_1))

    values = torch.stack([surprise(count) for count in steps], dim=1)
    change = values[:, :-1] - values[:, 1:]
    assert rejects(z_tests(change[:, :2], doubles(0, 0)))  # there is an error to speak of
    assert abs(order(steps[:-1], change.mean(0).tolist()) - 1) < 0.4
    left = (values[:, -1] - entropy).mean().abs()
    assert left < 1.5 * change[:, -1].mean() + 4 * values[:, -1].std() / n**0.5
    assert (surprise(steps[-1], 1.2**0.5) - entropy).mean() > 3 * left


@both
@every_problem
def test_its_law_at_many_steps_is_that_of_the_data(problem, exponential, monkeypatch):
    """Both variants at 192 steps; not with noise of 1.2 times the variance, nor at four steps."""
    mixture, n = PROBLEMS[problem], 2000
    model = MixturePosterior(mixture, SCHEDULE)
    x_1 = mixture.marginal(doubles(1.0)[0], SCHEDULE).sample((n,), generator(4))
    first = mixture.affine(EYE[:1], torch.zeros(1, 1, dtype=torch.float64))
    entropy = -mixture.log_prob(mixture.sample((200_000,), generator(3))).mean()

    def p_value(steps):
        x_0 = ReverseSDE(steps, exponential)(model, x_1, generator(5))
        of_moments = mean_and_covariance(x_0, mixture.mean, mixture.covariance)
        return min(of_moments, ks(x_0[:, :1], first), z_tests(-mixture.log_prob(x_0)[:, None], entropy))

    assert accepts(p_value(192))
    assert rejects(p_value(4))
    monkeypatch.setattr(NOISE, lambda x, source: 1.2**0.5 * normal_like(x, source))
    assert rejects(p_value(48))


@pytest.mark.parametrize("kernel", ["bridge", 0.0, 1.0])
@every_problem
def test_only_the_bridge_keeps_the_law_of_the_pair(problem, kernel):
    """`Cov(x_s, x_tau) = alpha_s alpha_tau Var X_0 + c sigma_s sigma_tau I`, all four entries, with exact draws.

    The c of another kernel is rejected, and so is the covariance `a Var(x_s)` of the reverse SDE but for the bridge.
    """
    mixture, (tau, s) = PROBLEMS[problem], (tau_of(0.5), tau_of(0.7))
    grid = CustomGrid(times=(1.0, tau.item(), s.item(), 0.0))
    noise = mixture.marginal(doubles(1.0)[0], SCHEDULE).sample((40_000,), generator(6))
    sampler, model = Ancestral(3, grid=grid, kernel=kernel), MixturePosterior(mixture, SCHEDULE)
    _, at_tau, at_s = sampler.trajectory(model, noise, generator(7))
    centred = [state.x_tau - mixture.marginal(time, SCHEDULE).mean for state, time in ((at_s, s), (at_tau, tau))]
    products = centred[0][:, :, None] * centred[1][:, None, :]
    alphas, sigmas = (function(s) * function(tau) for function in (SCHEDULE.alpha, SCHEDULE.sigma))
    of_the_bridge = bridge_c(s, tau, SCHEDULE).item()

    def covariance(c):
        return alphas * mixture.covariance + c * sigmas * EYE

    number = of_the_bridge if kernel == "bridge" else kernel
    assert accepts(z_tests(products, covariance(number)))
    for other in {of_the_bridge, 0.0, 1.0} - {number}:
        assert rejects(z_tests(products, covariance(other)))
    a, _ = moments(s, tau, SCHEDULE)
    of_the_sde = a * mixture.marginal(s, SCHEDULE).covariance
    assert_close(of_the_sde, covariance(of_the_bridge), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5])
@both
def test_what_a_sample_costs(steps, exponential):
    """N evaluations, of a Mean Flow's mean as of an exact one; one step is the posterior mean."""
    network, item_shape = tiny_network("mlp", inputs=2, times=3)
    flow = PosteriorFlow(network, SCHEDULE, GaussianScaling(), item_shape).double()
    for model in (flow, MeanOnly(flow), GAUSSIAN):
        with EvaluationCounter(model) as counter:
            x_0 = ReverseSDE(steps, exponential)(model, normals(10, *model.item_shape, seed=8), generator(9))
        assert (counter.calls, counter.items) == (steps, 10 * steps)
        assert x_0.isfinite().all()
        assert not x_0.requires_grad
    x_1 = normals(10, 2, seed=10)
    mean = gaussian(MEAN, STD).posterior(x_1, doubles(1.0)[0], SCHEDULE).mean
    assert torch.equal(ReverseSDE(1, exponential)(GAUSSIAN, x_1, generator(0)), mean)


@both
def test_an_item_with_its_own_generator_is_the_same_in_every_batch(exponential):
    x_1, sources = normals(6, 2, seed=11), lambda n, first=0: item_generators(n, seed=12, first=first)
    whole = ReverseSDE(5, exponential)(GAUSSIAN, x_1, sources(6))
    for i in range(6):
        alone = ReverseSDE(5, exponential)(GAUSSIAN, x_1[i : i + 1], sources(1, first=i))
        assert_close(alone[0], whole[i], rtol=1e-12, atol=1e-12)
    assert (whole - ReverseSDE(5, exponential)(GAUSSIAN, x_1, generator(0))).abs().amin() > 0


def test_what_is_refused():
    with pytest.raises(UserError):
        ReverseSDE(0)
    with pytest.raises(UserError, match="steps"):
        ReverseSDE(2, grid=CustomGrid(times=(1.0, 0.5, 0.2, 0.0)))(GAUSSIAN, normals(3, 2, seed=0))
