"""The posterior by drifting: at rest at the exact posterior, against its wrong twins; what collapses; what is refused."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fewstep.draws import categorical, normal_like
from fewstep.drift import DriftingField
from fewstep.drift_regression import DriftRegression
from fewstep.errors import UserError
from fewstep.kernels import Gaussian, Laplace
from fewstep.models import PosteriorFlow
from fewstep.objectives import STMDDrifting
from fewstep.objectives.base import noised
from fewstep.scaling import GaussianScaling, IdentityScaling
from fewstep.times import Uniform
from problems import SCHEDULE, TINY_MLP, doubles, gaussian, generator, normals, randomise, seeded
from stats import accepts, rejects, z_tests

MEAN, STD = doubles(1.0, -0.5), 0.6


class GaussianDraws(nn.Module):
    """`z - u(z, 0, 1)` is a draw of the posterior of normal data; three numbers off it: spread, place, what `x_tau` does."""

    def __init__(self, width=1.0):
        super().__init__()
        self.prior = gaussian(MEAN, STD)
        self.width = width
        self.off = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, x, times):
        z, x_tau = x.chunk(2, dim=1)
        law = self.prior.posterior(x_tau, times[:, 2], SCHEDULE)
        spread = self.width * law.covariance[:, :1, 0].sqrt()
        return z - (law.mean + spread * z * (1 + self.off[0]) + self.off[1] + self.off[2] * (law.mean - MEAN))


def pulls(width, repeats=60, **options):
    """The gradient in the three numbers, of many batches."""
    regression = DriftRegression(
        field=DriftingField(kernel=Gaussian(bandwidth=0.5), normalisation="split"),
        temperatures=(1.0,),
        relative=False,
        equalise=False,
    )
    objective = STMDDrifting(regression=regression, draws=8, share=1.0, tau_law=Uniform(low=0.3, high=0.9), **options)
    found = []
    for seed in range(repeats):
        network = GaussianDraws(width)
        model = PosteriorFlow(network, SCHEDULE, IdentityScaling(), (2,))
        x_0 = gaussian(MEAN, STD).sample((128,), generator(seed))
        objective(model, {"x_0": x_0}, generator(1000 + seed)).per_sample.mean().backward()
        found.append(network.off.grad)
    return torch.stack(found)


def test_the_exact_posterior_is_at_rest():
    """`E[V] = 0` at eight draws a state; draws too narrow or too wide by a fifth are pushed to where they belong."""
    assert accepts(z_tests(pulls(1.0), doubles(0, 0, 0)))
    for width, sign in ((0.8, -1), (1.2, 1)):
        found = pulls(width)
        assert rejects(z_tests(found, doubles(0, 0, 0)))
        assert sign * found[:, 0].mean() > 0


def test_items_drawn_without_regard_to_the_state_are_a_wrong_twin(monkeypatch):
    monkeypatch.setattr(
        "fewstep.evidence.shares", lambda y, lam, x_0: torch.full((len(y), len(x_0)), 1 / len(x_0)).double()
    )
    assert rejects(z_tests(pulls(1.0), doubles(0, 0, 0)))


def test_one_positive_for_each_state_collapses(monkeypatch):
    """Where the item that made the state has all the weight, the exact posterior's draws are pulled together."""
    monkeypatch.setattr("fewstep.evidence.shares", lambda y, lam, x_0: torch.eye(len(x_0)).double().clamp_min(1e-300))
    found = pulls(1.0)
    assert rejects(z_tests(found, doubles(0, 0, 0)))
    assert found[:, 0].mean() > 0  # less spread is less loss


def test_a_share_of_the_items_has_the_same_mean():
    whole, part = pulls(0.8, repeats=40).mean(0), pulls_of_share(0.8)
    assert_close(part[0], whole[0], rtol=0.15, atol=0)


def pulls_of_share(width):
    regression = DriftRegression(
        field=DriftingField(kernel=Gaussian(bandwidth=0.5), normalisation="split"),
        temperatures=(1.0,),
        relative=False,
        equalise=False,
    )
    objective = STMDDrifting(regression=regression, draws=8, share=0.25, tau_law=Uniform(low=0.3, high=0.9))
    total = torch.zeros(3, dtype=torch.float64)
    for seed in range(120):
        network = GaussianDraws(width)
        model = PosteriorFlow(network, SCHEDULE, IdentityScaling(), (2,))
        x_0 = gaussian(MEAN, STD).sample((128,), generator(seed))
        objective(model, {"x_0": x_0}, generator(5000 + seed)).per_sample.mean().backward()
        total += network.off.grad / 120
    return total


def test_bad_numbers_are_told():
    with pytest.raises(UserError, match="4 or more"):
        STMDDrifting(draws=3)
    with pytest.raises(UserError, match="share"):
        STMDDrifting(share=0.0)
    model = PosteriorFlow(GaussianDraws(), SCHEDULE, IdentityScaling(), (2,))
    regression = DriftRegression(field=DriftingField(kernel=Laplace(bandwidth=1.0)))
    loss = STMDDrifting(regression=regression, share=1.0)(model, {"x_0": normals(6, 2, seed=0)}, generator(0))
    assert loss.per_sample.shape == (6,)
    assert loss.logs.keys() == {"bucket", "drift_rms_0.02", "drift_rms_0.05", "drift_rms_0.2"}


def test_the_field_is_in_the_coordinates_of_the_model():
    """Draws and items in the model's scaling: recomputed by hand with the Gaussian one, in which most recipes are."""
    with seeded(0):
        network = randomise(TINY_MLP.build((2,), inputs=2, times=3), 0).double()
    model = PosteriorFlow(network, SCHEDULE, GaussianScaling(), (2,)).double()
    model.data_mean.copy_(doubles(0.4, -0.2))
    model.data_std.fill_(1.3)
    regression = DriftRegression(
        field=DriftingField(kernel=Laplace(bandwidth=0.5), normalisation="split"),
        temperatures=(1.0,),
        relative=False,
        equalise=False,
    )
    x_0 = normals(9, 2, seed=1)
    objective = STMDDrifting(regression=regression, draws=5, share=1.0, tau_law=Uniform(low=0.2, high=0.9))
    found = objective(model, {"x_0": x_0}, generator(2))
    source = generator(2)
    x_tau, tau = noised(x_0, objective.tau_law, SCHEDULE, source)
    z = normal_like(x_0, source, (5,))
    alpha, sigma = SCHEDULE.alpha(tau)[:, None], SCHEDULE.sigma(tau)[:, None]
    log_w = -0.5 * ((x_tau[:, None] - alpha[:, None] * x_0) / sigma[:, None]).square().sum(-1)
    index = categorical(log_w.log_softmax(1), source, (4,))
    offset, scale = GaussianScaling().coefficients(x_tau, tau, SCHEDULE, model.data_mean, model.data_std)
    for i in range(9):
        held = x_tau[i].expand(5, 2), tau[i].expand(5)
        draws = (z[:, i] - model.u(z[:, i], torch.zeros(5).double(), torch.ones(5).double(), *held)).detach()
        items = (x_0[index[:, i]] - offset[i]) / scale[i]
        expected = regression.field(draws, items).square().mean()
        assert_close(found.per_sample[i], expected, rtol=1e-8, atol=1e-10)
