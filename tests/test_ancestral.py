"""The loop of Algorithm 2: exact with an exact posterior, DDPM with a point, and the same item in every batch."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from fewstep import transition
from fewstep.bridge import bridge, bridge_c
from fewstep.draws import item_generators, normal
from fewstep.errors import UserError
from fewstep.models import Denoiser, EvaluationCounter, MeanOnly, MixturePosterior, PosteriorFlow
from fewstep.models.base import PosteriorModel
from fewstep.samplers import Ancestral
from fewstep.scaling import EpsilonScaling, GaussianScaling
from fewstep.times import CustomGrid, LogSNRGrid, UniformGrid
from problems import SCHEDULE, doubles, generator, normals, t2, tau_of, three_modes, tiny_network
from stats import accepts, ks, mean_and_covariance, rejects, wasserstein_1, z_tests

N = 20_000
MODEL = MixturePosterior(three_modes(), SCHEDULE)
GRIDS = [UniformGrid(), LogSNRGrid(), CustomGrid(times=(1.0, 0.4, 0.3, 0.1, 0.0))]


def draw(sampler, model=MODEL, n=N, seed=0):
    """Samples from the law of the states at tau = 1, so that nothing but the loop can be wrong."""
    noise = three_modes().marginal(doubles(1.0)[0], SCHEDULE).sample((n,), generator(seed))
    return sampler(model, noise, generator(seed + 1))


class Widened(PosteriorModel):
    """Posterior draws around the exact mean with the variance 1.2 times too large."""

    def __init__(self):
        super().__init__(SCHEDULE, (1,))

    def forward(self, x_tau, tau):
        q = MODEL(x_tau, tau)
        wide = replace(q.mixture, means=q.mixture.mean[:, None] + 1.2**0.5 * (q.mixture.means - q.mixture.mean[:, None]),
                       covariances=1.2 * q.mixture.covariances)  # fmt: skip
        return replace(q, mixture=wide)


@pytest.mark.parametrize("steps", [1, 2, 4, 16])
def test_an_exact_posterior_gives_the_exact_law_at_every_number_of_steps(steps):
    """The same test rejects the point at the mean (DDPM) and samples of too large a variance."""
    x_0 = draw(Ancestral(steps))
    assert accepts(ks(x_0, three_modes()))
    assert rejects(ks(x_0 * 1.2**0.5, three_modes()))
    assert rejects(ks(draw(Ancestral(steps), MeanOnly(MODEL)), three_modes()))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_posterior_of_too_large_a_variance_is_rejected(steps):
    assert rejects(ks(draw(Ancestral(steps), Widened()), three_modes()))


@pytest.mark.parametrize("steps", [4, 16])
def test_a_bridge_with_one_wrong_letter_is_rejected(steps, monkeypatch):
    """sigma_s and sigma_tau swapped in the deviation: the mistake that tests of shapes let pass."""

    def swapped(x_0, x_tau, s, tau, schedule):
        mean, std = bridge(x_0, x_tau, s, tau, schedule)
        return mean, std * schedule.sigma(tau) / schedule.sigma(s)

    monkeypatch.setattr("fewstep.bridge.bridge", swapped)
    assert rejects(ks(draw(Ancestral(steps), n=2 * N), three_modes()))


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: type(g).__name__)
@pytest.mark.parametrize("kernel", ["bridge", 0.0, 0.5, 1.0])
def test_every_kernel_and_grid_is_exact_too(kernel, grid):
    """From a true state, every member of the family keeps the marginals."""
    sampler = Ancestral(4, grid=grid, kernel=kernel)
    assert accepts(ks(draw(sampler), three_modes()))
    assert rejects(ks(draw(sampler, MeanOnly(MODEL)), three_modes()))


def test_two_dimensions():
    model = MixturePosterior(t2(), SCHEDULE)
    x_0 = Ancestral(3)(model, normals(N, 2, seed=1), generator(2))
    assert accepts(mean_and_covariance(x_0, t2().mean, t2().covariance))
    ddpm = Ancestral(3)(MeanOnly(model), normals(N, 2, seed=1), generator(2))
    assert rejects(mean_and_covariance(ddpm, t2().mean, t2().covariance))


@pytest.mark.parametrize(("steps", "error"), [(1, 1.534), (2, 0.998), (4, 0.498), (16, 0.109), (64, 0.036)])
def test_a_point_at_the_mean_is_ddpm_with_its_known_error(steps, error):
    """W1 to the three modes on the even grid; draws in place of the mean are at the sampling floor."""
    noise = normals(60_000, 1, seed=steps)
    ddpm = Ancestral(steps)(MeanOnly(MODEL), noise, generator(steps))
    assert wasserstein_1(ddpm, three_modes()) == pytest.approx(error, rel=0.05, abs=0.005)
    exact = Ancestral(steps)(MODEL, noise, generator(steps))
    assert wasserstein_1(exact, three_modes()) < min(0.02, error / 2)


@pytest.mark.parametrize("kernel", ["bridge", 0.0, 1.0])
def test_only_the_bridge_keeps_the_law_of_the_pair(kernel):
    """`Cov(x_s, x_tau)` is `a Var(x_s)` for the reverse SDE; DDIM has more and re-noising less, each by a known amount."""
    tau, s = tau_of(0.5), tau_of(0.7)
    grid = CustomGrid(times=(1.0, tau.item(), s.item(), 0.0))
    noise = three_modes().marginal(doubles(1.0)[0], SCHEDULE).sample((2 * N,), generator(3))
    _, at_tau, at_s = Ancestral(3, grid=grid, kernel=kernel).trajectory(MODEL, noise, generator(4))
    law_tau, law_s = three_modes().marginal(tau, SCHEDULE), three_modes().marginal(s, SCHEDULE)
    assert accepts(ks(at_tau.x_tau, law_tau))
    assert accepts(ks(at_s.x_tau, law_s))
    products = (at_s.x_tau - law_s.mean) * (at_tau.x_tau - law_tau.mean)
    a, _ = transition.moments(s, tau, SCHEDULE)
    of_the_sde = a * law_s.covariance[0]
    c = bridge_c(s, tau, SCHEDULE) if kernel == "bridge" else kernel
    of_the_kernel = of_the_sde + (c - bridge_c(s, tau, SCHEDULE)) * SCHEDULE.sigma(s) * SCHEDULE.sigma(tau)
    assert accepts(z_tests(products, of_the_kernel))
    assert (accepts if kernel == "bridge" else rejects)(z_tests(products, of_the_sde))


def test_the_loop_is_made_of_draws_and_bridges():
    """Each state is a draw of the bridge between the last state and the x_0 drawn from it; its noise is normal."""
    states = Ancestral(4).trajectory(MODEL, normals(N, 1, seed=5), generator(6))
    assert [state.tau for state in states] == [1.0, 0.75, 0.5, 0.25]
    for before, after in pairwise(states):
        mean, std = bridge(before.x_0, before.x_tau, doubles(after.tau)[0], doubles(before.tau)[0], SCHEDULE)
        noise = (after.x_tau - mean) / std
        assert accepts(ks(noise, "norm"))
        assert accepts(z_tests(noise * before.x_0, doubles(0.0)))
        assert rejects(ks(noise * 1.2**0.5, "norm"))


def test_the_trajectory_ends_in_the_sample_and_the_seed_decides():
    noise = normals(50, 1, seed=7)
    sampler = Ancestral(4)
    x_0 = sampler(MODEL, noise, generator(8))
    assert torch.equal(x_0, sampler(MODEL, noise, generator(8)))
    assert torch.equal(x_0, sampler.trajectory(MODEL, noise, generator(8))[-1].x_0)
    assert not torch.equal(x_0, sampler(MODEL, noise, generator(9)))


def network_models():
    for name in ("mlp", "unet"):
        network, item_shape = tiny_network(name, inputs=2, times=3)
        yield PosteriorFlow(network, SCHEDULE, GaussianScaling(), item_shape).float()
        network, item_shape = tiny_network(name, inputs=1, times=1)
        yield Denoiser(network, SCHEDULE, EpsilonScaling(), item_shape).float()
    yield MODEL


@pytest.mark.parametrize("model", network_models(), ids=lambda m: f"{type(m).__name__}-{type(m.evaluated).__name__}")
def test_an_item_with_its_own_generator_is_the_same_in_every_batch(model):
    """Item i alone, in a batch of 64, and in the same batch cut into chunks; another item's generator gives another."""

    def samples(n, first=0, **options):
        sources = item_generators(n, seed=1, first=first)
        noise = normal((n, *model.item_shape), sources, like=torch.empty(()))
        return Ancestral(3, flow_steps=2, **options)(model, noise, sources)

    whole = samples(64)
    assert whole.shape == (64, *model.item_shape)
    assert_close(samples(64, max_batch=7), whole, rtol=1e-4, atol=1e-4)
    for i in (0, 13, 63):
        assert_close(samples(1, first=i)[0], whole[i], rtol=1e-4, atol=1e-4)
        assert (whole[i] - whole[i - 1]).abs().amax() > 1e-2


def test_chunks_of_one_stream_have_the_law_too():
    assert accepts(ks(draw(Ancestral(2, max_batch=7000)), three_modes()))


@pytest.mark.parametrize(("steps", "flow_steps"), [(1, 1), (3, 1), (1, 4), (3, 2)])
def test_a_sample_costs_steps_times_flow_steps_evaluations(steps, flow_steps):
    model = next(network_models())
    with EvaluationCounter(model) as counter:
        Ancestral(steps, flow_steps, max_batch=4)(model, torch.zeros(10, 3), generator(0))
        assert counter.items == 10 * steps * flow_steps
        assert counter.calls == 3 * steps * flow_steps
    Ancestral(steps)(model, torch.zeros(10, 3), generator(0))
    assert counter.items == 10 * steps * flow_steps


def test_a_flow_grid_cuts_the_flow_clock():
    model, noise = next(network_models()), torch.zeros(4, 3)
    even = Ancestral(2, flow_steps=2)(model, noise, generator(0))
    assert torch.equal(Ancestral(2, flow_grid=(1.0, 0.5, 0.0))(model, noise, generator(0)), even)
    assert not torch.allclose(Ancestral(2, flow_grid=(1.0, 0.1, 0.0))(model, noise, generator(0)), even, atol=1e-4)


def test_sampling_keeps_no_graph_and_the_dtype():
    model = next(network_models())
    x_0 = Ancestral(2)(model, torch.zeros(4, 3), generator(0))
    assert not x_0.requires_grad
    assert x_0.dtype == torch.float32


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"flow_steps": 0},
        {"steps": -3},
        {"kernel": 1.5},
        {"kernel": -0.1},
        {"kernel": float("nan")},
        {"max_batch": 0},
        {"flow_grid": (1.0, 0.5)},
        {"flow_grid": (1.0, 0.5, 0.0), "flow_steps": 3},
    ],
    ids=str,
)
def test_what_is_refused(wrong):
    with pytest.raises(UserError):
        Ancestral(**wrong)


def test_a_grid_of_another_length_is_refused():
    with pytest.raises(UserError, match="steps"):
        Ancestral(2, grid=CustomGrid(times=(1.0, 0.5, 0.2, 0.0)))(MODEL, normals(3, 1, seed=0), generator(0))
