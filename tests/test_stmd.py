"""STMD's loss: its gradient is that of the textbook form, and the exact posterior flow is its stationary point."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fewstep.errors import UserError
from fewstep.models import PosteriorFlow
from fewstep.objectives import STMD
from fewstep.scaling import GaussianScaling, IdentityScaling
from fewstep.times import LogitNormal, Uniform
from problems import SCHEDULE, LinearFlow, doubles, gaussian, generator, gradients, normals, tiny_network
from stats import accepts, ks, mean_and_covariance, rejects, share, z_tests

MEAN, STD = doubles(1.0, -0.5), 0.6


def small_model(name, scaling=GaussianScaling()):
    network, item_shape = tiny_network(name, inputs=2, times=3)
    model = PosteriorFlow(network, SCHEDULE, scaling, item_shape).double()
    model.data_mean.fill_(0.5)
    model.data_std.fill_(1.3)
    return model


def recorded(objective, model, x_0, seed=0):
    """The loss, and the arguments of the model's graded evaluation."""
    calls, u = [], model.u
    model.u = lambda *arguments: calls.append(arguments) or u(*arguments)
    loss = objective(model, {"x_0": x_0}, generator(seed))
    del model.u
    return loss, calls[-1]


@pytest.mark.parametrize("tangent", ["conditional", "own"])
@pytest.mark.parametrize("power", [0.0, 0.75])
@pytest.mark.parametrize("name", ["mlp", "unet"])
def test_gradient_and_loss_are_those_of_a_derivative_through_the_whole_batch(name, power, tangent):
    """A graph through the derivative of every item, the target detached at the end, on a batch that mixes r < t and r = t."""
    model = small_model(name)
    x_0 = normals(8, *model.item_shape, seed=1)
    loss, (z, r, t, x_tau, tau) = recorded(STMD(adaptive_power=power, tangent=tangent), model, x_0)
    assert 0 < (r < t).sum() < 8
    loss.per_sample.mean().backward()
    cheap = gradients(model)

    def weigh_by(residual):
        raw = residual.flatten(1).square().sum(1)
        model.zero_grad()
        weighted = raw / (raw.detach() + 1e-3) ** power
        weighted.mean().backward()
        return raw, weighted, gradients(model)

    def network(z, r, t):
        return model.network(torch.cat([z, x_tau], dim=1), torch.stack([t, t - r, tau], dim=1))

    column = (8, *[1] * (z.ndim - 1))
    w = model.encode(x_0, x_tau, tau)
    v_c = (z - w) / t.reshape(column)  # eps - w, from the state z = (1 - t) w + t eps
    v = v_c if tangent == "conditional" else network(z, t, t).detach()

    def residual(detached):
        value, du_dt = torch.func.jvp(network, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
        target = v_c - (t - r).reshape(column) * du_dt
        return value - (target.detach() if detached else target)

    raw, weighted, whole = weigh_by(residual(detached=True))
    assert_close(loss.raw, raw.detach(), rtol=1e-10, atol=1e-10)
    assert_close(loss.per_sample, weighted, rtol=1e-10, atol=1e-10)
    assert_close(cheap, whole, rtol=1e-10, atol=1e-10)
    _, _, graded_target = weigh_by(residual(detached=False))
    assert (cheap - graded_target).abs().amax() > 1e-3 * cheap.abs().amax()


class ExactFlow(nn.Module):
    """The flow `u(z, r, t | x_tau, tau)` of the posterior of Gaussian data, and for each item three directions off it."""

    def __init__(self, items, std=STD):
        super().__init__()
        self.prior = gaussian(MEAN, std)
        self.off = nn.Parameter(torch.zeros(items, 3, dtype=torch.float64))

    def forward(self, x, times):
        (z, x_tau), (t, interval, tau) = x.chunk(2, dim=1), times.unbind(1)
        law = self.prior.posterior(x_tau, tau, SCHEDULE)
        exact = LinearFlow(law.mean, law.covariance[:, :1, 0].sqrt())(z, t - interval, t)
        if z.shape[0] != self.off.shape[0]:  # the derivative's part of the batch
            return exact
        constant, along_z, along_x = self.off.split(1, dim=1)
        return exact + constant + along_z * z + along_x * x_tau


def stationarity(network, objective):
    """The p-value of `E[d loss / d off] = 0`: three derivatives for each item."""
    model = PosteriorFlow(network, SCHEDULE, IdentityScaling(), (2,))
    items = network.off.shape[0]
    x_0 = gaussian(MEAN, STD).sample((items,), generator(2))
    objective(model, {"x_0": x_0}, generator(3)).per_sample.sum().backward()
    return z_tests(network.off.grad, doubles(0, 0, 0))


@pytest.mark.parametrize("tangent", ["conditional", "own"])
@pytest.mark.parametrize("law", [Uniform(low=0.0), LogitNormal()], ids=lambda law: type(law).__name__)
def test_the_exact_posterior_flow_is_a_stationary_point(law, tangent):
    """Proposition 2 without a network's error; the flow of data with a variance 1.2 times larger is not stationary."""
    objective = STMD(adaptive_power=0.0, tangent=tangent, pair_law=law, tau_law=Uniform(low=0.1))
    assert accepts(stationarity(ExactFlow(40_000), objective))
    assert rejects(stationarity(ExactFlow(40_000, STD * 1.2**0.5), objective))


def test_states_are_those_of_algorithm_1():
    """`x_tau` and z_t see the same data and independent noises: the correlations are those of the data alone."""
    n = 40_000
    model = PosteriorFlow(ExactFlow(n), SCHEDULE, IdentityScaling(), (2,))
    x_0 = gaussian(MEAN, STD).sample((n,), generator(4))
    _, (z, r, t, x_tau, tau) = recorded(STMD(), model, x_0)
    t = t[:, None]
    eps, noise = (z - (1 - t) * x_0) / t, (x_tau - SCHEDULE.alpha(tau)[:, None] * x_0) / SCHEDULE.sigma(tau)[:, None]
    assert accepts(ks(eps, "norm"))
    assert accepts(ks(noise, "norm"))
    assert accepts(ks((tau - 0.001) / 0.999, "uniform"))
    independent = torch.cat([eps * noise, eps * (x_0 - MEAN), noise * (x_0 - MEAN), (t - t.mean()) * eps], dim=1)
    assert accepts(z_tests(independent, torch.zeros(8).double()))
    assert rejects(z_tests(eps * (noise + 0.1 * eps), torch.zeros(2).double()))
    assert accepts(share(r < t[:, 0], 0.5))


def test_the_adaptive_weight_is_held_fixed():
    """Its gradient is the weight times that of the unweighted loss, item by item; the raw loss is the same."""
    model = small_model("mlp")
    losses = [STMD(adaptive_power=p)(model, {"x_0": normals(1, 3, seed=5)}, generator(6)) for p in (0.0, 0.5)]
    for loss in losses:
        loss.per_sample.sum().backward()
    assert torch.equal(losses[0].raw, losses[1].raw)
    assert torch.equal(losses[0].per_sample, losses[0].raw)
    both, weight = gradients(model), (losses[0].raw + 1e-3) ** -0.5
    model.zero_grad()
    STMD(adaptive_power=0.0)(model, {"x_0": normals(1, 3, seed=5)}, generator(6)).per_sample.sum().backward()
    assert_close(both, (1 + weight) * gradients(model))


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_the_bucket_is_the_interval(fraction):
    loss, (_, r, t, *_) = recorded(STMD(frac_r_below_t=fraction), small_model("mlp"), normals(4000, 3, seed=7))
    assert torch.equal(loss.logs["bucket"], t - r)
    assert accepts(share(loss.logs["bucket"] > 0, fraction))
    assert rejects(share(loss.logs["bucket"] > 0, 1 - fraction))


def test_the_atom_trains_the_denoiser():
    _, (_, _, t, *_) = recorded(STMD(atom_t_1=0.3), small_model("mlp"), normals(4000, 3, seed=8))
    assert accepts(share(t == 1, 0.3))
    assert rejects(share(t == 1, 0.0))


@pytest.mark.parametrize(
    "wrong",
    [{"adaptive_power": -1.0}, {"adaptive_constant": 0.0}, {"frac_r_below_t": 1.2}, {"atom_t_1": -0.1}],
    ids=str,
)
def test_what_is_refused(wrong):
    with pytest.raises(UserError):
        STMD(**wrong)


class Silent(nn.Module):
    """A network that has learnt nothing: zero everywhere."""

    def forward(self, x, times):
        return torch.zeros_like(x.chunk(2, dim=1)[0])


@pytest.mark.parametrize("flow_steps", [1, 3])
def test_with_the_gaussian_skip_gaussian_data_need_no_learning(flow_steps):
    """The scaled target is standard normal given any state: draws are exact, and the mean is `offset` at any z.

    Without the skip the same network draws the right law too, but its u(z, 1, 1) is no denoiser.
    """
    data, tau = gaussian(MEAN, STD), doubles(0.4)[0]
    model = PosteriorFlow(Silent(), SCHEDULE, GaussianScaling(), (2,), gaussian_skip=True).double()
    model.data_mean.copy_(MEAN)
    model.data_std.fill_(STD)
    x_tau = normals(1, 2, seed=5).expand(20_000, 2)
    law = data.posterior(x_tau[:1], tau, SCHEDULE)
    q = model(x_tau, tau)
    draws = q.sample(flow_steps=flow_steps, generator=generator(6))
    assert accepts(mean_and_covariance(draws, law.mean[0], law.covariance[0]))
    assert rejects(mean_and_covariance(1.1 * draws - 0.1 * law.mean, law.mean[0], law.covariance[0]))
    assert_close(q.mean(generator=generator(7)), law.mean.expand_as(draws), rtol=1e-9, atol=1e-9)
    bare = PosteriorFlow(Silent(), SCHEDULE, GaussianScaling(), (2,)).double()
    bare.load_state_dict(model.state_dict())
    assert (bare(x_tau, tau).mean(generator=generator(7)) - law.mean).abs().amax() > 0.5
