"""The models without training error, against brute force."""

import pytest
import torch
from torch.distributions import Normal
from torch.testing import assert_close

from fewstep.models import EmpiricalPosterior, MixturePosterior
from fewstep.samplers import Ancestral
from problems import SCHEDULE, doubles, generator, generators, normals, t2, tau_of, three_modes
from stats import accepts, chi_square, ks, mean_and_covariance, rejects

STATES = normals(4, 2, seed=0)
TAUS = torch.stack([tau_of(a) for a in (0.95, 0.6, 0.3, 0.05)])
DATA = normals(6, 2, seed=1)
EMPIRICAL = EmpiricalPosterior(DATA, SCHEDULE)


def brute_force_weights(data, states, taus):
    """`p(x_tau | x_0^n)` of each datum, normalised."""
    alpha, sigma = SCHEDULE.alpha(taus), SCHEDULE.sigma(taus)
    rows = [Normal(a * data, s).log_prob(x).flatten(1).sum(1) for x, a, s in zip(states, alpha, sigma, strict=True)]
    densities = torch.stack(rows).exp()
    return densities / densities.sum(1, keepdim=True)


def test_empirical_weights_are_bayes_rule():
    q = EMPIRICAL(STATES, TAUS)
    weights = brute_force_weights(DATA, STATES, TAUS)
    assert_close(q.log_weights.softmax(1), weights, rtol=1e-9, atol=1e-14)
    assert_close(q.mean(), weights @ DATA, rtol=1e-9, atol=1e-14)


def test_empirical_frequencies():
    """Draws are data, each as often as its weight; the weights of alpha and sigma swapped are rejected."""
    draws = EMPIRICAL(STATES, TAUS).sample((20_000,), generator=generator(2))
    matches = (draws[:, :, None] == DATA).all(-1)
    assert (matches.sum(-1) == 1).all()
    weights = brute_force_weights(DATA, STATES, TAUS)
    swapped = brute_force_weights(DATA, STATES, SCHEDULE.tau_at(-SCHEDULE.log_snr(TAUS)))
    for i in (1, 2, 3):
        index = matches[:, i].double().argmax(-1)
        assert accepts(chi_square(index, weights[i]))
        assert rejects(chi_square(index, swapped[i]))


def test_empirical_posterior_of_many_axes_is_that_of_vectors():
    images = DATA.reshape(6, 1, 2, 1)
    q = EmpiricalPosterior(images, SCHEDULE)(STATES.reshape(4, 1, 2, 1), TAUS)
    assert_close(q.log_weights, EMPIRICAL(STATES, TAUS).log_weights)
    assert q.sample((3,), generator=generator(0)).shape == (3, 4, 1, 2, 1)


def test_empirical_posterior_near_the_data_is_the_datum():
    """At tau = 1e-4 in float32 the nearest datum has all the weight, however far from the origin the data is."""
    data = 1000 + DATA.float()
    tau = torch.full((6,), 1e-4)
    q = EmpiricalPosterior(data, SCHEDULE)(SCHEDULE.alpha(tau)[:, None] * data, tau)
    assert torch.equal(q.sample(generator=generator(3)), data)


def test_one_step_returns_data_points_only():
    """With all of it seen about equally often: at tau = 1 the state says almost nothing."""
    x_0 = Ancestral(1)(EMPIRICAL, normals(6000, 2, seed=4), generator(5))
    matches = (x_0[:, None] == DATA).all(-1)
    assert (matches.sum(1) == 1).all()
    exact = EMPIRICAL(normals(6000, 2, seed=4), 1.0).log_weights.softmax(1).mean(0)
    assert accepts(chi_square(matches.double().argmax(1), exact))
    assert rejects(chi_square(matches.double().argmax(1), exact.roll(1) * doubles(1.2, 1, 1, 1, 1, 1)))


@pytest.mark.parametrize("model", [MixturePosterior(t2(), SCHEDULE), EMPIRICAL], ids=lambda m: type(m).__name__)
def test_one_time_is_that_time_for_every_item(model):
    one, each = model(STATES, TAUS[1]), model(STATES, TAUS[1].expand(4))
    assert_close(one.mean(), each.mean())
    mixed = model(STATES, TAUS)
    for i in range(4):
        alone = model(STATES[i : i + 1], TAUS[i].item())
        assert_close(mixed.mean()[i : i + 1], alone.mean())
        draws = mixed.sample((5,), generator=generators(0, 1, 2, 3))
        assert_close(draws[:, i : i + 1], alone.sample((5,), generator=generators(i)))


def test_mixture_posterior_has_the_law_of_the_joint():
    """`x_0 | x_tau` on the line is the reweighted prior by quadrature; its draws at a neighbouring tau are rejected."""
    model, state, tau = MixturePosterior(three_modes(), SCHEDULE), doubles(0.1)[None], tau_of(0.4)
    x = torch.linspace(-5, 5, 20_001, dtype=torch.float64)
    noise = Normal(SCHEDULE.alpha(tau) * x, SCHEDULE.sigma(tau)).log_prob(state[0])
    cumulative = (three_modes().log_prob(x[:, None]) + noise).exp().cumsum(0)
    edges = x[torch.searchsorted(cumulative / cumulative[-1], torch.linspace(0.05, 0.95, 19).double())]

    def bins(q):
        return torch.bucketize(q.sample((40_000,), generator=generator(6)).flatten(), edges)

    assert accepts(chi_square(bins(model(state, tau)), torch.full((20,), 0.05)))
    assert rejects(chi_square(bins(model(state, tau_of(0.35))), torch.full((20,), 0.05)))


def test_mixture_posterior_recovers_the_prior():
    """States of the marginal law, one draw each: the pairs have the prior's law of x_0, in the dtype of the state."""
    tau = tau_of(0.5)
    x_tau = t2().marginal(tau, SCHEDULE).sample((40_000,), generator(7)).float()
    x_0 = MixturePosterior(t2(), SCHEDULE)(x_tau, tau).sample(generator=generator(8))
    assert x_0.dtype == torch.float32
    assert accepts(mean_and_covariance(x_0.double(), t2().mean, t2().covariance))
    off = MixturePosterior(t2(), SCHEDULE)(1.1 * x_tau, tau).sample(generator=generator(8))
    assert rejects(mean_and_covariance(off.double(), t2().mean, t2().covariance))
    line = MixturePosterior(three_modes(), SCHEDULE)
    states = three_modes().marginal(tau, SCHEDULE).sample((20_000,), generator(9))
    assert accepts(ks(line(states, tau).sample(generator=generator(10)), three_modes()))
    assert rejects(ks(line(states, tau).mean(), three_modes()))
