"""The coordinates of the flow's target: undone exactly, and exact for Gaussian data."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fewstep import transition
from fewstep.errors import UserError
from fewstep.models import PosteriorFlow
from fewstep.scaling import EpsilonScaling, GaussianScaling, IdentityScaling
from problems import SCHEDULE, doubles, gaussian, generator, normals
from stats import accepts, ks, rejects, z_tests

TAUS = doubles(1e-6, 0.01, 0.3, 0.7, 1.0)
MEAN, STD = doubles(1.0, -0.5), 0.6


def model_with(scaling):
    model = PosteriorFlow(nn.Identity(), SCHEDULE, scaling, (2,)).double()
    model.data_mean.copy_(MEAN)
    model.data_std.fill_(STD)
    return model


@pytest.mark.parametrize("scaling", [IdentityScaling(), EpsilonScaling(), GaussianScaling()], ids=str)
def test_encode_and_decode_are_inverse(scaling):
    model, x_0, eps = model_with(scaling), normals(5, 2, seed=0), normals(5, 2, seed=1)
    x_tau = SCHEDULE.alpha(TAUS)[:, None] * x_0 + SCHEDULE.sigma(TAUS)[:, None] * eps
    w = model.encode(x_0, x_tau, TAUS)
    assert w.shape == x_0.shape
    assert_close(model.decode(w, x_tau, TAUS), x_0, rtol=1e-11, atol=1e-11)
    assert_close(model.encode(model.decode(eps, x_tau, TAUS), x_tau, TAUS), eps, rtol=1e-8, atol=1e-8)


def test_identity_is_the_data_and_epsilon_the_noise():
    x_0, eps = normals(5, 2, seed=0), normals(5, 2, seed=1)
    x_tau = SCHEDULE.alpha(TAUS)[:, None] * x_0 + SCHEDULE.sigma(TAUS)[:, None] * eps
    assert_close(model_with(IdentityScaling()).encode(x_0, x_tau, TAUS), x_0)
    assert_close(model_with(EpsilonScaling()).encode(x_0, x_tau, TAUS), eps, rtol=1e-10, atol=1e-10)


def test_gaussian_scaling_is_the_posterior_of_gaussian_data():
    """Offset and scale are the mean and deviation of `q(x_0 | x_tau)` under N(m, s^2 I); under another s they are not."""
    x_tau = normals(5, 2, seed=2)
    offset, scale = GaussianScaling().coefficients(x_tau, TAUS, SCHEDULE, MEAN, doubles(STD)[0])
    exact = gaussian(MEAN, STD).posterior(x_tau, TAUS, SCHEDULE)
    assert_close(offset, exact.mean, rtol=1e-10, atol=1e-10)
    assert_close(scale[:, None, None] ** 2 * torch.eye(2).double(), exact.covariance, rtol=1e-10, atol=1e-13)
    other = gaussian(MEAN, 1.1 * STD).posterior(x_tau, TAUS, SCHEDULE)
    assert ((offset - other.mean)[1:].abs() > 1e-7).any(1).all()
    assert (scale**2 / other.covariance[:, 0, 0] - 1)[2:].abs().min() > 0.005


def test_the_whitened_target_is_normal_and_independent_of_the_state():
    """w ~ N(0, 1) at every tau, uncorrelated with x_tau; a scaling with a wrong deviation is rejected on both counts."""
    n = 40_000
    tau = doubles(0.05, 0.2, 0.4, 1.0).repeat(n // 4)
    x_0 = gaussian(MEAN, STD).sample((n,), generator(3))
    x_tau = transition.sample(x_0, torch.zeros_like(tau), tau, SCHEDULE, generator(4))
    model = model_with(GaussianScaling())

    def check(w):
        return ks(w, "norm"), z_tests(w * (x_tau - SCHEDULE.alpha(tau)[:, None] * MEAN), doubles(0, 0))

    assert all(accepts(p) for p in check(model.encode(x_0, x_tau, tau)))
    model.data_std.mul_(1.2)
    assert all(rejects(p) for p in check(model.encode(x_0, x_tau, tau)))


def test_fit_measures_the_mean_item_and_one_deviation():
    model = PosteriorFlow(nn.Identity(), SCHEDULE, GaussianScaling(), (2,)).double()
    model.fit(doubles(1, 3, 5, 7).reshape(2, 2))
    assert_close(model.data_mean, doubles(3, 5))
    assert_close(model.data_std, doubles(2)[0])
    with pytest.raises(UserError, match="constant"):
        model.fit(torch.ones(4, 2).double())
