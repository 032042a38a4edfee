"""The forward transition: a semigroup of Gaussian kernels."""

import pytest
import torch
from scipy.stats import norm
from torch.distributions import Normal
from torch.testing import assert_close

from fewstep import transition
from fewstep.schedule import CosineSchedule, VPSchedule
from problems import SCHEDULE, doubles, generator, normals
from stats import accepts, ks, rejects

every_schedule = pytest.mark.parametrize("schedule", [VPSchedule(), CosineSchedule()], ids=str)
S, Q, TAU = doubles(0.0, 0.1, 0.4), doubles(0.1, 0.4, 0.5), doubles(0.3, 0.9, 1.0)


@every_schedule
def test_chapman_kolmogorov_by_quadrature(schedule):
    """`int p(x_tau | x_q) p(x_q | x_s) dx_q = p(x_tau | x_s)`; with s for q in the second kernel it is not."""
    x_q, step = torch.linspace(-12, 12, 6001, dtype=torch.float64)[:, None], 24 / 6000

    def p(x_tau, x_s, s, tau):
        return transition.log_prob(x_tau, x_s, s, tau, schedule).exp()

    for s, q, tau in zip(S, Q, TAU, strict=True):
        x_s, x_tau = doubles(0.7)[None], doubles(-0.4)[None]
        direct = p(x_tau, x_s, s, tau)
        chained = (p(x_tau, x_q, q, tau) * p(x_q, x_s, s, q)).sum() * step
        wrong = (p(x_tau, x_q, s, tau) * p(x_q, x_s, s, q)).sum() * step
        assert_close(chained, direct[0], rtol=1e-9, atol=0)
        assert abs(wrong / direct - 1) > 1e-4


@every_schedule
def test_moments_are_those_of_the_marginals(schedule):
    """`x_tau` has the factor alpha_tau of the data and the variance sigma_tau^2, by way of any x_s."""
    a, v = transition.moments(S, TAU, schedule)
    assert_close(a * schedule.alpha(S), schedule.alpha(TAU), rtol=1e-13, atol=0)
    assert_close(a**2 * schedule.sigma(S) ** 2 + v, schedule.sigma(TAU) ** 2, rtol=1e-13, atol=0)


@every_schedule
def test_a_short_step_has_variance_beta_dtau(schedule):
    tau, dtau = doubles(0.05, 0.5, 0.9), 1e-8
    a, v = transition.moments(tau, tau + dtau, schedule)
    assert_close(v / dtau, schedule.beta(tau), rtol=1e-6, atol=0)
    assert_close((a - 1) / dtau, -schedule.beta(tau) / 2, rtol=1e-6, atol=0)


def test_log_prob_is_that_of_a_normal():
    """Items of several axes; the factor and the variance written with alpha and sigma (eq. 15)."""
    x_s, x_tau = normals(3, 2, 4, seed=0), normals(3, 2, 4, seed=1)
    a = (SCHEDULE.alpha(TAU) / SCHEDULE.alpha(S))[:, None, None]
    v = SCHEDULE.sigma(TAU)[:, None, None] ** 2 - a**2 * SCHEDULE.sigma(S)[:, None, None] ** 2
    expected = Normal(a * x_s, v.sqrt()).log_prob(x_tau).sum((1, 2))
    assert_close(transition.log_prob(x_tau, x_s, S, TAU, SCHEDULE), expected, rtol=1e-12, atol=0)


def test_draws_follow_the_density():
    """The distribution function at a draw is uniform, item by item; a variance 1.2 times too large is rejected."""
    n = 30_000
    s, tau = S.repeat(n // 3), TAU.repeat(n // 3)
    x_s = normals(n, 1, seed=2)
    x_tau = transition.sample(x_s, s, tau, SCHEDULE, generator(3))
    a = SCHEDULE.alpha(tau) / SCHEDULE.alpha(s)
    std = (SCHEDULE.sigma(tau) ** 2 - a**2 * SCHEDULE.sigma(s) ** 2).sqrt()
    z = (x_tau[:, 0] - a * x_s[:, 0]) / std
    assert accepts(ks(z, norm.cdf))
    assert rejects(ks(z * 1.2**0.5, norm.cdf))


def test_no_time_is_no_step():
    x = normals(3, 2, seed=4)
    assert torch.equal(transition.sample(x, TAU, TAU, SCHEDULE, generator(0)), x)
