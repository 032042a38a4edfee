"""Two observations of the clean data are one, and the items of a batch share in it: unbiased, at every batch size."""

import pytest
import torch
from torch.testing import assert_close

from fewstep import evidence
from fewstep.flow import mean_flow_target
from fewstep.models import MixturePosterior, PosteriorFlow
from fewstep.objectives import STMD
from fewstep.objectives.distillation import taught_mean
from fewstep.scaling import EpsilonScaling, GaussianScaling, IdentityScaling
from fewstep.schedule import CosineSchedule
from problems import SCHEDULE, TINY_MLP, doubles, generator, normals, randomise, seeded, t2
from stats import accepts, rejects, z_tests

MIXTURE = t2()
EYE = torch.eye(2, dtype=torch.float64)


def small_model(scaling):
    with seeded(0):
        network = randomise(TINY_MLP.build((2,), inputs=2, times=3).double())
    model = PosteriorFlow(network, SCHEDULE, scaling, (2,)).double()
    model.data_mean.copy_(doubles(0.3, -0.2))
    model.data_std.fill_(1.3)
    return model


def both_observations(model, z, t, x_tau, tau):
    """The posterior given both, stacked: `z = (1 - t) (x_0 - offset) / scale + t eps`, `x_tau = alpha x_0 + sigma eps'`."""
    offset, scale = model.scaling.coefficients(x_tau, tau, model.schedule, model.data_mean, model.data_std)
    alpha, sigma = SCHEDULE.alpha(tau), SCHEDULE.sigma(tau)
    factor = ((1 - t) / scale)[:, None, None]
    H = torch.cat([factor * EYE, alpha[:, None, None] * EYE], dim=1)
    noise = torch.cat([t[:, None].expand(-1, 2), sigma[:, None].expand(-1, 2)], dim=1).square()
    y = torch.cat([z + factor[:, :, 0] * offset, x_tau], dim=1)
    return MIXTURE.condition(y, H, torch.diag_embed(noise))


@pytest.mark.parametrize(
    "scaling", [IdentityScaling(), GaussianScaling(), EpsilonScaling()], ids=lambda s: type(s).__name__
)
def test_one_observation_says_what_the_two_say(scaling):
    """The posterior's mean and covariance of a mixture, at every scaling; not with the offset left out."""
    model = small_model(scaling)
    z, x_tau = normals(6, 2, seed=0), normals(6, 2, seed=1)
    t, tau = doubles(0.01, 0.2, 0.5, 0.8, 0.99, 1.0), doubles(0.05, 0.2, 0.4, 0.6, 0.9, 0.3)
    exact = both_observations(model, z, t, x_tau, tau)
    y, lam = model.observation(z, t, x_tau, tau)
    one = MIXTURE.condition(y, EYE.expand(6, 2, 2), EYE / lam[:, None, None])
    assert_close(one.mean, exact.mean, rtol=1e-8, atol=1e-8)
    assert_close(one.covariance, exact.covariance, rtol=1e-7, atol=1e-8)
    if not isinstance(scaling, IdentityScaling):
        alpha, sigma = SCHEDULE.alpha(tau), SCHEDULE.sigma(tau)
        _, scale = scaling.coefficients(x_tau, tau, SCHEDULE, model.data_mean, model.data_std)
        y, lam = evidence.combine(z, t, x_tau, alpha, sigma, torch.zeros_like(z), scale)
        wrong = MIXTURE.condition(y, EYE.expand(6, 2, 2), EYE / lam[:, None, None])
        assert (wrong.mean - exact.mean).abs().amax() > 1e-2


@pytest.mark.parametrize("schedule", [SCHEDULE, CosineSchedule()], ids=lambda s: type(s).__name__)
def test_a_denoiser_of_another_schedule_knows_the_posterior_mean(schedule):
    """The exact posterior of the diffusion with this schedule, asked at the time of the observation's precision."""
    model = small_model(GaussianScaling())
    z, x_tau = normals(5, 2, seed=0), normals(5, 2, seed=1)
    t, tau = doubles(0.1, 0.3, 0.5, 0.8, 1.0), doubles(0.1, 0.2, 0.4, 0.6, 0.8)
    mean = taught_mean(MixturePosterior(MIXTURE, schedule), *model.observation(z, t, x_tau, tau))
    assert_close(mean, both_observations(model, z, t, x_tau, tau).mean, rtol=1e-6, atol=1e-6)


def test_at_t_1_the_flow_says_nothing():
    x_tau, tau = normals(3, 2, seed=1), doubles(0.1, 0.4, 0.9)
    y, lam = small_model(GaussianScaling()).observation(normals(3, 2, seed=0), torch.ones(3).double(), x_tau, tau)
    assert_close(y, x_tau / SCHEDULE.alpha(tau)[:, None])
    assert_close(lam, (SCHEDULE.alpha(tau) / SCHEDULE.sigma(tau)) ** 2)


@pytest.mark.parametrize("frac_r_below_t", [0.0, 0.7])
@pytest.mark.parametrize("precision", [1.0, 0.5], ids=["right", "half the precision"])
def test_the_velocity_with_peers_is_that_of_the_batch(monkeypatch, frac_r_below_t, precision):
    """`v = (z_t - E w) / t`, item j weighted by the density `N(x_tau; alpha x_j, sigma^2) N(z_t; (1 - t) w_j, t^2)`.

    With shares of half the precision, a wrong twin, it is another.
    """
    shares = evidence.shares
    monkeypatch.setattr(evidence, "shares", lambda y, lam, x: shares(y, precision * lam, x))
    model, x_0, calls = small_model(GaussianScaling()), MIXTURE.sample((8,), generator(0)), []
    objective, u = STMD(peers=True, adaptive_power=0.0, frac_r_below_t=frac_r_below_t), model.u
    model.u = lambda *arguments: calls.append(arguments) or u(*arguments)
    found = objective(model, {"x_0": x_0}, generator(1)).per_sample
    z, r, t, x_tau, tau = calls[-1]
    assert (r < t).any() == (frac_r_below_t > 0)
    alpha, sigma = SCHEDULE.alpha(tau), SCHEDULE.sigma(tau)
    w = torch.stack([model.encode(item.expand(8, 2), x_tau, tau) for item in x_0], dim=1)  # (8 states, 8 items, 2)
    of_state = ((x_tau[:, None] - alpha[:, None, None] * x_0) / sigma[:, None, None]).square().sum(-1)
    of_flow = ((z[:, None] - (1 - t)[:, None, None] * w) / t[:, None, None]).square().sum(-1)
    mean = ((-0.5 * (of_state + of_flow)).softmax(1)[..., None] * w).sum(1)
    target = mean_flow_target(u, z, r, t, (z - mean) / t[:, None], (x_tau, tau), "conditional")
    expected = (u(z, r, t, x_tau, tau) - target).square().sum(1)
    assert torch.allclose(found, expected, rtol=1e-7, atol=1e-9) == (precision == 1)


def test_under_autocast_an_item_alone_in_its_sight_stays_itself():
    """256 grey levels are not those of bfloat16; with the product under autocast they would be rounded."""
    x_0 = torch.randint(256, (5, 1, 4, 4), generator=generator(0)) / 127.5 - 1
    lam = torch.full((5,), 1e9)
    with torch.autocast("cpu", torch.bfloat16):
        found = evidence.mean_of_peers(x_0, lam, x_0)
        rounded = evidence.shares(x_0, lam, x_0) @ x_0.flatten(1)
    assert torch.equal(found, x_0)
    assert not torch.equal(rounded.float(), x_0.flatten(1))


@pytest.mark.parametrize("size", [2, 5])
def test_the_share_of_an_item_is_the_probability_that_it_made_the_observation(size):
    """`E[f(x_I) - sum_j W_j f(x_j)] g(y) = 0` for tests g of the observation, at every batch size; less variance.

    Not where the item itself is left out of its batch, which is what an independent batch would be.
    """
    n, lam = 40_000, 2.0
    sets = MIXTURE.sample((n, size), generator(0))
    y = sets[:, 0] + lam**-0.5 * normals(n, 2, seed=1)

    def average(items):  # one observation and one set at a time
        log_shares = -0.5 * lam * (y[:, None] - items).square().sum(-1)
        return (log_shares.softmax(1)[..., None] * items).sum(1)

    row = evidence.shares(y[:1], doubles(lam), sets[0])
    assert_close(row[0] @ sets[0], average(sets)[0])
    tests = torch.cat([torch.ones(n, 1).double(), y, y.square()], dim=1)
    zero = torch.zeros(2 * tests.shape[1], dtype=torch.float64)

    def gap(items):
        return ((sets[:, 0] - average(items))[:, :, None] * tests[:, None]).flatten(1)

    assert accepts(z_tests(gap(sets), zero))
    others = torch.cat([sets[:, 1:], MIXTURE.sample((n, 1), generator(2))], dim=1)
    assert rejects(z_tests(gap(others), zero))
    truth = MIXTURE.condition(y, EYE.expand(n, 2, 2), EYE.expand(n, 2, 2) / lam).mean
    assert (average(sets) - truth).square().mean() < 0.9 * (sets[:, 0] - truth).square().mean()
