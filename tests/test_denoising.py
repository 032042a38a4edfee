"""The denoising loss: the posterior mean minimises it, and its value there is the posterior variance."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fewstep.models import Denoiser
from fewstep.objectives import Denoising
from fewstep.scaling import EpsilonScaling, GaussianScaling, IdentityScaling
from fewstep.times import Uniform
from problems import SCHEDULE, doubles, gaussian, generator, normals
from stats import accepts, ks, rejects, z_tests

MEAN, STD, N = doubles(1.0, -0.5), 0.6, 40_000
TAU_LAW = Uniform(low=0.05)
every_scaling = pytest.mark.parametrize("scaling", [IdentityScaling(), EpsilonScaling(), GaussianScaling()], ids=str)


class ExactMean(nn.Module):
    """`E[w | x_tau]` for Gaussian data in the coordinates of a model, and for each item two directions off it."""

    def __init__(self, std=STD):
        super().__init__()
        self.prior = gaussian(MEAN, std)
        self.off = nn.Parameter(torch.zeros(N, 2, dtype=torch.float64))

    def forward(self, x_tau, times):
        law = self.prior.posterior(x_tau, times[:, 0], SCHEDULE)
        constant, along_x = self.off.split(1, dim=1)
        return self.encode(law.mean, x_tau, times[:, 0]) + constant + along_x * x_tau


def exact_model(scaling, std=STD):
    model = Denoiser(ExactMean(std), SCHEDULE, scaling, (2,)).double()
    model.data_mean.copy_(MEAN)
    model.data_std.fill_(STD)
    object.__setattr__(model.network, "encode", model.encode)
    return model


def loss_of(model, **options):
    x_0 = gaussian(MEAN, STD).sample((N,), generator(0))
    return Denoising(tau_law=TAU_LAW, **options)(model, {"x_0": x_0}, generator(1))


@every_scaling
def test_the_posterior_mean_is_the_stationary_point(scaling):
    """In every scaling; the mean under data with a variance 1.2 times larger is not stationary."""

    def stationarity(model):
        loss_of(model).per_sample.sum().backward()
        return z_tests(model.network.off.grad, doubles(0, 0))

    assert accepts(stationarity(exact_model(scaling)))
    assert rejects(stationarity(exact_model(scaling, STD * 1.2**0.5)))


@every_scaling
def test_the_loss_at_the_mean_is_the_posterior_variance(scaling):
    """`E[raw | tau]` is the trace of the posterior covariance, in the units of w; with another variance it is not."""
    model = exact_model(scaling)
    loss = loss_of(model)
    tau = loss.logs["bucket"]
    assert accepts(ks((tau - 0.05) / 0.95, "uniform"))
    zero = torch.zeros(N, 2).double()
    unit = model.decode(zero + 1, zero, tau) - model.decode(zero, zero, tau)
    variance = gaussian(MEAN, STD).posterior(zero, tau, SCHEDULE).covariance.diagonal(dim1=1, dim2=2)
    expected = (variance / unit**2).sum(1)
    assert accepts(z_tests(loss.raw / expected, doubles(1.0)))
    assert rejects(z_tests(loss.raw / (1.2 * expected), doubles(1.0)))


def test_the_model_answers_with_the_mean_of_the_data():
    """Whatever the network predicts, the posterior is a point at `E[x_0 | x_tau]`."""
    x_tau, tau = normals(N, 2, seed=2), doubles(0.4)[0]
    exact = gaussian(MEAN, STD).posterior(x_tau, tau, SCHEDULE).mean
    for scaling in (IdentityScaling(), EpsilonScaling(), GaussianScaling()):
        assert_close(exact_model(scaling)(x_tau, tau).mean(), exact, rtol=1e-9, atol=1e-9)


def test_the_adaptive_weight_leaves_the_raw_loss():
    plain, weighted = loss_of(exact_model(EpsilonScaling())), loss_of(exact_model(EpsilonScaling()), adaptive_power=1.0)
    assert torch.equal(plain.per_sample, plain.raw)
    assert torch.equal(weighted.raw, plain.raw)
    assert (weighted.per_sample < 1).all()
    assert_close(1 / weighted.per_sample - 1, 1e-3 / plain.raw, rtol=1e-6, atol=1e-9)
