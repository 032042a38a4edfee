"""The certificates: exact where the answer is known, above the truth everywhere, and rejected where they are wrong.

Shifted exact flows make the bounds tight: `u + c` has the residual |c|^2 at every t and draws that are c away.
"""

import math
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from numpy.polynomial.legendre import leggauss
from scipy import stats as scipy_stats
from torch import nn
from torch.testing import assert_close

from fewstep import transition
from fewstep.bridge import bridge
from fewstep.errors import UserError
from fewstep.flow import interpolate
from fewstep.mixture import GaussianMixture
from fewstep.models import DenoiserConfig, MeanFlow, MixturePosterior, PosteriorFlow
from fewstep.networks import MLPConfig
from fewstep.samplers import Ancestral
from fewstep.scaling import EpsilonScaling, GaussianScaling, IdentityScaling
from fewstep.schedule import CosineSchedule, VPSchedule
from fewstep.theory import (
    Certificate,
    Estimate,
    Level,
    Lipschitz,
    best_grid,
    bridge_weights,
    certify,
    composed_bound,
    conditional_distance,
    corollary_1,
    corollary_1_from_data,
    corollary_2,
    corollary_3,
    corollary_4,
    corollary_5,
    coupled_bound,
    coupled_prior_error,
    data_law,
    exact_flow_map,
    gaussian_distance,
    interpolate_levels,
    kl_by_contraction,
    kl_by_convexity,
    lipschitz,
    mean_flow_residual,
    posterior_law,
    proposition_3,
    proposition_4,
    sampled_distance,
    second_moment,
    squared_residual,
    start_error,
    theorem_1,
    velocity,
)
from fewstep.theory.prior import _log_excess
from fewstep.times import CustomGrid, LogSNRGrid, UniformGrid
from problems import SCHEDULE, LinearFlow, doubles, gaussian, generator, normals, randomise, seeded, t2, three_modes
from stats import accepts, cdf_of, ks, rejects

TAUS = (0.3, 1.0)
SHORT = VPSchedule(beta_min=0.1, beta_max=4.0)  # alpha_1 = .36: at the horizon there is much left of the data


class Flow(nn.Module):
    """The network of a Mean Flow to N(m, s^2 I), off by a constant; with `instantaneous`, v in place of u."""

    def __init__(self, mean, std, off=0.0, instantaneous=False):
        super().__init__()
        self.flow, self.off, self.instantaneous = LinearFlow(mean, std), off, instantaneous

    def forward(self, z, times):
        t = times[:, 0]
        r = t if self.instantaneous else t - times[:, 1]
        return self.flow(z, r, t) + self.off


class Posterior(nn.Module):
    """The exact conditional flow to `x_0 | x_tau` for data N(m, s^2 I) (identity scaling), off by a constant."""

    def __init__(self, mean, std, off=0.0, schedule=SCHEDULE):
        super().__init__()
        self.mean, self.std, self.off, self.schedule = mean, std, off, schedule

    def moments(self, tau):
        """The gain of `x_tau`, and mean and variance of `x_0` given `x_tau` = 0."""
        alpha, sigma = self.schedule.alpha(tau), self.schedule.sigma(tau)
        total = alpha**2 * self.std**2 + sigma**2
        gain = alpha * self.std**2 / total
        return gain, (1 - gain * alpha) * self.mean, sigma**2 * self.std**2 / total

    def forward(self, x, times):
        z, x_tau = x.chunk(2, 1)
        t, gap, tau = times[:, :1], times[:, 1:2], times[:, 2:]
        r = t - gap
        gain, mean, V = self.moments(tau)
        mean = mean + gain * x_tau
        sd_t, sd_r = (((1 - q) ** 2 * V + q**2).sqrt() for q in (t, r))
        return -mean + (t + r - V * (2 - t - r)) / (sd_t * (sd_t + sd_r)) * (z - (1 - t) * mean) + self.off


class Zero(nn.Module):
    """A constant for a network: with the Gaussian skip, the exact posterior of isotropic Gaussian data."""

    def __init__(self, off=0.0):
        super().__init__()
        self.register_buffer("off", doubles(off))

    def forward(self, x, times):
        return self.off * torch.ones_like(x[:, : x.shape[1] // 2])


def mean_flow(d, *args, **options):
    return MeanFlow(Flow(*args, **options), (d,)).double()


def posterior_flow(mean, std, d, off=0.0, schedule=SCHEDULE):
    return PosteriorFlow(Posterior(mean, std, off, schedule), schedule, IdentityScaling(), (d,)).double()


def skip_flow(mean, std, d, off=0.0, schedule=SCHEDULE):
    model = PosteriorFlow(Zero(off), schedule, GaussianScaling(), (d,), gaussian_skip=True).double()
    model.data_mean.fill_(mean)
    model.data_std.fill_(std)
    return model


def isotropic(mean, std, d):
    return gaussian(torch.full((d,), mean, dtype=torch.float64), std)


def random_mixture(seed, k, d):
    spread = normals(k, d, d, seed=seed + 2)
    covariances = 0.1 * spread @ spread.mT + 0.03 * torch.eye(d).double()
    return GaussianMixture(torch.softmax(normals(k, seed=seed), 0), 1.5 * normals(k, d, seed=seed + 1), covariances)


def random_model(mixture, seed, kind):
    """A network in general position on top of the Gaussian skip, fitted to the moments of the mixture."""
    inputs, times = (2, 3) if kind is PosteriorFlow else (1, 2)
    with seeded(seed):
        network = MLPConfig(width=16, depth=1).build((mixture.dim,), inputs=inputs, times=times)
    network = randomise(network, seed, scale=0.1)
    if kind is PosteriorFlow:
        model = PosteriorFlow(network, SCHEDULE, GaussianScaling(), (mixture.dim,), gaussian_skip=True)
    else:
        model = MeanFlow(network, (mixture.dim,), standardise=True, gaussian_skip=True)
    model = model.double()
    model.fit(mixture.sample((4000,), generator(seed)))
    return model


# --- the exact flow


def test_the_velocity_is_the_conditional_expectation():
    """`(z - E[w | z, x_tau]) / t`, z and x_tau two observations of `x_0`, in the model's coordinates."""
    model = skip_flow(0.3, 1.4, 2)
    x_tau, tau, t = normals(5, 2, seed=0), doubles(0.4)[0], doubles(0.9, 0.5, 0.3, 0.2, 0.1)
    law, scale = posterior_law(model, t2(), x_tau, tau)
    z = normals(5, 2, seed=1)
    offset = model.decode(torch.zeros_like(x_tau), x_tau, tau.expand(5))
    eye, zero = torch.eye(2).double(), torch.zeros(5, 2, 2).double()
    factor, alpha, sigma = ((1 - t) / scale)[:, None, None], SCHEDULE.alpha(tau), SCHEDULE.sigma(tau)
    H = torch.cat([factor * eye, (alpha * eye).expand(5, 2, 2)], 1)
    Gam = torch.cat([torch.cat([t[:, None, None] ** 2 * eye, zero], 2), torch.cat([zero, sigma**2 * eye + zero], 2)], 1)
    y = torch.cat([z + factor[:, 0] * offset, x_tau], 1)
    w = (t2().condition(y, H, Gam).mean - offset) / scale
    assert_close(velocity(law, z, t), (z - w) / t[:, None], rtol=1e-9, atol=1e-9)
    assert (velocity(law, z, t) - (z - w)).abs().amax() > 0.1


def test_the_velocity_at_the_ends():
    """-z at t = 0 and `z - E[w]` at t = 1; near 0 in float32 too, where `(z - E[w | z]) / t` has lost everything."""
    z, one = t2().sample((50,), generator(0)), torch.ones(50).double()
    assert_close(velocity(t2(), z, 0 * one), -z)
    assert_close(velocity(t2(), z, one), z - t2().mean)
    t = 1e-6 * one
    exact = velocity(t2(), z, t)
    assert_close(exact, -z, rtol=1e-4, atol=1e-4)
    single = GaussianMixture(*(x.float() for x in (t2().weights, t2().means, t2().covariances)))
    assert_close(velocity(single, z.float(), t.float()).double(), exact, rtol=1e-4, atol=1e-4)
    eye, t = torch.eye(2), t.float()[:, None, None]
    naive = (z.float() - single.condition(z.float(), (1 - t) * eye, t**2 * eye).mean) / 1e-6
    assert (naive.double() - exact).abs().amax() > 1e-2


def test_the_velocity_of_a_gaussian_is_the_closed_form():
    z, t = normals(6, 2, seed=0), doubles(0, 1e-3, 0.2, 0.5, 0.9, 1)
    assert_close(velocity(isotropic(1.5, 0.4, 2), z, t), LinearFlow(1.5, 0.4).v(z, t[:, None]))


def test_the_exact_flow_map_is_the_monotone_map_on_the_line():
    """A flow line keeps its quantile: `F(z_0) = Phi(z_1)`. The error is of fourth order."""
    z = torch.linspace(-3, 3, 40).double()[:, None]
    goal = scipy_stats.norm.cdf(z.numpy())[:, 0]
    errors = [np.abs(cdf_of(three_modes())(exact_flow_map(three_modes(), z, n)[:, 0]) - goal).max() for n in (64, 128)]
    assert errors[0] < 1e-4
    assert errors[0] / errors[1] > 10


def test_the_exact_flow_map_gives_the_law():
    z = exact_flow_map(three_modes(), normals(5000, 1, seed=0))
    assert accepts(ks(z, three_modes()))
    assert rejects(ks(exact_flow_map(three_modes(), 1.2 * normals(20_000, 1, seed=0)), three_modes()))


# --- the residual, Theorem 1 and Corollary 1


def test_the_derivative_of_the_residual_is_a_central_difference():
    model = random_model(t2(), 3, PosteriorFlow)
    n, h = 40, 1e-6  # the network has frequencies up to 100: h^2 100^3 is to be small
    z, v, x_tau, t = (
        normals(n, 2, seed=0),
        normals(n, 2, seed=1),
        normals(n, 2, seed=2),
        0.2 + 0.6 * torch.rand(n, generator=generator(3)).double(),
    )
    held, zero = (x_tau, torch.full((n,), 0.4).double()), torch.zeros(n).double()
    slope = (model.u(z + h * v, zero, t + h, *held) - model.u(z - h * v, zero, t - h, *held)) / (2 * h)
    residual = model.u(z, zero, t, *held) + t[:, None] * slope - v
    assert_close(squared_residual(model.u, z, t, v, held), residual.square().sum(1), rtol=1e-7, atol=1e-7)
    still = model.u(z, zero, t, *held) - v
    assert (squared_residual(model.u, z, t, v, held) - still.square().sum(1)).abs().amax() > 0.1


@pytest.mark.parametrize("d", [1, 3])
def test_the_exact_average_velocity_has_no_residual(d):
    flow = mean_flow(d, 1.5, 0.4)
    data = isotropic(1.5, 0.4, d)
    assert theorem_1(flow, data, generator=generator(0)).upper() < 1e-16
    for t in (0.0, 1e-8, 0.5, 1.0):
        assert mean_flow_residual(flow, data, t, generator=generator(0)).upper() < 1e-16
    for tau in (1e-3, *TAUS):
        for model in (posterior_flow(1.5, 0.4, d), skip_flow(1.5, 0.4, d)):
            assert corollary_1(model, data, tau, generator=generator(0)).upper() < 1e-16
    wrong = mean_flow(d, 1.5, 0.41)
    assert theorem_1(wrong, data, generator=generator(0)).lower() > 1e-6


def test_the_bound_is_the_integral_of_the_residual():
    """Stratified times against Gauss-Legendre quadrature of e(t)."""
    model = random_model(t2(), 1, MeanFlow)
    bound = theorem_1(model, t2(), draws=20_000, generator=generator(0))
    nodes, weights = leggauss(64)  # the network has frequencies up to 100
    rows = [
        mean_flow_residual(model, t2(), (x + 1) / 2, draws=1000, generator=generator(i)) for i, x in enumerate(nodes)
    ]
    factor = bound.terms["scale^2"]
    integral = sum(w / 2 * row.value for w, row in zip(weights, rows, strict=True)) * factor
    error = sum(w / 2 * row.standard_error for w, row in zip(weights, rows, strict=True)) * factor
    assert abs(integral - bound.value) < 4.5 * (error + bound.standard_error)
    assert bound.standard_error < 0.02 * bound.value


@pytest.mark.parametrize("tau", TAUS)
def test_a_shift_makes_the_bounds_tight(tau):
    """`c_out^2 |c|^2`, which is the truth; the bound grows with the error that is planted."""
    d, std = 2, 3.0
    data = isotropic(1.5, std, d)
    c_out = (SCHEDULE.sigma(tau) * std / (SCHEDULE.alpha(tau) ** 2 * std**2 + SCHEDULE.sigma(tau) ** 2).sqrt()).item()
    for off in (0.1, 0.3):
        options = {"generator": generator(0)}
        assert theorem_1(mean_flow(d, 1.5, std, off), data, **options).value == pytest.approx(d * off**2)
        assert corollary_1(posterior_flow(1.5, std, d, off), data, tau, **options).value == pytest.approx(d * off**2)
        bound = corollary_1(skip_flow(1.5, std, d, off), data, tau, **options)
        assert bound.value == pytest.approx(c_out**2 * d * off**2)
        assert bound.w2 == pytest.approx(c_out * math.sqrt(d) * off)


def test_the_estimate_from_data_adds_the_spread_of_the_conditional_velocity():
    """For the exact flow of a standard normal w the excess is `d int 1/s_t^4 dt = d (1 + pi/2)` times the scale squared."""
    model, x_0 = skip_flow(0.5, 2.0, 3), isotropic(0.5, 2.0, 3).sample((20_000,), generator(0))
    estimate = corollary_1_from_data(model, x_0, 0.5, generator=generator(1))
    excess = 3 * (1 + math.pi / 2) * estimate.terms["scale^2"]
    assert abs(estimate.value - excess) < 4.5 * estimate.standard_error
    assert estimate.standard_error < 0.02 * excess
    random = random_model(t2(), 1, PosteriorFlow)
    above = corollary_1_from_data(random, t2().sample((4000,), generator(0)), 0.5, generator=generator(1))
    assert above.lower() > corollary_1(random, t2(), 0.5, generator=generator(2)).upper()


def test_the_estimate_from_data_takes_images():
    with seeded(0):
        network = MLPConfig(width=8, depth=1).build((1, 4, 4), inputs=2, times=3)
    model = PosteriorFlow(network, SCHEDULE, GaussianScaling(), (1, 4, 4))
    assert corollary_1_from_data(model, torch.randn(10, 1, 4, 4), 0.5, generator=generator(0)).value > 0


# --- ten random mixtures: every bound is above the truth, and a wrong one is found out


def gaussian_case(seed):
    """Data N(m, s^2 I) and the exact flow to N(m', s'^2 I): truth in closed form for both kinds of model."""
    d, (m, m_2), (s, s_2) = (
        1 + seed % 3,
        normals(2, seed=seed).tolist(),
        (0.5 + normals(2, seed=seed + 1).abs()).tolist(),
    )
    data = isotropic(m, s, d)
    flow = theorem_1(mean_flow(d, m_2, s_2), data, generator=generator(seed))
    yield flow, Estimate(value=d * ((m - m_2) ** 2 + (s - s_2) ** 2))
    model = posterior_flow(m_2, s_2, d)
    for tau in TAUS:
        truth = Estimate(value=d * posterior_distance(Posterior(m, s), model.network, doubles(tau)[0]))
        yield corollary_1(model, data, tau, generator=generator(seed)), truth


def posterior_distance(exact, model, tau):
    """`E W2^2` of the two Gaussian posteriors on the line, over the exact law of `x_tau`."""
    (gain, mean, V), (gain_2, mean_2, V_2) = exact.moments(tau), model.moments(tau)
    alpha, sigma = exact.schedule.alpha(tau), exact.schedule.sigma(tau)
    shift = (gain - gain_2) * alpha * exact.mean + mean - mean_2 + model.off
    spread = (gain - gain_2) ** 2 * (alpha**2 * exact.std**2 + sigma**2) + (V.sqrt() - V_2.sqrt()) ** 2
    return (shift**2 + spread).item()


def quantiles(law, levels):
    """Of a batch of mixtures on the line `(batch, K, 1)`, by bisection, `(batch, n)`."""
    means, stds = law.means[..., 0], law.covariances[..., 0, 0].sqrt().expand(law.means.shape[:-1])
    low, high = (means - 9 * stds).amin(1), (means + 9 * stds).amax(1)
    low, high = (x[:, None].repeat(1, len(levels)) for x in (low, high))
    for _ in range(40):
        middle = (low + high) / 2
        cdf = (law.weights[:, None] * torch.special.ndtr((middle[..., None] - means[:, None]) / stds[:, None])).sum(-1)
        low, high = torch.where(cdf < levels, middle, low), torch.where(cdf < levels, high, middle)
    return (low + high) / 2


def line_case(seed, n=300, states=100):
    """A mixture on the line and networks in general position: W2 by quantiles, with the noise at its own quantiles."""
    mixture = random_mixture(seed, 3, 1)
    levels = (torch.arange(n).double() + 0.5) / n
    noise = torch.special.ndtri(levels)
    model = random_model(mixture, seed, MeanFlow)
    ends = model.decode(model(noise[:, None], 1.0, 0.0)).detach()[:, 0].sort().values
    one = GaussianMixture(mixture.weights[None], mixture.means[None], mixture.covariances)
    truth = (ends - quantiles(one, levels)[0]).square().mean().item()
    yield theorem_1(model, mixture, generator=generator(seed)), Estimate(value=truth)
    model = random_model(mixture, seed + 1, PosteriorFlow)
    for tau in map(doubles, TAUS):
        x_tau = transition.sample(
            mixture.sample((states,), generator(seed)), 0 * tau[0], tau[0], SCHEDULE, generator(9)
        )
        ends = model(x_tau, tau).sample((n,), noise=noise[:, None, None].expand(n, states, 1)).detach()
        gaps = ends[..., 0].T.sort(1).values - quantiles(mixture.posterior(x_tau, tau[0], SCHEDULE), levels)
        bound = corollary_1(model, mixture, tau.item(), generator=generator(seed))
        yield bound, Estimate.of(gaps.square().mean(1))


def plane_case(seed):
    """A mixture in the plane: W2 between samples, debiased."""
    mixture = random_mixture(seed, 4, 2)
    model = random_model(mixture, seed, MeanFlow)
    ends = model.decode(model(normals(3200, 2, seed=seed), 1.0, 0.0)).detach()
    yield (
        theorem_1(model, mixture, generator=generator(seed)),
        sampled_distance(ends, mixture.sample((3200,), generator(seed)), blocks=8),
    )
    model = random_model(mixture, seed + 1, PosteriorFlow)
    for tau in TAUS:
        bound = corollary_1(model, mixture, tau, generator=generator(seed))
        yield bound, conditional_distance(model, mixture, tau, states=16, draws=150, generator=generator(seed))


@pytest.fixture(scope="module")
def cases():
    """(bound, truth) on four Gaussians, three mixtures on the line and three in the plane, three bounds for each."""
    found = [case for seed in range(4) for case in gaussian_case(10 * seed)]
    found += [case for seed in range(4, 7) for case in line_case(10 * seed)]
    return found + [case for seed in range(7, 10) for case in plane_case(10 * seed)]


def holds(bound, truth):
    return bound.upper() >= truth.lower()


def divided(bound, by):
    return Certificate(value=bound.value / by, standard_error=bound.standard_error / by)


def test_every_bound_is_above_the_truth(cases):
    """The same check rejects most of the bounds divided by 4, in closed form and measured."""
    assert len(cases) == 30
    assert all(holds(bound, truth) for bound, truth in cases)
    assert all(bound.value > 1e-4 and truth.value > 1e-4 for bound, truth in cases)
    too_small = [not holds(divided(bound, 4), truth) for bound, truth in cases]
    assert sum(too_small[:12]) >= 10
    assert sum(too_small[12:21]) >= 4
    assert sum(too_small[21:]) >= 5


def test_a_bound_without_the_scale_is_rejected():
    """`int e` without `c_out^2 = 9`, for a shift, where the truth is `c_out^2 |c|^2`."""
    model = skip_flow(0.0, 3.0, 2, off=0.2)
    bound = corollary_1(model, isotropic(0.0, 3.0, 2), 1.0, generator=generator(0))
    truth = conditional_distance(model, isotropic(0.0, 3.0, 2), 1.0, draws=200, generator=generator(0))
    assert abs(truth.value - bound.value) < 4.5 * truth.standard_error
    assert holds(bound, truth)
    assert not holds(divided(bound, bound.terms["scale^2"]), truth)


def test_a_bound_without_the_derivative_is_rejected():
    """v in place of u: `E||u - v||^2` is 0, but one step along v ends in a point, at the distance of the data's spread."""
    model, data = mean_flow(2, 1.0, 0.6, instantaneous=True), isotropic(1.0, 0.6, 2)
    truth = Estimate(value=2 * 0.6**2)
    bound = theorem_1(model, data, generator=generator(0))
    assert holds(bound, truth)
    z, t = normals(100, 2, seed=0), torch.rand(100, generator=generator(0)).double()
    wrong = Estimate.of((model.u(z, 0 * t, t) - velocity(data, z, t)).square().sum(1))
    assert not holds(wrong, truth)
    flow = Flow(1.0, 0.6)  # and a derivative that does not follow the flow condemns the exact map
    assert squared_residual(MeanFlow(flow, (2,)).u, z, t, 0 * z).mean() > 0.01


# --- measured distances


def test_the_debiased_distance_is_the_distance():
    """0 for equal laws, where the plain one is far too large, and |c|^2 for a shift."""
    x, y = normals(2400, 2, seed=0), normals(2400, 2, seed=1)
    for shift in (0.0, 0.5):
        distance = sampled_distance(x + shift, y, blocks=12)
        assert abs(distance.value - 2 * shift**2) < 4.5 * distance.standard_error
        assert distance.plain.value > distance.value + 0.1
        assert shift or distance.plain.lower(4.5) > 0


def test_the_conditional_distance_is_the_closed_form():
    """A posterior of Gaussian data for other data, on the line."""
    data, model, exact = (
        isotropic(0.5, 0.7, 1),
        posterior_flow(0.2, 1.0, 1),
        MixturePosterior(isotropic(0.5, 0.7, 1), SCHEDULE),
    )
    truth = posterior_distance(Posterior(0.5, 0.7), model.network, doubles(0.4)[0])
    found = conditional_distance(model, data, 0.4, states=400, draws=500, generator=generator(0))
    assert abs(found.value - truth) < 4.5 * found.standard_error
    zero = conditional_distance(exact, data, 0.4, states=100, generator=generator(0))
    assert abs(zero.value) < 4.5 * zero.standard_error


def test_the_debiased_distance_of_a_point_mass_is_too_small():
    """By half the floor of the other law; the plain distance is right, and is what goes into a bound."""
    found = sampled_distance(torch.zeros(2400, 2), normals(2400, 2, seed=1), blocks=48)
    assert abs(found.plain.value - 2) < 4.5 * found.plain.standard_error
    assert found.upper(4.5) < 2


def test_the_distance_of_moments_is_that_of_gaussians_and_below_that_of_others():
    mean, factor = normals(3, seed=0), normals(3, 3, seed=1)
    C = factor @ factor.T
    assert gaussian_distance(mean, C, mean + 1, C) == pytest.approx(3)
    assert gaussian_distance(mean, C, mean, 4 * C) == pytest.approx(C.trace().item())  # (2 - 1)^2 C
    law, sample = t2(), t2().sample((600,), generator(0))
    other = replace(law, means=-law.means)
    found = sampled_distance(sample, other.sample((600,), generator(1)))
    assert gaussian_distance(law.mean, law.covariance, other.mean, other.covariance) < found.plain.value


# --- the prior's error


def gaussian_start(m, s, schedule, horizon=1.0):
    """`W2^2(N(0, 1), q_T)` for data N(m, s^2), one component."""
    alpha, sigma = (f(doubles(horizon)[0]) for f in (schedule.alpha, schedule.sigma))
    return ((alpha * m) ** 2 + (1 - (alpha**2 * s**2 + sigma**2).sqrt()) ** 2).item()


@pytest.mark.parametrize("schedule", [SHORT, SCHEDULE, CosineSchedule(alpha_1=0.6)])
def test_proposition_3_on_gaussians(schedule):
    """Above the truth, tight for data far off the origin; a quarter of it is not a bound."""
    for (m, s), horizon in (((3.0, 0.2), 1.0), ((0.1, 2.0), 1.0), ((0.5, 1.0), 0.5)):
        L = Posterior(m, s, schedule=schedule).moments(doubles(horizon)[0])[0].item()
        bound = proposition_3(L, 3 * (m**2 + s**2), 3, schedule, horizon)
        truth = Estimate(value=3 * L**2 * gaussian_start(m, s, schedule, horizon))
        assert holds(bound, truth)
        assert start_error(3 * (m**2 + s**2), 3, schedule, horizon).value * L**2 == pytest.approx(bound.value)
        assert bound.estimates == ()
        if m == 3.0:
            assert not holds(divided(bound, 4), truth)


def test_the_lipschitz_constant_of_an_affine_draw_is_its_gain():
    """For Gaussian data it is `alpha s^2 / (alpha^2 s^2 + sigma^2)` in either scaling; then the coupled error is the bound."""
    m, s = 2.0, 0.7
    gain = Posterior(m, s, schedule=SHORT).moments(doubles(1.0)[0])[0].item()
    for model in (posterior_flow(m, s, 2, schedule=SHORT), skip_flow(m, s, 2, schedule=SHORT)):
        found = lipschitz(model, normals(7, 2, seed=0), 1.0, generator=generator(0))
        assert found.largest == pytest.approx(gain, rel=1e-6)
        assert found.typical == pytest.approx(gain, rel=1e-6)
        bound = proposition_3(found, 2 * (m**2 + s**2), 2, SHORT)
        assert bound.estimates == ("L",)
        x_0 = isotropic(m, s, 2).sample((4000,), generator(0))
        coupled = coupled_prior_error(model, x_0, generator=generator(1))
        assert abs(coupled.value - bound.value) < 4.5 * coupled.standard_error
        two = coupled_prior_error(model, x_0, sampler=Ancestral(2), generator=generator(1))
        assert two.value > gain**2 * 2 * gaussian_start(m, s, SHORT) / 10  # noises shared, starts not


def test_the_lipschitz_constant_of_a_network_is_the_norm_of_its_jacobians():
    model = random_model(random_mixture(0, 3, 3), 5, PosteriorFlow)
    x = normals(4, 3, seed=0)
    found = lipschitz(model, x, 0.6, noises=4, iterations=200, generator=generator(3))
    z = torch.randn((4, 4, 3), generator=generator(3), dtype=torch.float64)
    squares = []
    for i in range(4):
        jacobians = [
            torch.autograd.functional.jacobian(
                lambda y, i=i, k=k: model(y[None], 0.6).sample(noise=z[k, i : i + 1])[0], x[i]
            )
            for k in range(4)
        ]
        squares.append(torch.linalg.eigvalsh(torch.stack([J.T @ J for J in jacobians]).mean(0))[-1])
    squares = torch.stack(squares)
    assert found.largest == pytest.approx(squares.max().sqrt().item(), rel=1e-5)
    assert found.typical == pytest.approx(squares.mean().sqrt().item(), rel=1e-5)


def test_the_constant_needs_draws_that_are_functions_of_noise():
    with pytest.raises(UserError, match="no function of Gaussian noise"):
        lipschitz(MixturePosterior(t2(), SCHEDULE), normals(3, 2, seed=0), 0.5)
    model = DenoiserConfig(network=MLPConfig(width=8, depth=1), scaling=EpsilonScaling()).build((2,))
    assert lipschitz(model, normals(3, 2, seed=0), 0.5, generator=generator(0)).largest > 0


def kl_on_the_line(law):
    x = torch.linspace(-14, 14, 40_001).double()
    log_p, log_q = law.log_prob(x[:, None]), -0.5 * (x**2 + math.log(2 * math.pi))
    return torch.trapezoid(log_p.exp() * (log_p - log_q), x).item()


@pytest.mark.parametrize("horizon", [0.3, 0.6, 1.0])
def test_both_bounds_on_kl_are_above_it(horizon):
    """By quadrature, on a mixture and a Gaussian; for N(m, 1) contraction is an equality, and half of it no bound."""
    tau = doubles(horizon)[0]
    for law in (three_modes(), isotropic(1.0, 0.3, 1)):
        exact = kl_on_the_line(law.marginal(tau, SHORT))
        assert kl_by_convexity(second_moment(law), 1, SHORT, horizon) >= exact
        assert kl_by_contraction(kl_on_the_line(law), SHORT, horizon) >= exact
    shifted = isotropic(2.0, 1.0, 1)
    exact = kl_on_the_line(shifted.marginal(tau, SHORT))
    assert kl_by_contraction(kl_on_the_line(shifted), SHORT, horizon) == pytest.approx(exact, rel=1e-6)
    point = isotropic(2.0, 1e-3, 1)  # convexity is an equality for one point
    assert kl_by_convexity(second_moment(point), 1, SHORT, horizon) == pytest.approx(
        kl_on_the_line(point.marginal(tau, SHORT)), rel=1e-4
    )


def test_the_logarithm_in_the_convexity_bound_does_not_cancel():
    assert _log_excess(0.0) == 0
    assert _log_excess(1e-12) == pytest.approx(0.5e-24, rel=1e-11)
    assert _log_excess(0.01) == pytest.approx(_log_excess(0.01 + 1e-15), rel=1e-9)  # where the two forms meet
    assert _log_excess(0.9) == pytest.approx(-math.log(0.1) - 0.9)


def test_proposition_4_on_two_points():
    """Data R, R, -R: exact posterior draws from N(0, 1) have another share of R; W2^2 is `4 R^2` times the difference."""
    R = 1.5
    x = torch.linspace(-12, 12, 20_001).double()
    for schedule in (SHORT, VPSchedule(beta_max=8.0)):
        alpha, sigma = (f(doubles(1.0)[0]) for f in (schedule.alpha, schedule.sigma))
        share = torch.sigmoid(2 * alpha * R * x / sigma**2 + math.log(2))
        drawn = torch.trapezoid(share * torch.exp(-0.5 * x**2) / math.sqrt(2 * math.pi), x).item()
        truth = Estimate(value=4 * R**2 * abs(drawn - 2 / 3))
        law = GaussianMixture(doubles(2, 1), doubles(R, -R)[:, None], torch.zeros(2, 1, 1).double())
        exact = kl_on_the_line(law.marginal(doubles(1.0)[0], schedule))
        assert kl_by_convexity(R**2, 1, schedule) >= exact
        assert holds(proposition_4(R, kl_by_convexity(R**2, 1, schedule)), truth)
        assert holds(proposition_4(R, exact), truth)
        assert truth.value > 0.005
    assert proposition_4(R, 100.0).value == 4 * R**2


# --- the corollaries


def test_corollary_2_on_gaussians():
    """One step from N(0, I) with a planted error, against the closed form; Minkowski's form is below Young's."""
    for seed in range(5):
        m, m_2 = normals(2, seed=seed).tolist()
        s, s_2 = (0.5 + normals(2, seed=seed + 1).abs()).tolist()
        data, model = isotropic(m, s, 1), posterior_flow(m_2, s_2, 1, schedule=SHORT)
        gain, mean, V = (x.item() for x in model.network.moments(doubles(1.0)[0]))
        truth = Estimate(value=(m - mean) ** 2 + (s - math.sqrt(gain**2 + V)) ** 2)
        flow = corollary_1(model, data, 1.0, generator=generator(seed))
        prior = proposition_3(gain, m**2 + s**2, 1, SHORT)
        total = corollary_2(flow, prior)
        assert holds(total, truth)
        assert total.value == pytest.approx(2 * flow.value + 2 * prior.value)
        assert truth.value <= total.terms["minkowski"] + 4 * total.standard_error
        assert total.terms["minkowski"] <= total.value
        assert corollary_3(flow, proposition_4(2.0, 0.1)).terms["prior"] == proposition_4(2.0, 0.1).value


def test_the_horizon_of_corollaries_4_and_5_keeps_its_promise():
    flow, accuracy = Certificate(value=0.01, standard_error=1e-3), 0.3
    fourth = corollary_4(flow, radius=1.2, kl_data=0.8, accuracy=accuracy)
    assert fourth.value == pytest.approx(accuracy**2)
    cut = CosineSchedule(alpha_1=fourth.terms["alpha"])
    assert corollary_3(flow, proposition_4(1.2, kl_by_contraction(0.8, cut))).value == pytest.approx(accuracy**2)
    fifth = corollary_5(flow, L=1.5, second_moment=2.0, dim=3, accuracy=accuracy)
    cut = CosineSchedule(alpha_1=fifth.terms["alpha"])
    assert corollary_2(flow, proposition_3(1.5, 2.0, 3, cut)).value <= fifth.value <= accuracy**2 * (1 + 1e-12)
    longer = CosineSchedule(alpha_1=2 * fifth.terms["alpha"])
    assert corollary_2(flow, proposition_3(1.5, 2.0, 3, longer)).value > accuracy**2
    assert corollary_5(flow, L=0.0, second_moment=2.0, dim=3, accuracy=accuracy).terms["alpha"] == 1
    for corollary in (lambda a: corollary_4(flow, 1.0, 1.0, a), lambda a: corollary_5(flow, 1.0, 1.0, 1, a)):
        with pytest.raises(UserError, match="no horizon mends"):
            corollary(0.1)


# --- N steps


def test_the_weights_are_those_of_the_bridge():
    s, tau = doubles(0.0, 0.2, 0.5), doubles(0.4, 0.7, 1.0)
    A, B = bridge_weights(s, tau, SCHEDULE)
    x_0, x_tau = normals(3, 2, seed=0), normals(3, 2, seed=1)
    assert_close(A[:, None] * x_0 + B[:, None] * x_tau, bridge(x_0, x_tau, s, tau, SCHEDULE)[0])
    a = SCHEDULE.alpha(tau) / SCHEDULE.alpha(s)
    v = SCHEDULE.sigma(tau) ** 2 - a**2 * SCHEDULE.sigma(s) ** 2
    assert_close(A, SCHEDULE.alpha(s) * v / SCHEDULE.sigma(tau) ** 2)
    assert_close(B, a * SCHEDULE.sigma(s) ** 2 / SCHEDULE.sigma(tau) ** 2)
    assert_close(torch.stack([A[0], B[0]]), doubles(1, 0))


def test_one_step_is_corollary_2_by_minkowski():
    flow, L = Certificate(value=0.3, standard_error=0.01), 1.3
    start = start_error(2.0, 2, SHORT)
    one = composed_bound([Level(tau=1.0, error=flow, L=L)], start, SHORT)
    both = corollary_2(flow, proposition_3(L, 2.0, 2, SHORT))
    assert one.value == pytest.approx(both.terms["minkowski"])
    assert one.value <= both.value
    assert one.estimates == ()
    assert composed_bound([Level(tau=1.0, error=flow, L=Lipschitz(largest=L, typical=L))], start, SHORT).estimates == (
        "L",
    )
    bump = 1e-6
    nudged = composed_bound([Level(tau=1.0, error=Estimate(value=0.3 + bump), L=L)], start, SHORT)
    assert one.standard_error == pytest.approx((nudged.value - one.value) / bump * 0.01, rel=1e-3)


def test_exact_posteriors_from_the_exact_start_have_no_error():
    levels = [Level(tau=tau, error=Estimate(value=0.0), L=5.0) for tau in (1.0, 0.6, 0.3)]
    assert composed_bound(levels, Estimate(value=0.0), SCHEDULE).value == 0


def chain(m, s, model, times, schedule):
    """The law `N(mean, sd^2)` of the model's chain from N(0, 1) along these times, each of its draws being affine."""
    mean, variance = torch.zeros(()).double(), torch.ones(()).double()
    for tau, t_next in pairwise(times):
        gain, offset, V = model.moments(tau)
        A, B = (x[0] for x in bridge_weights(t_next[None], tau[None], schedule))
        std = schedule.sigma(t_next) * (transition.moments(t_next, tau, schedule)[1]).sqrt() / schedule.sigma(tau)
        mean = (A * gain + B) * mean + A * (offset - model.off)
        variance = (A * gain + B) ** 2 * variance + A**2 * V + std**2
    return ((mean - m) ** 2 + (variance.sqrt() - s) ** 2).item()


def chain_levels(m, s, model, times, schedule):
    for tau in times[:-1]:
        error = posterior_distance(Posterior(m, s, schedule=schedule), model, tau)
        yield Level(tau=tau.item(), error=Estimate(value=error), L=model.moments(tau)[0].item())


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_composed_bound_is_above_the_truth_on_gaussians(steps):
    """With other moments in the model than in the data; tight for a shift that adds up, where a quarter is no bound."""
    for seed in range(6):
        m, m_2 = (3 * normals(2, seed=seed)).tolist()
        s, s_2 = (0.5 + normals(2, seed=seed + 1).abs()).tolist()
        for grid in (UniformGrid(), LogSNRGrid()):
            times = grid(steps, SHORT)
            model = Posterior(m_2, s_2, 0.1, SHORT)
            start = Estimate(value=gaussian_start(m, s, SHORT))
            bound = composed_bound(list(chain_levels(m, s, model, times, SHORT)), start, SHORT)
            assert holds(bound, Estimate(value=chain(m, s, model, times, SHORT)))
    model, times = Posterior(3.0, 1.0, 0.2, SHORT), UniformGrid()(steps, SHORT)
    start = Estimate(value=gaussian_start(3.0, 1.0, SHORT))
    bound, truth = composed_bound(list(chain_levels(3.0, 1.0, model, times, SHORT)), start, SHORT), chain(
        3.0, 1.0, model, times, SHORT
    )  # fmt: skip
    assert bound.value == pytest.approx(truth, rel=1e-9)
    assert not holds(divided(bound, 4), Estimate(value=truth))


@pytest.mark.parametrize("steps", [1, 3])
def test_the_coupled_bound_is_above_the_truth_and_tight_for_a_shift(steps):
    m, s = 3.0, 1.0
    times = UniformGrid()(steps, SHORT)
    for off in (0.0, 0.2):
        model = posterior_flow(m, s, 1, off, SHORT)
        bound = coupled_bound(model, isotropic(m, s, 1), Ancestral(steps), draws=2000, generator=generator(0))
        truth = Estimate(value=chain(m, s, model.network, times, SHORT))
        assert holds(bound, truth)
        composed = composed_bound(
            list(chain_levels(m, s, model.network, times, SHORT)), start_error(m**2 + s**2, 1, SHORT), SHORT
        )
        assert bound.lower() <= composed.value
    assert not holds(divided(bound, 4), truth)
    standard = coupled_bound(skip_flow(0.0, 1.0, 1), isotropic(0.0, 1.0, 1), Ancestral(steps), generator=generator(0))
    assert standard.value < 1e-4  # alpha_1^2 (1 + 1) of the start is all that is left


def test_interpolated_levels():
    levels = [
        Level(tau=t, error=Estimate(value=e, standard_error=0.1), L=L) for t, e, L in ((1.0, 4.0, 1.0), (0.2, 1.0, 3.0))
    ]
    same = interpolate_levels(levels, [1.0, 0.2, 0.05], SCHEDULE)
    assert [level.eps for level in same] == pytest.approx([2, 1, 1])
    assert [level.constant for level in same] == pytest.approx([1, 3, 3])
    assert same[0].error.standard_error == pytest.approx(0.1)
    middle = SCHEDULE.tau_at((SCHEDULE.log_snr(doubles(1.0)) + SCHEDULE.log_snr(doubles(0.2))) / 2).item()
    (between,) = interpolate_levels(levels, [middle], SCHEDULE)
    assert (between.eps, between.constant) == (pytest.approx(1.5), pytest.approx(2))
    assert [level.interpolated for level in (*same, between)] == [False, False, True, True]
    bound = composed_bound([same[0], between], Estimate(value=0.1), SCHEDULE)
    assert bound.estimates == (f"eps and L at {middle:.3g}, interpolated",)
    assert composed_bound(same[:2], Estimate(value=0.1), SCHEDULE).estimates == ()
    with pytest.raises(UserError, match="no levels"):
        interpolate_levels([], [1.0], SCHEDULE)


LEVELS = [
    Level(tau=t, error=Estimate(value=e**2), L=L)
    for t, e, L in ((1.0, 0.5, 0.3), (0.7, 0.45, 0.6), (0.4, 0.2, 1.5), (0.2, 0.1, 1.4), (0.05, 0.05, 1.05))
]


def bound_of(grid, steps):
    times = grid(steps, SCHEDULE)[:-1].tolist()
    return composed_bound(interpolate_levels(LEVELS, times, SCHEDULE), Estimate(value=1e-4), SCHEDULE).value


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_the_best_grid_is_the_best_of_all(steps):
    """Against every grid of the candidates; and no worse than the usual grids, where all times are allowed."""
    candidates = [1.0, 0.83, 0.7, 0.55, 0.4, 0.31, 0.2, 0.1, 0.05, 0.0]
    found = bound_of(best_grid(LEVELS, Estimate(value=1e-4), SCHEDULE, steps, candidates), steps)
    inner = sorted({*candidates[1:-1], *UniformGrid()(steps, SCHEDULE)[1:-1].tolist(),
                    *LogSNRGrid()(steps, SCHEDULE)[1:-1].tolist()}, reverse=True)  # fmt: skip
    everything = [bound_of(CustomGrid(times=(1.0, *c, 0.0)), steps) for c in combinations(inner, steps - 1)]
    assert found == pytest.approx(min(everything), rel=1e-12)
    free = bound_of(best_grid(LEVELS, Estimate(value=1e-4), SCHEDULE, steps), steps)
    assert free <= found * (1 + 1e-12)
    assert free <= bound_of(UniformGrid(), steps) * (1 + 1e-12)
    assert free <= bound_of(LogSNRGrid(), steps) * (1 + 1e-12)
    if steps > 1:
        assert free < 0.99 * bound_of(UniformGrid(), steps)


# --- a whole model


@pytest.mark.parametrize("d", [1, 2])
def test_certify_puts_the_bounds_next_to_the_truth(d):
    mixture = random_mixture(2, 3, d)
    model = random_model(mixture, 2, PosteriorFlow)
    sampler = Ancestral(2)
    options = {"draws": 600, "states": 8, "posterior_draws": 80, "samples": 800, "blocks": 8}
    found = certify(model, mixture, sampler, **options, generator=generator(0))
    assert [row.tau for row in found.rows] == [1.0, 0.5]
    assert all(holds(row.bound, row.measured) for row in found.rows)
    for bound in (found.composed, found.composed_measured, found.coupled):
        assert holds(bound, found.measured)
        assert bound.upper() > found.lower
    assert found.composed.estimates == ("L",)
    assert found.composed_measured.value < found.composed.value
    again = certify(model, mixture, sampler, **options, generator=generator(0))
    assert again == found
    assert found.start == start_error(second_moment(mixture), d, SCHEDULE)


@pytest.mark.parametrize("seed", range(10))
def test_every_bound_on_a_sampler_is_above_the_truth(seed):
    """Ten random mixtures in one and two dimensions: composed, composed from the measured eps, coupled, two steps.

    A planted error, a shift of every draw by .5, makes each of them larger.
    """
    mixture = random_mixture(10 * seed, 3, 1 + seed % 2)
    options = {"draws": 500, "states": 8, "posterior_draws": 60, "samples": 800, "blocks": 8}
    right, wrong = (
        certify(shifted(mixture, seed, by), mixture, Ancestral(2), **options, generator=generator(seed))
        for by in (0.0, 0.5)
    )
    for found in (right, wrong):
        for name in ("composed", "composed_measured", "coupled"):
            assert holds(getattr(found, name), found.measured), name
    for name in ("composed", "composed_measured", "coupled"):
        assert getattr(wrong, name).value > getattr(right, name).value, name


def shifted(mixture, seed, by):
    """The random model, with `by` added to its average velocity in every component."""
    model = random_model(mixture, 10 * seed, PosteriorFlow)
    with torch.no_grad():
        model.network.out.bias += by
    return model


def test_what_the_user_can_mend():
    model, data = skip_flow(0.0, 1.0, 2), isotropic(0.0, 1.0, 2)
    with pytest.raises(UserError, match="one flow step and the bridge"):
        certify(model, data, Ancestral(2, flow_steps=2), generator=generator(0))
    with pytest.raises(UserError, match="the bridge"):
        coupled_bound(model, data, Ancestral(2, kernel=0.0), generator=generator(0))
    with pytest.raises(UserError, match="the model's dimension"):
        corollary_1(model, isotropic(0.0, 1.0, 3), 0.5)
    with pytest.raises(UserError, match="tau is above 0"):
        corollary_1(model, data, 0.0)
    with pytest.raises(UserError, match="at least 2"):
        corollary_1(model, data, 0.5, draws=1)
    with pytest.raises(UserError, match="give tau"):
        mean_flow_residual(model, data, 0.5)
    with pytest.raises(UserError, match="t lies between"):
        mean_flow_residual(model, data, 1.5, tau=0.5)
    with pytest.raises(UserError, match="horizon"):
        start_error(1.0, 2, SCHEDULE, horizon=0.0)
    with pytest.raises(UserError, match="not negative"):
        proposition_4(1.0, -0.1)
    with pytest.raises(UserError, match="equal sizes"):
        sampled_distance(torch.zeros(10, 2), torch.zeros(9, 2))
    with pytest.raises(UserError, match="candidate times"):
        best_grid(LEVELS, Estimate(value=0.0), SCHEDULE, 2, [1.5])
    with pytest.raises(UserError, match="no levels"):
        composed_bound([], Estimate(value=0.0), SCHEDULE)
    flow = Estimate(value=0.01)
    for negative in (
        lambda: corollary_4(flow, 1.0, -1.0, 1.0),
        lambda: corollary_4(flow, -1.0, 1.0, 1.0),
        lambda: corollary_5(flow, 1.0, -5.0, 2, 1.0),
        lambda: corollary_5(flow, -1.0, 5.0, 2, 1.0),
        lambda: proposition_3(1.0, 1.0, -3, SCHEDULE),
    ):
        with pytest.raises(UserError, match="not negative"):
            negative()
    below_0 = corollary_2(Estimate(value=-1e-3), start_error(1.0, 2, SCHEDULE))  # an unbiased estimate may be
    assert below_0.terms["minkowski"] == pytest.approx(start_error(1.0, 2, SCHEDULE).value)


def test_a_standardised_mean_flow_has_the_law_of_the_standardised_data():
    model = random_model(t2(), 1, MeanFlow)
    law, scale = data_law(model, t2())
    assert_close(model.decode(law.mean), t2().mean)
    assert_close(scale**2 * law.covariance, t2().covariance)
    assert_close(interpolate(law.mean[None], law.mean[None], doubles(0.5)), law.mean[None])


@pytest.mark.slow
def test_a_trained_ring(tmp_path):
    """Every bound holds at N = 1 and 4, the coupled one being the sharpest; so does the budget of the chosen grid.

    The budget is smallest there, which does not make the distance smallest: `benchmarks/certificates.py` measures that.
    """
    import fewstep
    from fewstep.recipes import find_recipe
    from fewstep.theory import measure
    from fewstep.training import train
    from test_training import options

    recipe = replace(find_recipe("ring-stmd"), steps=1500)
    train(recipe, options(tmp_path))
    model, mixture = fewstep.load(tmp_path).double(), recipe.dataset.mixture
    small = {"draws": 2000, "states": 24, "posterior_draws": 128, "generator": generator(0)}
    for steps in (1, 4):
        found = certify(model, mixture, Ancestral(steps), samples=4000, **small)
        assert all(holds(row.bound, row.measured) for row in found.rows)
        assert holds(found.composed, found.measured)
        assert holds(found.composed_measured, found.measured)
        assert holds(found.coupled, found.measured)
        assert found.coupled.upper() < found.composed.lower()  # the coupling behind it, before it is bounded
    rows = [measure(model, mixture, tau, **small) for tau in (1.0, 0.8, 0.5, 0.25, 0.1)]
    levels = [Level(tau=row.tau, error=row.measured.plain, L=row.L) for row in rows]
    start = start_error(second_moment(mixture), 2, model.schedule)
    for steps in (2, 4):
        bounds = []
        for grid in (best_grid(levels, start, model.schedule, steps), UniformGrid(), LogSNRGrid()):
            times = grid(steps, model.schedule)[:-1].tolist()
            bounds.append(composed_bound(interpolate_levels(levels, times, model.schedule), start, model.schedule))
            y = Ancestral(steps, grid=grid)(model, normals(4000, 2, seed=0), generator(1))
            assert holds(bounds[-1], sampled_distance(y, mixture.sample((4000,), generator(2)), blocks=8))
        assert bounds[0].value < min(bound.value for bound in bounds[1:])
