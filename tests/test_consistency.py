"""Consistency training: the boundary, the levels and their law, the target, and the exact map of Gaussian data."""

import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.testing import assert_close

from fewstep.errors import UserError
from fewstep.models import ConsistencyMap, ConsistencyMapConfig, Denoiser, MixturePosterior
from fewstep.objectives import ConsistencyTraining
from fewstep.samplers import Ancestral, FlowMap, OfMeans, ProbabilityFlow, ReverseSDE
from fewstep.scaling import EpsilonScaling, GaussianScaling, IdentityScaling
from problems import SCHEDULE, TINY_MLP, doubles, gaussian, generator, gradients, normals, tiny_network
from stats import accepts, chi_square, ks, mean_and_covariance, rejects, z_tests

MEAN, STD, N = doubles(1.0, -0.5), 0.6, 20_000
EYE = torch.eye(2, dtype=torch.float64)
K_MAX = math.exp(-0.5 * SCHEDULE.log_snr(torch.ones(()).double()).item())


def small_model(name="mlp", scaling=GaussianScaling()):
    network, item_shape = tiny_network(name, inputs=1, times=1)
    model = ConsistencyMap(network, SCHEDULE, scaling, item_shape).double()
    model.data_mean.fill_(0.5)
    model.data_std.fill_(1.3)
    return model


class ExactEnd(nn.Module):
    """The end of the probability flow of Gaussian data in a model's coordinates, and for each item two directions off it.

    The flow keeps the standardised coordinate: `f(x, tau) = m + s (x - alpha m) / sqrt(alpha^2 s^2 + sigma^2)`.
    """

    def __init__(self, items, std=STD):
        super().__init__()
        self.std = std
        self.off = nn.Parameter(torch.zeros(items, 2, dtype=torch.float64))

    def end(self, x_tau, tau):
        alpha, sigma = SCHEDULE.alpha(tau)[:, None], SCHEDULE.sigma(tau)[:, None]
        return MEAN + self.std * (x_tau - alpha * MEAN) / (alpha**2 * self.std**2 + sigma**2).sqrt()

    def forward(self, x_tau, times):
        exact = self.encode(self.end(x_tau, times[:, 0]), x_tau, times[:, 0])
        constant, along_x = self.off.split(1, dim=1) if self.off.shape[0] == x_tau.shape[0] else (0.0, 0.0)
        return exact + constant + along_x * x_tau


def exact_model(items=0, std=STD):
    model = ConsistencyMap(ExactEnd(items, std), SCHEDULE, GaussianScaling(), (2,)).double()
    model.data_mean.copy_(MEAN)
    model.data_std.fill_(STD)
    object.__setattr__(model.network, "encode", model.encode)
    return model


def recorded(objective, model, x_0, seed=0, **batch):
    """The loss, and the arguments `(x, tau)` of the target's evaluation and of the graded one."""
    calls, end = [], model.end
    model.end = lambda *arguments: calls.append(arguments) or end(*arguments)
    loss = objective(model, {"x_0": x_0, **batch}, generator(seed))
    del model.end
    (low, high) = sorted(calls, key=lambda call: call[1].mean().item())
    return loss, low, high


def level_of(tau):
    return (-0.5 * SCHEDULE.log_snr(tau)).exp()


@pytest.mark.parametrize("scaling", [GaussianScaling(), EpsilonScaling()], ids=str)
@pytest.mark.parametrize("name", ["mlp", "unet"])
def test_without_noise_it_is_the_identity(name, scaling):
    """Whatever the network says, and continuously so; with noise it is not."""
    model = small_model(name, scaling)
    x = normals(5, *model.item_shape, seed=1)
    zero = torch.zeros(5).double()
    assert_close(model.end(x, zero), x, rtol=1e-14, atol=1e-14)
    assert (model.end(x, zero + 1e-8) - x).abs().amax() < 1e-2
    assert (model.end(x, zero + 0.5) - x).abs().amax() > 0.1


def test_the_identity_scaling_is_refused():
    network, item_shape = tiny_network("mlp", inputs=1, times=1)
    with pytest.raises(UserError, match=r"f\(x, 0\) = x"):
        ConsistencyMap(network, SCHEDULE, IdentityScaling(), item_shape)
    with pytest.raises(UserError, match=r"f\(x, 0\) = x"):
        ConsistencyMapConfig(network=TINY_MLP, scaling=IdentityScaling()).build((3,))
    for scaling in (GaussianScaling(), EpsilonScaling()):
        config = ConsistencyMapConfig(network=TINY_MLP, scaling=scaling)
        assert config.build((3,)).config == config


def test_the_number_of_intervals_doubles_at_equal_shares_of_the_training():
    progress = (torch.arange(1000) + 0.5) / 1000
    n = ConsistencyTraining().intervals(progress)
    for stage, intervals in enumerate((10, 20, 40, 80, 160)):
        assert (n[200 * stage : 200 * (stage + 1)] == intervals).all()
    assert ConsistencyTraining().intervals(torch.tensor([0.0, 1.0])).tolist() == [10, 160]
    odd = ConsistencyTraining(first_intervals=10, last_intervals=100).intervals(progress)
    assert odd.unique().tolist() == [10, 20, 40, 80, 100]
    one = ConsistencyTraining(first_intervals=7, last_intervals=7).intervals(progress)
    assert (one == 7).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_levels_are_neighbours_of_a_grid_even_in_their_root(share, dtype):
    """`k^(1/rho)` is on the grid between its ends, and k' is the next level; the grid of other N has other levels."""
    objective, model = ConsistencyTraining(), small_model().to(dtype)
    x_0 = normals(4000, 3, seed=2).to(dtype)
    progress = torch.full((4000,), share, dtype=dtype)
    n = objective.intervals(progress)[0].item()
    low, high = objective.levels(x_0, progress, model, generator(3))
    first, last = 0.004 ** (1 / 7), (K_MAX / 1.3) ** (1 / 7)
    index, above = (((k.double() ** (1 / 7) - first) / (last - first) * n) for k in (low, high))
    rounding = 1e-9 if dtype == torch.float64 else 1e-2
    assert ((index - index.round()).abs() < rounding).all()
    assert ((above - index - 1).abs() < rounding).all()
    assert index.round().amin() >= 0
    assert index.round().amax() <= n - 1
    other = index * 3 / 7
    assert ((other - other.round()).abs() > rounding).any()


def root_index(low, n, std):
    first, last = 0.004 ** (1 / 7), (K_MAX / std) ** (1 / 7)
    return ((low ** (1 / 7) - first) / (last - first) * n).round().long()


def truncated(std=2.0):
    """The law of log k: normal, cut at the ends of the levels."""
    ends = np.log([0.004, K_MAX / 1.3])
    return stats.truncnorm(*((ends + 0.4) / std), loc=-0.4, scale=std)


def test_the_law_of_the_levels():
    """Of the continuous level where the grid is fine, and of the pairs where it is not: a truncated normal law of log k."""
    model, x_0 = small_model(), normals(N, 3, seed=4)
    ones = torch.ones(N).double()
    fine = ConsistencyTraining(first_intervals=10**6, last_intervals=10**6)
    low, _ = fine.levels(x_0, ones, model, generator(5))
    log_k = low.log().numpy()
    assert accepts(stats.kstest(log_k, truncated().cdf).pvalue)
    assert rejects(stats.kstest(log_k, truncated(2.0 * 1.2**0.5).cdf).pvalue)

    coarse = ConsistencyTraining(first_intervals=20, last_intervals=20)
    low, _ = coarse.levels(x_0, ones, model, generator(6))
    first, last = 0.004 ** (1 / 7), (K_MAX / 1.3) ** (1 / 7)
    edges = np.log((first + (last - first) * np.arange(21) / 20) ** 7)
    for law, judge in ((truncated(), accepts), (truncated(2.0 * 1.2**0.5), rejects)):
        probabilities = torch.from_numpy(np.diff(law.cdf(edges)))
        assert judge(chi_square(root_index(low, 20, 1.3), probabilities))


def test_both_states_have_the_same_data_and_the_same_noise():
    """And the noise is normal and knows neither the data nor the level."""
    model = exact_model()
    x_0 = gaussian(MEAN, STD).sample((N,), generator(7))
    loss, (x_s, s), (x_tau, tau) = recorded(ConsistencyTraining(), model, x_0)
    assert (s < tau).all()
    assert torch.equal(loss.logs["bucket"], tau)
    assert_close((level_of(tau) / STD).amax(), level_of(tau).amax() / STD)
    eps, again = (
        (x - SCHEDULE.alpha(at)[:, None] * x_0) / SCHEDULE.sigma(at)[:, None] for x, at in ((x_tau, tau), (x_s, s))
    )
    assert_close(eps, again, rtol=1e-9, atol=1e-9)
    assert accepts(ks(eps, "norm"))
    assert rejects(ks(eps * 1.2**0.5, "norm"))
    log_k = level_of(tau).log()[:, None]
    independent = torch.cat([eps * (x_0 - MEAN), eps * (log_k - log_k.mean())], dim=1)
    assert accepts(z_tests(independent, torch.zeros(4).double()))
    assert rejects(z_tests(eps * (x_0 - MEAN + 0.1 * eps), torch.zeros(2).double()))


@pytest.mark.parametrize("name", ["mlp", "unet"])
def test_the_loss_and_its_gradient(name):
    """`(sqrt(||e||^2 + c^2) - c) / (k' - k)`, e in standard deviations; the target's side has no gradient."""
    model = small_model(name)
    x_0, progress = normals(8, *model.item_shape, seed=8), torch.full((8,), 0.5).double()
    loss, (x_s, s), (x_tau, tau) = recorded(ConsistencyTraining(huber=0.03), model, x_0, progress=progress)
    loss.per_sample.mean().backward()
    found = gradients(model)
    c = 0.03 * math.sqrt(x_0[0].numel())
    spacing = (level_of(tau) - level_of(s)) / 1.3

    def by_hand(target):
        raw = (model.end(x_tau, tau) - target).flatten(1).square().sum(1)
        model.zero_grad()
        value = ((raw / 1.3**2 + c**2).sqrt() - c) / spacing
        value.mean().backward()
        return raw, value, gradients(model)

    raw, value, gradient = by_hand(model.end(x_s, s).detach())
    assert_close(loss.raw, raw.detach(), rtol=1e-9, atol=1e-12)
    assert_close(loss.per_sample, value, rtol=1e-7, atol=1e-9)
    assert_close(found, gradient, rtol=1e-7, atol=1e-9)
    _, _, graded = by_hand(model.end(x_s, s))
    assert (graded - found).abs().amax() > 1e-3 * found.abs().amax()


def test_without_progress_the_last_number_of_intervals_is_taken():
    model, x_0 = small_model(), normals(8, 3, seed=9)
    last, end = (
        ConsistencyTraining()(model, batch, generator(0)).per_sample
        for batch in ({"x_0": x_0}, {"x_0": x_0, "progress": torch.ones(8).double()})
    )
    assert torch.equal(last, end)
    start = ConsistencyTraining()(model, {"x_0": x_0, "progress": torch.zeros(8).double()}, generator(0)).per_sample
    assert not torch.equal(last, start)


def angles(low, high):
    return (level_of(high).atan2(doubles(STD)) - level_of(low).atan2(doubles(STD)))[:, None]


def losses(std=STD):
    """`E||e||^2 / (2 d s^2 (1 - cos(phi' - phi)))` of each N, and N^2 E||e||^2."""
    ratios, scaled = [], []
    x_0 = gaussian(MEAN, STD).sample((N,), generator(10))
    for n in (20, 80, 320, 1280):
        objective = ConsistencyTraining(first_intervals=n, last_intervals=n)
        loss, (_, s), (_, tau) = recorded(objective, exact_model(std=std), x_0)
        ratios.append(loss.raw / (4 * STD**2 * (1 - angles(s, tau).cos()[:, 0])))
        scaled.append(n**2 * loss.raw.mean().item())
    return ratios, scaled


def test_the_loss_of_the_exact_map_vanishes_with_the_spacing():
    """With `tan phi = k / s` the error is `s (x_0' (cos phi' - cos phi) + eps (sin phi' - sin phi))`, in closed form.

    So `E||e||^2 = 2 d s^2 (1 - cos(phi' - phi))`, of the order of N^-2; of the map of 1.2 times the variance it is more.
    """
    ratios, scaled = losses()
    assert all(accepts(z_tests(ratio, doubles(1.0))) for ratio in ratios)
    assert scaled[3] / scaled[2] == pytest.approx(1, rel=0.1)
    wide, _ = losses(STD * 1.2**0.5)
    assert all(rejects(z_tests(ratio, doubles(1.0))) for ratio in wide)


def gradient_off(n, std=STD):
    model = exact_model(N, std)
    objective = ConsistencyTraining(first_intervals=n, last_intervals=n, huber=1.0)  # quadratic: e is far below 1
    x_0 = gaussian(MEAN, STD).sample((N,), generator(11))
    objective(model, {"x_0": x_0}, generator(12)).per_sample.sum().backward()
    return model.network.off.grad


def test_the_exact_map_is_stationary_in_the_limit():
    """Its gradient is within the noise of 20 000 draws at 5000 levels; that of the map of 1.2 times the variance is not."""
    assert accepts(z_tests(gradient_off(5000), doubles(0, 0)))
    assert rejects(z_tests(gradient_off(5000, STD * 1.2**0.5), doubles(0, 0)))
    assert rejects(z_tests(gradient_off(10), doubles(0, 0)))  # ten levels have another solution


class Mean(nn.Module):
    """The posterior mean of the same data in a model's coordinates."""

    def forward(self, x_tau, times):
        mean = gaussian(MEAN, STD).posterior(x_tau, times[:, 0], SCHEDULE).mean
        return self.encode(mean, x_tau, times[:, 0])


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_multistep_consistency_sampling_is_exact_with_the_exact_map(steps):
    """From a true state, one step and re-noising have the data's law; the mean in place of the map has not."""
    x_1 = gaussian(MEAN, STD).marginal(doubles(1.0)[0], SCHEDULE).sample((N,), generator(13))
    sampler = Ancestral(steps, kernel=0.0)
    x_0 = sampler(exact_model(), x_1, generator(14))
    assert accepts(mean_and_covariance(x_0, MEAN, STD**2 * EYE))
    assert rejects(
        mean_and_covariance(sampler(exact_model(std=STD * 1.2**0.5), x_1, generator(14)), MEAN, STD**2 * EYE)
    )
    mean = Denoiser(Mean(), SCHEDULE, GaussianScaling(), (2,)).double()
    object.__setattr__(mean.network, "encode", mean.encode)
    assert rejects(mean_and_covariance(sampler(mean, x_1, generator(14)), MEAN, STD**2 * EYE))
    if steps == 4:  # the map is no draw of the posterior: the bridge around it has another law
        bridged = replace(sampler, kernel="bridge")(exact_model(), x_1, generator(14))
        assert rejects(mean_and_covariance(bridged, MEAN, STD**2 * EYE))


def test_one_step_is_the_end_of_the_flow():
    x_1 = normals(5, 2, seed=15)
    one = torch.ones(5).double()
    assert_close(
        Ancestral(1, kernel=0.0)(exact_model(), x_1), exact_model().network.end(x_1, one), rtol=1e-9, atol=1e-9
    )
    posterior = exact_model()(x_1, 1.0)
    exact = MixturePosterior(gaussian(MEAN, STD), SCHEDULE)(x_1, 1.0).mean()
    assert ((posterior.sample() - exact).abs() > 1e-2).any()
    for sampler in (ProbabilityFlow(2), ReverseSDE(2), OfMeans(sampler=Ancestral(2))):
        with pytest.raises(UserError, match="not the posterior's mean"):
            sampler(exact_model(), x_1, generator(0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"first_intervals": 0},
        {"first_intervals": 20, "last_intervals": 10},
        {"k_min": 0.0},
        {"rho": 0.0},
        {"log_std": 0.0},
        {"huber": 0.0},
    ],
    ids=str,
)
def test_what_is_refused(wrong):
    with pytest.raises(UserError):
        ConsistencyTraining(**wrong)


def test_a_flow_map_sampler_refuses_it():
    with pytest.raises(UserError, match="draws from a MeanFlow"):
        inspect.unwrap(FlowMap.__call__)(FlowMap(), small_model(), normals(4, 3, seed=0))
