"""The probability flow: the order of Euler and Heun, DDIM, and the closed form on Gaussian data."""

import inspect
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch.testing import assert_close

from fewstep.errors import UserError
from fewstep.models import EvaluationCounter, MeanOnly, MixturePosterior, PosteriorFlow
from fewstep.models.base import PosteriorModel
from fewstep.samplers import Ancestral, ProbabilityFlow
from fewstep.samplers.base import check_steps
from fewstep.scaling import GaussianScaling
from fewstep.times import CustomGrid, LogSNRGrid, UniformGrid
from problems import SCHEDULE, doubles, gaussian, generator, normals, ring, t2, tiny_network
from stats import accepts, ks, mean_and_covariance, rejects

PROBLEMS = {"t2": t2(), "ring": ring()}
TAU_MIN = 1e-4
FINE = LogSNRGrid(tau_min=TAU_MIN)
EYE = torch.eye(2, dtype=torch.float64)
MEAN, STD = doubles(1.0, -0.5), 0.6
every_problem = pytest.mark.parametrize("problem", PROBLEMS)


def solution(mixture, noise, end):
    """`dx = -1/2 beta (x + grad log q_tau(x)) dtau` from tau = 1 to `end` by an adaptive method of order 8."""

    def slope(tau, x):
        x = torch.from_numpy(x).reshape(noise.shape)
        at = doubles(tau)[0]
        return (-0.5 * SCHEDULE.beta(at) * (x + mixture.marginal(at, SCHEDULE).score(x))).flatten().numpy()

    found = solve_ivp(slope, (1.0, end), noise.flatten().numpy(), method="DOP853", rtol=1e-8, atol=1e-8)
    return torch.from_numpy(found.y[:, -1]).reshape(noise.shape)


def errors(sampler_of, model, noise, exact, steps):
    """For each number of steps the geometric mean of the items' distances from the exact solution."""
    return [(sampler_of(n)(model, noise) - exact).square().sum(1).log().mul(0.5).mean().exp().item() for n in steps]


def order(steps, values):
    """The exponent p of a fit `error = C N^-p`."""
    return -np.polyfit(np.log(steps), np.log(values), 1)[0]


class LateSlope(PosteriorModel):
    """A model that takes Heun's second slope at the first one's time."""

    def __init__(self, model):
        super().__init__(model.schedule, model.item_shape)
        self.model, self.times_seen = model, []

    def forward(self, x_tau, tau):
        self.times_seen = [tau] if tau == 1 else [*self.times_seen, tau]
        return self.model(x_tau, tau if len(self.times_seen) % 2 else self.times_seen[-2])


@every_problem
def test_the_order_of_convergence(problem):
    """1 and 2, against a solution of the ODE in its own variables; Heun with a slope of the wrong time has not order 2.

    The fit is from N = 32 on: below, a step is more than half a unit of log-SNR, and Heun looks better than it is.
    """
    mixture, noise, steps = PROBLEMS[problem], normals(24, 2, seed=0), [32, 64, 128]
    model = MixturePosterior(mixture, SCHEDULE)
    at_end = solution(mixture, noise, TAU_MIN)
    exact = mixture.posterior(at_end, doubles(TAU_MIN)[0], SCHEDULE).mean  # the last step, the same for all

    def order_of(k, model_of=lambda: model):
        found = errors(lambda n: ProbabilityFlow(n, k, FINE), model_of(), noise, exact, steps)
        return order(steps, found), found[-1]

    (first, of_euler), (second, of_heun) = order_of(1), order_of(2)
    assert abs(first - 1) < 0.15
    assert abs(second - 2) < 0.3
    assert of_heun < of_euler / 10
    late, _ = order_of(2, lambda: LateSlope(model))
    assert abs(late - 2) > 0.3


@every_problem
def test_what_the_last_step_leaves_is_of_the_order_of_its_noise_level(problem):
    """From the exact state at `tau_min`, the mean misses the end of the flow by about `k^2`, the square of the noise level."""
    mixture, noise = PROBLEMS[problem], normals(24, 2, seed=0)
    end, taus = solution(mixture, noise, 0.0), [1e-2, 1e-3]
    left, k = [], []
    for tau in taus:
        mean = mixture.posterior(solution(mixture, noise, tau), doubles(tau)[0], SCHEDULE).mean
        left.append((mean - end).square().sum(1).mean().sqrt().item())
        k.append(math.exp(-0.5 * SCHEDULE.log_snr(doubles(tau)[0]).item()))
    assert abs(np.log(left[0] / left[1]) / np.log(k[0] / k[1]) - 2) < 0.25


@pytest.mark.parametrize("grid", [UniformGrid(), FINE], ids=str)
@every_problem
def test_euler_is_ddim(problem, grid):
    """To rounding, at every number of steps; neither Heun nor a kernel beside DDIM's is."""
    model, noise = MixturePosterior(PROBLEMS[problem], SCHEDULE), normals(50, 2, seed=1)
    for steps in (1, 2, 3, 16):
        ddim = Ancestral(steps, grid=grid, kernel=1.0)(MeanOnly(model), noise, generator(2))
        assert_close(ProbabilityFlow(steps, 1, grid)(model, noise), ddim, rtol=1e-9, atol=1e-9)
        if steps > 1:
            assert ((ProbabilityFlow(steps, 2, grid)(model, noise) - ddim).abs() > 1e-6).any()
            near = Ancestral(steps, grid=grid, kernel=0.99)(MeanOnly(model), noise, generator(2))
            assert ((near - ddim).abs() > 1e-6).any()


@pytest.mark.parametrize("heun", [1, 2])
@every_problem
def test_one_step_ends_at_the_posterior_mean(problem, heun):
    mixture, noise = PROBLEMS[problem], normals(50, 2, seed=3)
    mean = mixture.posterior(noise, doubles(1.0)[0], SCHEDULE).mean
    for grid in (UniformGrid(), FINE):
        x_0 = ProbabilityFlow(1, heun, grid)(MixturePosterior(mixture, SCHEDULE), noise)
        assert_close(x_0, mean, rtol=1e-12, atol=1e-12)


def slope_and_shift(steps, k, grid):
    """`(A, B)` of `x_0 = A x_1 + B` (d components of B) for `N(MEAN, STD^2 I)`, from `dx_bar/dk = e`, step by step.

    With `x_bar = x / alpha`, the mean is `m + s^2 / (s^2 + k^2) (x_bar - m)` and so `e = k / (s^2 + k^2) (x_bar - m)`.
    """
    times = grid(steps, SCHEDULE)
    levels = [math.exp(-0.5 * x) for x in SCHEDULE.log_snr(times[:-1]).tolist()] + [0.0]
    factor = 1.0  # of x_bar - m
    for before, after in pairwise(levels):
        first = before / (STD**2 + before**2)
        moved = 1 + (after - before) * first
        if k == 2 and after > 0:
            moved = 1 + (after - before) * (first + after / (STD**2 + after**2) * moved) / 2
        factor *= moved
    alpha = SCHEDULE.alpha(times[0])
    return factor / alpha, MEAN - factor * MEAN


@pytest.mark.parametrize("grid", [UniformGrid(), FINE], ids=str)
@pytest.mark.parametrize("k", [1, 2], ids=["euler", "heun"])
@pytest.mark.parametrize("steps", [1, 2, 4, 16, 64])
def test_gaussian_data_to_rounding_and_in_law(steps, k, grid):
    """The samples are those of the recursion; their law is that of its mean and variance, which is not 1.2 times smaller."""
    noise = normals(20_000, 2, seed=4)
    x_0 = ProbabilityFlow(steps, k, grid)(MixturePosterior(gaussian(MEAN, STD), SCHEDULE), noise)
    factor, shift = slope_and_shift(steps, k, grid)
    assert_close(x_0, factor * noise + shift, rtol=1e-8, atol=1e-8)
    assert accepts(mean_and_covariance(x_0, shift, factor**2 * EYE))
    assert rejects(mean_and_covariance(shift + 1.2**0.5 * (x_0 - shift), shift, factor**2 * EYE))
    if steps == 2:  # far from done: the law is not that of the data
        assert rejects(mean_and_covariance(x_0, MEAN, STD**2 * EYE))


def test_gaussian_data_in_the_limit():
    """The flow keeps the standardised coordinate: `x_0 = m + s (x_1 - alpha m) / sqrt(alpha^2 s^2 + sigma^2)`."""
    noise, steps = normals(20, 2, seed=5), [32, 64, 128]
    one, model = doubles(1.0), MixturePosterior(gaussian(MEAN, STD), SCHEDULE)
    alpha, sigma = SCHEDULE.alpha(one), SCHEDULE.sigma(one)
    exact = MEAN + STD * (noise - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2).sqrt()
    finest = LogSNRGrid(tau_min=1e-7)
    for k, tolerance in ((1, 0.15), (2, 0.3)):
        found = errors(lambda n, k=k: ProbabilityFlow(n, k, finest), model, noise, exact, steps)
        assert abs(order(steps, found) - k) < tolerance
    assert_close(ProbabilityFlow(128, 2, finest)(model, noise), exact, rtol=0, atol=1e-2)
    assert ((MEAN + STD * noise - exact).abs() > 1e-3).all()  # what is left of the data at tau = 1


@every_problem
def test_its_law_is_that_of_the_data(problem):
    """128 evaluations are enough; a variance of the samples 1.2 times larger is not the law, nor are four steps of Euler."""
    mixture = PROBLEMS[problem]
    model = MixturePosterior(mixture, SCHEDULE)
    noise = mixture.marginal(doubles(1.0)[0], SCHEDULE).sample((4000,), generator(6))

    def p_value(x_0, mixture=mixture):
        first = mixture.affine(EYE[:1], torch.zeros(1, 1, dtype=torch.float64))
        return min(mean_and_covariance(x_0, mixture.mean, mixture.covariance), ks(x_0[:, :1], first))

    x_0 = ProbabilityFlow(64, 2, FINE)(model, noise)
    assert accepts(p_value(x_0))
    assert rejects(p_value(mixture.mean + 1.2**0.5 * (x_0 - mixture.mean)))
    assert rejects(p_value(ProbabilityFlow(4, 1, FINE)(model, noise)))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_what_a_sample_costs(steps):
    """N evaluations by Euler, 2 N - 1 by Heun; of a Mean Flow's mean as of an exact one."""
    network, item_shape = tiny_network("mlp", inputs=2, times=3)
    flow = PosteriorFlow(network, SCHEDULE, GaussianScaling(), item_shape).double()
    for model in (flow, MeanOnly(flow), MixturePosterior(t2(), SCHEDULE)):
        noise = normals(10, *model.item_shape, seed=7)
        for k, cost in ((1, steps), (2, 2 * steps - 1)):
            with EvaluationCounter(model) as counter:
                x_0 = ProbabilityFlow(steps, k)(model, noise, generator(8))
            assert (counter.calls, counter.items) == (cost, 10 * cost)
            assert x_0.isfinite().all()
            assert not x_0.requires_grad


def test_the_noise_alone_decides_where_the_mean_is_exact():
    model, noise = MixturePosterior(t2(), SCHEDULE), normals(10, 2, seed=9, dtype=torch.float32)
    x_0 = ProbabilityFlow(4)(model, noise, generator(0))
    assert torch.equal(x_0, ProbabilityFlow(4)(model, noise, generator(1)))
    assert x_0.dtype == torch.float32


def test_what_is_refused():
    for wrong in ({"steps": 0}, {"order": 0}, {"order": 3}):
        with pytest.raises(UserError):
            ProbabilityFlow(**wrong)
    with pytest.raises(UserError, match="steps"):
        ProbabilityFlow(2, grid=CustomGrid(times=(1.0, 0.5, 0.2, 0.0)))(
            MixturePosterior(t2(), SCHEDULE), normals(3, 2, seed=0)
        )
    with pytest.raises(UserError, match="grid is a"):  # past the test run's check of types
        inspect.unwrap(check_steps)(3, "uniform")
