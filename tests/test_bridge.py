"""The bridge is Bayes' rule; the kernels around it keep the marginals, and only the bridge keeps the joint law."""

import pytest
import torch
from torch.distributions import Normal
from torch.testing import assert_close

from fewstep import transition
from fewstep.bridge import bridge, bridge_c, kernel
from fewstep.schedule import CosineSchedule, VPSchedule
from problems import SCHEDULE, doubles, generator, normals, three_modes
from stats import accepts, ks, rejects, z_tests

every_schedule = pytest.mark.parametrize("schedule", [VPSchedule(), CosineSchedule()], ids=str)
S, TAU = doubles(0.02, 0.3, 0.6, 0.1), doubles(0.9, 0.35, 0.8, 1.0)
X_0, X_S, X_TAU = normals(4, 2, seed=0), normals(4, 2, seed=1), normals(4, 2, seed=2)
ZERO = torch.zeros_like(S)


def bayes_gap(mean, std, schedule):
    """`log p(x_s|x_0) + log p(x_tau|x_s) - log p(x_tau|x_0) - log N(x_s; mean, std^2)`: zero for the bridge."""
    p = transition.log_prob
    right = p(X_S, X_0, ZERO, S, schedule) + p(X_TAU, X_S, S, TAU, schedule) - p(X_TAU, X_0, ZERO, TAU, schedule)
    return (right - Normal(mean, std).log_prob(X_S).sum(1)).abs()


@every_schedule
def test_bayes_rule(schedule):
    """The log-densities agree; with sigma_s and sigma_tau swapped, in the mean or in the deviation, none does."""
    mean, std = bridge(X_0, X_TAU, S, TAU, schedule)
    assert (bayes_gap(mean, std, schedule) < 1e-9).all()
    ratio = (schedule.sigma(S) / schedule.sigma(TAU))[:, None]
    assert (bayes_gap(mean, std / ratio, schedule) > 1e-3).all()
    a, v = (m[:, None] for m in transition.moments(S, TAU, schedule))
    swapped = schedule.alpha(S)[:, None] * v / ratio**2 * X_0 + a / ratio**2 * X_TAU
    assert (bayes_gap(swapped, std, schedule) > 1e-3).all()
    assert (bayes_gap(mean, std * 1.2**0.5, schedule) > 1e-3).all()


@every_schedule
def test_two_steps_compose(schedule):
    """From tau to q to s, with x_0 held, is from tau to s."""
    q = (S + TAU) / 2
    middle_mean, middle_std = bridge(X_0, X_TAU, q, TAU, schedule)
    mean, std = bridge(X_0, middle_mean, S, q, schedule)
    factor, _ = bridge(torch.zeros_like(X_0), torch.ones_like(X_0), S, q, schedule)
    direct_mean, direct_std = bridge(X_0, X_TAU, S, TAU, schedule)
    assert_close(mean, direct_mean, rtol=1e-11, atol=1e-12)
    assert_close((std**2 + (factor[:, :1] * middle_std) ** 2).sqrt(), direct_std, rtol=1e-11, atol=0)


@every_schedule
def test_ends(schedule):
    """At s = 0 the bridge is at the data; as s goes to tau it is at the state."""
    mean, std = bridge(X_0, X_TAU, ZERO, TAU, schedule)
    assert_close(mean, X_0, rtol=1e-14, atol=0)
    assert (std == 0).all()
    mean, std = bridge(X_0, X_TAU, TAU - 1e-10, TAU, schedule)
    assert_close(mean, X_TAU, rtol=1e-6, atol=1e-6)
    assert (std < 1e-3).all()


@every_schedule
def test_near_the_data_nothing_cancels(schedule):
    """A step from 1e-6 to 5e-7 obeys Bayes' rule in float32 as in float64."""
    s, tau = doubles(5e-7), doubles(1e-6)
    x_0, noise = normals(1, 2, seed=3), normals(1, 2, seed=4)
    x_tau = x_0 + schedule.sigma(tau) * noise
    _, exact = bridge(x_0, x_tau, s, tau, schedule)
    _, single = bridge(x_0.float(), x_tau.float(), s.float(), tau.float(), schedule)
    assert_close(single.double(), exact, rtol=1e-6, atol=0)


@every_schedule
def test_the_bridge_is_a_member_of_the_family(schedule):
    c = bridge_c(S, TAU, schedule)
    assert ((c > 0) & (c < 1)).all()
    for ours, theirs in zip(kernel(X_0, X_TAU, S, TAU, schedule, c), bridge(X_0, X_TAU, S, TAU, schedule), strict=True):
        assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    _, ddim = kernel(X_0, X_TAU, S, TAU, schedule, 1.0)
    assert (ddim == 0).all()
    number, each = (kernel(X_0, X_TAU, S, TAU, schedule, c) for c in (0.6, torch.full_like(S, 0.6)))
    assert_close(number, each)
    assert_close(number[1][:, 0], 0.8 * schedule.sigma(S))  # 3, 4, 5


def test_one_time_is_that_time_for_every_item():
    s, tau = doubles(0.3)[0], doubles(0.7)[0]
    for of_all, of_each in zip(
        bridge(X_0, X_TAU, s, tau, SCHEDULE),
        bridge(X_0, X_TAU, s.expand(4), tau.expand(4), SCHEDULE),
        strict=True,
    ):
        assert_close(of_all.expand_as(of_each), of_each, rtol=1e-14, atol=0)


@pytest.mark.parametrize("c", [0.0, 0.5, None, 1.0], ids=["renoising", "half", "bridge", "ddim"])
def test_every_kernel_keeps_the_marginals_and_only_the_bridge_the_pair(c):
    """Exact draws of x_0 give the law of x_s for every c; the mean in place of a draw gives it for none.

    The covariance of the pair is `alpha_s alpha_tau Var(x_0) + c sigma_s sigma_tau`, the truth `a Var(x_s)`.
    """
    n, s, tau = 40_000, doubles(0.25)[0], doubles(0.5)[0]
    mixture, source = three_modes(), generator(5)
    x_tau = transition.sample(mixture.sample((n,), source), ZERO[0], tau, SCHEDULE, source)
    posterior = mixture.posterior(x_tau, tau, SCHEDULE)
    number = bridge_c(s, tau, SCHEDULE) if c is None else torch.as_tensor(c).double()

    def step(x_0):
        mean, std = kernel(x_0, x_tau, s, tau, SCHEDULE, number)
        return mean + std * normals(n, 1, seed=6)

    x_s, truth = step(posterior.sample((), source)), mixture.marginal(s, SCHEDULE)
    assert accepts(ks(x_s, truth))
    assert rejects(ks(step(posterior.mean), truth))
    assert rejects(ks(x_s * 1.2**0.5, truth))

    (sigma_s, sigma_tau), alpha_s = SCHEDULE.sigma(torch.stack([s, tau])), SCHEDULE.alpha(s)
    a, _ = transition.moments(s, tau, SCHEDULE)
    products = (x_s - truth.mean) * (x_tau - a * truth.mean)
    variance = (truth.covariance[0] - sigma_s**2) / alpha_s**2
    assert accepts(z_tests(products, a * alpha_s**2 * variance + number * sigma_s * sigma_tau))
    of_the_reverse_sde = z_tests(products, a * truth.covariance[0])
    assert accepts(of_the_reverse_sde) if c is None else c == 0.5 or rejects(of_the_reverse_sde)
