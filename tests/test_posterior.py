"""What a posterior model returns: a point, a flow or particles, with one interface."""

import pytest
import torch
from torch.testing import assert_close

from fewstep.errors import UserError
from fewstep.models import MeanOnly, MixturePosterior
from fewstep.posterior import DiracPosterior, FlowPosterior, ParticlePosterior, score
from fewstep.scaling import GaussianScaling
from problems import SCHEDULE, LinearFlow, doubles, gaussian, generator, generators, normals, t2, tau_of
from stats import accepts, chi_square, ks, mean_and_covariance, rejects

FLOW = LinearFlow(mean=0.7, std=0.4)
TAU = doubles(0.2, 0.5, 0.9)
STATES = normals(3, 2, seed=0)


def decode(w, x_tau, tau):
    return x_tau**2 + tau[:, None] * w


def flow_posterior(x_tau=STATES, tau=TAU, u=FLOW):
    return FlowPosterior(u, decode, x_tau, tau)


PARTICLES = ParticlePosterior(normals(4, 2, seed=1), doubles(0.1, 0.2, 0.3, 0.4).log().expand(3, 4))
MIXTURE = MixturePosterior(t2(), SCHEDULE)(STATES, TAU)
POINT = DiracPosterior(STATES)
every_posterior = pytest.mark.parametrize(
    "q", [POINT, flow_posterior(), PARTICLES, MIXTURE, MeanOnly(MixturePosterior(t2(), SCHEDULE))(STATES, TAU)],
    ids=lambda q: type(q).__name__,
)  # fmt: skip


@every_posterior
def test_draws_have_the_leading_shape_and_the_seed_decides(q):
    for shape in [(), (5,), (2, 4)]:
        x_0 = q.sample(shape, generator=generator(0))
        assert x_0.shape == (*shape, 3, 2)
        assert torch.equal(x_0, q.sample(shape, generator=generator(0)))
    assert q.mean().shape == (3, 2)


@every_posterior
def test_an_item_with_its_own_generator_does_not_see_the_batch(q):
    if isinstance(q, ParticlePosterior):
        alone = ParticlePosterior(q.particles, q.log_weights[1:2])
    elif isinstance(q, FlowPosterior):
        alone = flow_posterior(STATES[1:2], TAU[1:2])
    elif q is POINT:
        alone = DiracPosterior(STATES[1:2])
    else:
        model = MixturePosterior(t2(), SCHEDULE)
        alone = (model if q is MIXTURE else MeanOnly(model))(STATES[1:2], TAU[1:2])
    batch = q.sample((4,), generator=generators(0, 1, 2))
    assert_close(alone.sample((4,), generator=generators(1))[:, 0], batch[:, 1])


def test_a_point_has_no_randomness():
    assert torch.equal(POINT.sample((2,), noise=normals(2, 3, 2, seed=2)), STATES.expand(2, 3, 2))
    assert torch.equal(POINT.mean(draws=7), STATES)


@pytest.mark.parametrize("cut", [{}, {"flow_steps": 4}, {"flow_grid": (1.0, 0.8, 0.1, 0.0)}], ids=str)
def test_draws_of_the_exact_flow_have_its_law(cut):
    """With the exact u every cut of the flow clock gives `decode(N(m, s^2))`; with v in its place none of these does."""
    n = 20_000
    x_0 = flow_posterior().sample((n,), generator=generator(3), **cut)
    w = (x_0 - STATES**2) / TAU[:, None]
    assert accepts(ks((w - 0.7) / 0.4, "norm"))
    assert rejects(ks((w - 0.7) / 0.4 * 1.2**0.5, "norm"))
    instantaneous = flow_posterior(u=lambda z, r, t, *held: FLOW(z, t, t))
    wrong = (instantaneous.sample((n,), generator=generator(3), **cut) - STATES**2) / TAU[:, None]
    assert rejects(ks((wrong - 0.7) / 0.4, "norm"))


def test_the_flow_steps_follow_the_grid():
    """Three steps on given times are three flow maps; a repeated draw sees its own state."""
    noise, q = normals(2, 3, 2, seed=4), flow_posterior(u=lambda z, r, t, x, tau: (r + 2 * t)[:, None] * z + x)
    z = noise
    for t, r in [(1.0, 0.6), (0.6, 0.3), (0.3, 0.0)]:
        z = torch.stack([q.flow_map(z[k], t, r) for k in (0, 1)])
    by_hand = torch.stack([decode(z[k], STATES, TAU) for k in (0, 1)])
    assert_close(q.sample((2,), flow_grid=(1.0, 0.6, 0.3, 0.0), noise=noise), by_hand)
    assert_close(q.sample((2,), flow_steps=3, flow_grid=(1.0, 0.6, 0.3, 0.0), noise=noise), by_hand)
    even = (1.0, 0.5, 0.0)
    assert_close(q.sample((2,), flow_steps=2, noise=noise), q.sample((2,), flow_grid=even, noise=noise))


def test_the_mean_needs_one_evaluation():
    """At t = 1, `z - u(z, 1, 1)` is the mean of w for every z, so one draw is as good as a hundred."""
    expected = STATES**2 + TAU[:, None] * 0.7
    assert_close(flow_posterior().mean(1, generator(5)), expected)
    assert_close(flow_posterior().mean(100, generator(6)), expected)


def test_the_mean_averages_over_draws_of_noise_and_not_at_zero():
    """A model whose u(z, 1, 1) is biased by z^2 is averaged over z ~ N(0, 1): `E[w] = -E[z^2] = -1`."""
    q = flow_posterior(u=lambda z, r, t, *held: z + z**2)
    assert_close(q.mean(200_000, generator(7)), STATES**2 - TAU[:, None], rtol=0, atol=0.02)


def test_draws_are_differentiable_in_state_and_noise():
    def draw(x_tau, noise):
        q = flow_posterior(x_tau, u=lambda z, r, t, x, tau: z.sin() * x + t[:, None] * z)
        return q.sample((2,), flow_steps=3, noise=noise)

    inputs = STATES.clone().requires_grad_(), normals(2, 3, 2, seed=8).requires_grad_()
    assert torch.autograd.gradcheck(draw, inputs)

    def exact(x_tau, noise):
        return MixturePosterior(t2(), SCHEDULE)(x_tau, TAU).sample((2,), noise=noise, generator=generator(9))

    assert torch.autograd.gradcheck(exact, inputs)


def test_a_gaussian_flow_is_the_exact_posterior():
    """Under the Gaussian scaling the flow of w ~ N(0, 1) is the posterior of Gaussian data, at each of three times."""
    mean, std = doubles(1.0, -0.5), doubles(0.6)[0]

    def unscale(w, x_tau, tau):
        offset, scale = GaussianScaling().coefficients(x_tau, tau, SCHEDULE, mean, std)
        return offset + scale[:, None] * w

    q = FlowPosterior(LinearFlow(0.0, 1.0), unscale, STATES, TAU)
    exact = gaussian(mean, 0.6).posterior(STATES, TAU, SCHEDULE)
    draws = q.sample((20_000,), flow_steps=2, generator=generator(10))
    assert_close(q.mean(3, generator(11)), exact.mean)
    for i in range(3):
        assert accepts(mean_and_covariance(draws[:, i], exact.mean[i], exact.covariance[i]))
        assert rejects(mean_and_covariance(draws[:, i], exact.mean[i], 1.2 * exact.covariance[i]))


def test_particles_are_drawn_by_weight():
    """Three items with three laws over the same particles; each law rejects its neighbour's draws."""
    probabilities = torch.stack([doubles(0.1, 0.2, 0.3, 0.4), doubles(0.4, 0.3, 0.2, 0.1), doubles(0, 0.5, 0.5, 0)])
    particles = torch.arange(4.0)[:, None]
    q = ParticlePosterior(particles, probabilities.log() - 300)
    draws = q.sample((20_000,), generator=generator(12))[..., 0].long()
    for i in range(3):
        assert accepts(chi_square(draws[:, i], probabilities[i]))
        assert rejects(chi_square(draws[:, (i + 1) % 3], probabilities[i]))
    assert_close(ParticlePosterior(particles.double(), q.log_weights).mean(), doubles(2, 1, 1.5)[:, None])


@pytest.mark.parametrize("alpha_squared", [0.9, 0.5, 0.1])
def test_tweedie(alpha_squared):
    """The score from the posterior mean is the gradient of the log-density of the state."""
    tau = tau_of(alpha_squared)
    x_tau = STATES.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(t2().marginal(tau, SCHEDULE).log_prob(x_tau).sum(), x_tau)
    assert_close(score(MixturePosterior(t2(), SCHEDULE)(STATES, tau).mean(), STATES, tau, SCHEDULE), gradient)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: flow_posterior().sample((2,), noise=normals(3, 2, seed=0)),
        lambda: MIXTURE.sample(noise=normals(2, 3, 2, seed=0)),
        lambda: PARTICLES.sample(noise=STATES),
        lambda: flow_posterior().sample(flow_steps=0),
        lambda: flow_posterior().sample(flow_steps=3, flow_grid=(1.0, 0.5, 0.0)),
        lambda: flow_posterior().sample(flow_grid=(1.0, 0.5)),
        lambda: flow_posterior().sample(flow_grid=(0.9, 0.0)),
    ],
)
def test_what_is_refused(wrong):
    with pytest.raises(UserError):
        wrong()
