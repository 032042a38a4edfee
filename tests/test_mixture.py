"""Gaussian mixtures against quadrature, autograd and the table of numbers known for the reference problem T2."""

import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from fewstep.errors import UserError
from fewstep.mixture import GaussianMixture
from problems import SCHEDULE, doubles, generator, normals, ring, t2, tau_of, three_modes
from stats import accepts, chi_square, ks, mean_and_covariance, rejects

A, GAM, Y = doubles(1, 0.5)[None], doubles(0.25)[None], doubles(0.5)
X_TAU = doubles(0.4, -0.7)[None]


def printed(actual, *expected, digits=8):
    """Equal to the last printed digit."""
    assert_close(actual.flatten(), doubles(*expected), rtol=0, atol=0.51 * 10**-digits)


def test_t2_moments():
    printed(t2().mean, -0.4, -0.1, digits=14)
    printed(t2().covariance, 3.365, 0.595, 0.595, 1.33, digits=14)


def test_t2_measured():
    posterior = t2().condition(Y, A, GAM)
    printed(t2().log_evidence(Y, A, GAM), -3.5676335577, digits=10)
    printed(posterior.weights, 0.09725680, 0.15066101, 0.75208219)
    printed(posterior.means, -0.75, 0.71428571, 1.18181818, 0.45454545, 0.96774194, -1.90322581)
    printed(posterior.covariances[0], 0.125, 0, 0, 0.14285714)
    printed(posterior.covariances[1], 0.15795455, -0.11136364, -0.11136364, 0.35909091)
    printed(posterior.covariances[2], 0.17741935, -0.03225806, -0.03225806, 0.09677419)
    printed(posterior.mean, 0.83293280, -1.29343081)
    printed(posterior.covariance, 0.44508926, -0.32007479, -0.32007479, 1.27280644)


TABLE = {
    0.9: (-6.18734538, (0.00464788, 0.04317095, 0.95218118), (0.36856152, -1.34937890),
          (0.10867010, 0.02422327, 0.10964375), (-0.50351839, -5.80133226),
          -1.37420147, (2.15859633, 1.09070074), -1.5255, (3.695, 2.418)),
    0.5: (-3.20080081, (0.13818057, 0.17394536, 0.68787407), (0.23275677, -1.22923630),
          (1.11589786, 0.18758262, 1.16713742), (-0.47083222, -0.33840264),
          -2.24182695, (0.91474041, -0.49837737), -1.7812, (6.035, 3.847)),
    0.1: (-2.33395092, (0.38022646, 0.29586022, 0.32391332), (-0.11706882, -0.39717451),
          (2.90193526, 0.45468791, 1.58275809), (-0.48557823, 0.63822488),
          -3.09231478, (0.36066244, -0.39124584), -1.5564, (3.587, 1.428)),
}  # fmt: skip


@pytest.mark.parametrize("alpha_squared", TABLE)
def test_t2_seen_from_a_noisy_state(alpha_squared):
    log_p, weights, mean, (c_11, c_12, c_22), score, value, gradient, plug_in, plug_in_gradient = TABLE[alpha_squared]
    tau, x = tau_of(alpha_squared), X_TAU.clone().requires_grad_()
    marginal, posterior = t2().marginal(tau, SCHEDULE), t2().posterior(x, tau, SCHEDULE)
    printed(marginal.log_prob(x), log_p)
    printed(posterior.weights, *weights)
    printed(marginal.responsibilities(x), *weights)
    printed(posterior.mean, *mean)
    printed(posterior.covariance, c_11, c_12, c_12, c_22)
    printed(marginal.score(x), *score)

    value_at_x = t2().value(x, tau, SCHEDULE, Y, A, GAM)
    printed(value_at_x, value)
    printed(torch.autograd.grad(value_at_x, x, retain_graph=True)[0], *gradient)

    plugged = MultivariateNormal(posterior.mean @ A.T, GAM).log_prob(Y)
    printed(plugged, plug_in, digits=4)
    printed(torch.autograd.grad(plugged, x)[0], *plug_in_gradient, digits=3)


@pytest.mark.parametrize(
    ("draws", "error", "gradient"),
    [
        (4, 1.19, (0.611, -0.378)),
        (16, 0.63, (0.854, -0.468)),
        (64, 0.30, (0.901, -0.498)),
        (256, 0.15, None),
        (1024, 0.076, None),
    ],
)
def test_t2_gradient_of_the_value_from_draws(draws, error, gradient):
    """`(alpha / sigma^2)(sum_j w_j x_0^j - mean_j x_0^j)`: bias and root mean square error as measured with 2000 repeats."""
    repeats, tau = 8000, tau_of(0.5)
    x_0 = t2().posterior(X_TAU, tau, SCHEDULE).sample((repeats, draws), generator(0))[:, :, 0]
    weights = MultivariateNormal(Y, GAM).log_prob(x_0 @ A.T).softmax(1)[..., None]
    alpha_over_variance = SCHEDULE.alpha(tau) / SCHEDULE.sigma(tau) ** 2
    estimate = alpha_over_variance * ((weights * x_0).sum(1) - x_0.mean(1))
    rmse = (estimate - doubles(0.91474041, -0.49837737)).square().sum(1).mean().sqrt()
    assert rmse.item() == pytest.approx(error, rel=0.05)
    if gradient:
        assert_close(estimate.mean(0), doubles(*gradient), rtol=0, atol=4 * error / 2000**0.5)


def test_t2_noiseless_inpainting():
    posterior = t2().condition(Y, doubles(1, 0)[None], torch.zeros(1, 1).double())
    printed(posterior.weights[1:], 0.029367, 0.970513, digits=6)
    assert posterior.weights[0].item() == pytest.approx(1.2038e-4, abs=0.51e-8)
    printed(posterior.means[:, 1], 0.8333, 1.3, -2.0, digits=4)
    printed(posterior.covariances[:, 1, 1], 0.1667, 0.39, 0.10, digits=4)
    draws = posterior.sample((1000,), generator(1))
    assert_close(draws[:, 0], Y.expand(1000), rtol=0, atol=1e-7)
    assert draws[:, 1].std() > 0.3


def test_t2_tilted():
    b = doubles(0.5, -1)
    tilted, log_z = t2().tilt(b)
    printed(log_z, 0.80743961)
    printed(tilted.weights, 0.08953848, 0.17287916, 0.73758236)
    printed(tilted.mean, 0.38580773, -1.46294821)
    reward = tilted.mean @ b
    printed(reward, 1.65585207)
    printed(reward - log_z, 0.84841246)
    x = normals(5, 2, seed=2)
    assert_close(tilted.log_prob(x), t2().log_prob(x) + x @ b - log_z)


def test_t2_split_gibbs_has_a_widened_likelihood():
    posterior = t2().condition(Y, A, GAM + 0.25 * A @ A.T)
    printed(posterior.weights, 0.18502929, 0.25915828, 0.55581244)
    printed(posterior.mean, 0.55626574, -0.81290423)
    printed(posterior.covariance.diagonal(), 0.99278367, 1.74800492)


def test_densities_by_quadrature():
    """On the line: total mass, mean and evidence of a noisy state are integrals; with another tau they are not."""
    x, step = torch.linspace(-8, 8, 8001, dtype=torch.float64)[:, None], 16 / 8000
    prior, tau, state = three_modes(), tau_of(0.6), doubles(0.3)
    density = prior.log_prob(x).exp()
    assert_close(density.sum() * step, doubles(1)[0], rtol=1e-12, atol=0)
    assert_close((density * x[:, 0]).sum()[None] * step, prior.mean, rtol=1e-12, atol=0)
    noise = torch.distributions.Normal(SCHEDULE.alpha(tau) * x[:, 0], SCHEDULE.sigma(tau))
    joint = density * noise.log_prob(state).exp()
    evidence = joint.sum() * step
    assert_close(prior.marginal(tau, SCHEDULE).log_prob(state).exp(), evidence, rtol=1e-11, atol=0)
    assert abs(prior.marginal(tau_of(0.5), SCHEDULE).log_prob(state).exp() / evidence - 1) > 0.01
    posterior = prior.posterior(state[None], tau, SCHEDULE)
    assert_close(posterior.log_prob(x).exp(), joint / evidence, rtol=1e-9, atol=1e-12)
    assert_close(posterior.mean[0, 0], (joint * x[:, 0]).sum() * step / evidence, rtol=1e-11, atol=0)


@pytest.mark.parametrize("mixture", [t2(), three_modes(), ring()], ids=["t2", "three_modes", "ring"])
def test_score_is_the_gradient_of_the_log_density(mixture):
    x = normals(7, mixture.dim, seed=3).requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_prob(x).sum(), x)
    assert_close(mixture.score(x), gradient, rtol=1e-10, atol=1e-10)


def test_log_prob_is_that_of_torch():
    components = MultivariateNormal(t2().means, t2().covariances)
    mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(t2().weights), components)
    x = normals(7, 2, seed=4)
    assert_close(t2().log_prob(x), mixture.log_prob(x), rtol=1e-12, atol=0)


def test_sampling_law():
    """Draws have the mixture's moments and component frequencies; a tenth more variance is rejected."""
    x = t2().sample((40_000,), generator(5))
    assert accepts(mean_and_covariance(x, t2().mean, t2().covariance))
    assert rejects(mean_and_covariance(1.2**0.5 * (x - t2().mean) + t2().mean, t2().mean, t2().covariance))
    y = three_modes().sample((200, 200), generator(6))
    assert y.shape == (200, 200, 1)
    assert accepts(ks(y, three_modes()))
    assert rejects(ks(y, GaussianMixture(doubles(0.45, 0.35, 0.2), three_modes().means, three_modes().covariances)))
    modes = ring().responsibilities(ring().sample((8000,), generator(7))).argmax(1)
    assert accepts(chi_square(modes, torch.full((8,), 1 / 8)))


def test_a_batch_of_mixtures_is_sampled_item_by_item():
    """Each state has its own posterior; the law of one is rejected for another."""
    states = doubles(-1, -0.2, 0.2, 0.5, 0.6, -1).reshape(3, 2)
    law = t2().posterior(states, tau_of(0.5), SCHEDULE)
    draws = law.sample((20_000,), generator(8))
    for i in range(3):
        assert accepts(mean_and_covariance(draws[:, i], law.mean[i], law.covariance[i]))
        assert rejects(mean_and_covariance(draws[:, i], law.mean[i - 1], law.covariance[i - 1]))
    grid = GaussianMixture(law.weights[:, None], law.means[:, None], law.covariances)
    assert grid.sample((4,), generator(9)).shape == (4, 3, 1, 2)


def test_one_time_is_that_time_for_every_item():
    states, tau = normals(3, 2, seed=5), tau_of(0.5)
    one, each = t2().posterior(states, tau, SCHEDULE), t2().posterior(states, tau.expand(3), SCHEDULE)
    for name in ("weights", "means"):
        assert_close(getattr(one, name), getattr(each, name))
    assert_close(one.mean, each.mean)
    assert_close(one.covariance, each.covariance)
    taus = torch.stack([tau_of(a) for a in (0.9, 0.5, 0.1)])
    mixed = t2().posterior(X_TAU.expand(3, 2), taus, SCHEDULE)
    printed(mixed.mean, *[number for row in TABLE.values() for number in row[2]])
    printed(t2().marginal(taus, SCHEDULE).log_prob(X_TAU.expand(3, 2)), *[row[0] for row in TABLE.values()])


def test_measuring_after_noising_is_conditioning_on_both():
    tau = tau_of(0.5)
    H = torch.cat([SCHEDULE.alpha(tau) * torch.eye(2).double(), A])
    noise = torch.block_diag(SCHEDULE.sigma(tau) ** 2 * torch.eye(2).double(), GAM)
    both = t2().condition(torch.cat([X_TAU[0], Y]), H, noise)
    in_turn = t2().posterior(X_TAU, tau, SCHEDULE).condition(Y, A, GAM)
    assert_close(both.weights, in_turn.weights[0])
    assert_close(both.means, in_turn.means[0])
    assert_close(both.covariances, in_turn.covariances)


def test_point_masses_are_mixtures_too():
    """Covariance zero: the law of a finite data set, with draws and, under noise, a density."""
    points = GaussianMixture(doubles(1, 3), doubles(-1, 2)[:, None], torch.zeros(2, 1, 1).double())
    draws = points.sample((10_000,), generator(10))[:, 0]
    assert set(draws.tolist()) == {-1.0, 2.0}
    assert accepts(chi_square((draws > 0).long(), doubles(0.25, 0.75)))
    assert rejects(chi_square((draws > 0).long(), doubles(0.3, 0.7)))
    posterior = points.posterior(doubles(0.3)[None], tau_of(0.5), SCHEDULE)
    odds = torch.exp(-((0.3 - 0.5**0.5 * doubles(-1, 2)) ** 2)) * doubles(1, 3)
    assert_close(posterior.weights[0], odds / odds.sum(), rtol=1e-12, atol=0)


EYE = torch.eye(2).double().expand(3, 2, 2)
MEANS = torch.zeros(3, 2).double()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: GaussianMixture(doubles(0.5, 0.5), MEANS, EYE),
        lambda: GaussianMixture(doubles(0.5, 0.2, 0.3), MEANS, EYE[:2]),
        lambda: GaussianMixture(doubles(0.5, 0.2, 0.3), MEANS, torch.eye(3).double().expand(3, 3, 3)),
        lambda: GaussianMixture(doubles(0.5, -0.2, 0.7), MEANS, EYE),
        lambda: GaussianMixture(doubles(0, 0, 0), MEANS, EYE),
        lambda: GaussianMixture(doubles(1, 1, 1), MEANS, -EYE),
        lambda: GaussianMixture(doubles(1, 1, 1), MEANS, EYE + doubles(0, 0.5, 0, 0).reshape(2, 2)),
        lambda: GaussianMixture(doubles(1, 1, 1), MEANS, torch.ones(3, 2, 2).double() + EYE * -0.5),
        lambda: GaussianMixture(doubles(1, float("nan"), 1), MEANS, EYE),
        lambda: GaussianMixture(doubles(1, 1, 1), MEANS, EYE * float("nan")),
    ],
)
def test_what_is_refused(wrong):
    with pytest.raises(UserError):
        wrong()


def test_weights_are_normalised():
    assert_close(GaussianMixture(doubles(2, 1, 1), MEANS, EYE).weights, doubles(0.5, 0.25, 0.25))
