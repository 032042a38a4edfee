"""Mean Flow: its loss number by number in plain Python, its exact solution, its flow map, and its sampler."""

import inspect
import json
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fewstep import load, sample, save_pretrained
from fewstep.errors import UserError
from fewstep.files import CHECKSUMS, write_folder
from fewstep.models import EvaluationCounter, MeanFlow, MeanFlowConfig, MixturePosterior
from fewstep.networks import MLPConfig
from fewstep.objectives import MeanFlowObjective
from fewstep.samplers import Ancestral, FlowMap, OfMeans, ProbabilityFlow, ReverseSDE
from fewstep.times import CustomGrid, LogitNormal, LogSNRGrid, Uniform, UniformGrid
from problems import SCHEDULE, LinearFlow, doubles, gaussian, generator, gradients, normals, randomise, seeded, t2
from stats import accepts, ks, mean_and_covariance, rejects, share, z_tests

MEAN, STD = doubles(1.0, -0.5), 0.6
EXACT = {"rtol": 1e-10, "atol": 1e-10}
DATA_MEAN, DATA_STD = [0.3, -0.2], 1.7


class Dual:
    """A number and its slope along one line: `(x + x' h)` with `h^2 = 0`."""

    def __init__(self, value, slope=0.0):
        self.value, self.slope = value, slope

    @staticmethod
    def of(x):
        return x if isinstance(x, Dual) else Dual(x)

    def __add__(self, other):
        other = Dual.of(other)
        return Dual(self.value + other.value, self.slope + other.slope)

    def __mul__(self, other):
        other = Dual.of(other)
        return Dual(self.value * other.value, self.slope * other.value + self.value * other.slope)

    __radd__, __rmul__ = __add__, __mul__


def tanh(x):
    y = math.tanh(x.value)
    return Dual(y, (1 - y * y) * x.slope)


def silu(x):
    s = 1 / (1 + math.exp(-x.value))
    return Dual(x.value * s, (s + x.value * s * (1 - s)) * x.slope)


class TwoUnits(nn.Module):
    """`u_i = w_i1 tanh(h_1) + w_i2 silu(h_2) + q_i`, `h_k = a_k1 z_1 + a_k2 z_2 + b_k t + c_k (t - r) + e_k`: 16 weights."""

    def __init__(self):
        super().__init__()
        with seeded(3):
            self.into = nn.Linear(4, 2)  # a, b, c and e
            self.out = nn.Linear(2, 2)  # w and q
        randomise(self.double(), seed=3, scale=0.7)

    def forward(self, z, times):
        h = self.into(torch.cat([z, times], dim=1))
        return self.out(torch.stack([h[:, 0].tanh(), nn.functional.silu(h[:, 1])], dim=1))


def u_by_numbers(weights, z_1, z_2, r, t):
    """The two components of u from 16 numbers in the order of `TwoUnits.parameters()`; any argument may be dual."""
    into, e, out, q = weights[:8], weights[8:10], weights[10:14], weights[14:]
    interval = t + (-1) * Dual.of(r)
    first, second = (
        into[4 * k] * Dual.of(z_1) + into[4 * k + 1] * Dual.of(z_2) + into[4 * k + 2] * t + into[4 * k + 3] * interval
        + e[k]
        for k in range(2)
    )  # fmt: skip
    units = tanh(first), silu(second)
    return [out[2 * i] * units[0] + out[2 * i + 1] * units[1] + q[i] for i in range(2)]


def by_numbers(weights, items, power, tangent, wrong=""):
    """Loss and raw loss of each item, and the gradient of the mean loss, one number at a time.

    `items` are `(x_0, z, r, t)`. `wrong` names a mistake: the tangent's sign, r moving with t, or a graded target.
    """
    losses, raws, gradient = [], [], [0.0] * len(weights)
    for x_0, z, r, t in items:
        w = [(x - m) / DATA_STD for x, m in zip(x_0, DATA_MEAN, strict=True)]
        eps = [(z[i] - (1 - t) * w[i]) / t for i in range(2)]
        v_c = [eps[i] - w[i] for i in range(2)]
        v = v_c if tangent == "conditional" else [n.value for n in u_by_numbers(weights, *z, t, Dual(t))]
        sign = -1 if wrong == "sign" else 1
        r_dot = 1.0 if wrong == "r moves" else 0.0

        def target_of(weights, v=v, v_c=v_c, z=z, r=r, t=t, sign=sign, r_dot=r_dot):
            moved = u_by_numbers(
                weights, Dual(z[0], sign * v[0]), Dual(z[1], sign * v[1]), Dual(r, r_dot), Dual(t, 1.0)
            )
            return [v_c[i] - (t - r) * moved[i].slope for i in range(2)]

        target = target_of(weights)
        raw = sum((n.value - y) ** 2 for n, y in zip(u_by_numbers(weights, *z, r, Dual(t)), target, strict=True))
        weight = (raw + 1e-3) ** -power
        raws.append(raw)
        losses.append(weight * raw)
        for k in range(len(weights)):
            turned = [Dual(p, float(j == k)) for j, p in enumerate(weights)]
            u = u_by_numbers(turned, *z, r, Dual(t))
            d_target = [0.0, 0.0]
            if wrong == "graded target":
                ends = [target_of([p + h * (j == k) for j, p in enumerate(weights)]) for h in (1e-6, -1e-6)]
                d_target = [(a - b) / 2e-6 for a, b in zip(*ends, strict=True)]
            slope = sum(2 * (u[i].value - target[i]) * (u[i].slope - d_target[i]) for i in range(2))
            gradient[k] += weight * slope / len(items)
    return doubles(*losses), doubles(*raws), doubles(*gradient)


def recorded(objective, model, x_0, seed=0):
    """The loss, and the arguments of the model's graded evaluation."""
    calls, u = [], model.u
    model.u = lambda *arguments: calls.append(arguments) or u(*arguments)
    loss = objective(model, {"x_0": x_0}, generator(seed))
    del model.u
    return loss, calls[-1]


@pytest.mark.parametrize("tangent", ["conditional", "own"])
@pytest.mark.parametrize("power", [0.0, 0.75])
def test_loss_and_gradient_are_those_of_plain_numbers(power, tangent):
    """Dual numbers along the flow for du/dt, dual numbers along every weight for the gradient; no tensor takes part."""
    model = MeanFlow(TwoUnits(), (2,), standardise=True).double()
    model.data_mean.copy_(doubles(*DATA_MEAN))
    model.data_std.fill_(DATA_STD)
    x_0 = normals(10, 2, seed=1) + 0.4
    loss, (z, r, t) = recorded(MeanFlowObjective(adaptive_power=power, tangent=tangent), model, x_0)
    assert 0 < (r < t).sum() < 10
    loss.per_sample.mean().backward()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()
    items = list(zip(x_0.tolist(), z.tolist(), r.tolist(), t.tolist(), strict=True))

    losses, raws, gradient = by_numbers(weights, items, power, tangent)
    assert_close(loss.per_sample.detach(), losses, **EXACT)
    assert_close(loss.raw, raws, **EXACT)
    assert_close(gradients(model), gradient, **EXACT)
    for wrong in ("sign", "r moves", "graded target"):
        _, _, other = by_numbers(weights, items, power, tangent, wrong)
        assert (other - gradients(model)).abs().amax() > 1e-3 * gradient.abs().amax(), wrong
    _, _, other = by_numbers(weights, items, power, "own" if tangent == "conditional" else "conditional")
    assert (other - gradients(model)).abs().amax() > 1e-3 * gradient.abs().amax()


class ExactFlow(nn.Module):
    """The flow `u(z, r, t)` from noise to Gaussian data, and for each item two directions off it."""

    def __init__(self, items, std=STD):
        super().__init__()
        self.exact = LinearFlow(MEAN, std)
        self.off = nn.Parameter(torch.zeros(items, 2, dtype=torch.float64))

    def forward(self, z, times):
        t, interval = times.unbind(1)
        exact = self.exact(z, t - interval, t)
        if z.shape[0] != self.off.shape[0]:  # the derivative's part of the batch
            return exact
        constant, along_z = self.off.split(1, dim=1)
        return exact + constant + along_z * z


@pytest.mark.parametrize("tangent", ["conditional", "own"])
@pytest.mark.parametrize("law", [Uniform(low=0.0), LogitNormal()], ids=lambda law: type(law).__name__)
def test_the_exact_flow_is_a_stationary_point(law, tangent):
    """Proposition 1 without a network's error; the flow to data with a variance 1.2 times larger is not stationary."""

    def stationarity(network):
        objective = MeanFlowObjective(adaptive_power=0.0, tangent=tangent, pair_law=law)
        x_0 = gaussian(MEAN, STD).sample((network.off.shape[0],), generator(2))
        objective(MeanFlow(network, (2,)).double(), {"x_0": x_0}, generator(3)).per_sample.sum().backward()
        return z_tests(network.off.grad, doubles(0, 0))

    assert accepts(stationarity(ExactFlow(40_000)))
    assert rejects(stationarity(ExactFlow(40_000, STD * 1.2**0.5)))


@pytest.mark.parametrize("standardise", [False, True])
def test_states_are_those_of_the_interpolant(standardise):
    """`z_t = (1 - t) w + t eps` with normal noise that knows neither the data nor the times."""
    n = 40_000
    model = MeanFlow(ExactFlow(n), (2,), standardise).double()
    x_0 = gaussian(MEAN, STD).sample((n,), generator(4))
    model.fit(x_0)
    loss, (z, r, t) = recorded(MeanFlowObjective(frac_r_below_t=0.3, atom_t_1=0.1), model, x_0)
    w = (x_0 - x_0.mean(0)) / (x_0 - x_0.mean(0)).square().mean().sqrt() if standardise else x_0
    t = t[:, None]
    eps = (z - (1 - t) * w) / t
    assert accepts(ks(eps, "norm"))
    assert rejects(ks(eps * 1.2**0.5, "norm"))
    independent = torch.cat([eps * (w - w.mean(0)), (t - t.mean()) * eps], dim=1)
    assert accepts(z_tests(independent, torch.zeros(4).double()))
    assert rejects(z_tests(eps * (w - w.mean(0) + 0.1 * eps), torch.zeros(2).double()))
    assert torch.equal(loss.logs["bucket"], t[:, 0] - r)
    assert accepts(share(loss.logs["bucket"] > 0, 0.3))
    assert accepts(share(t == 1, 0.1))


def linear_model(std=STD):
    """A Mean Flow whose network is the exact flow from noise to `N(MEAN, std^2 I)`."""
    return MeanFlow(ExactFlow(0, std), (2,)).double()


def test_the_flow_map_is_a_semigroup_and_no_interval_is_the_identity():
    model, z = linear_model(), normals(5, 2, seed=5)
    t, q, r = doubles(1.0, 0.9, 0.7, 0.3, 1.0), doubles(0.5, 0.6, 0.7, 0.2, 0.9), doubles(0.0, 0.1, 0.3, 0.0, 0.0)
    assert_close(model.flow_map(model.flow_map(z, t, q), q, r), model.flow_map(z, t, r), **EXACT)
    assert_close(model(z, t, r), LinearFlow(MEAN, STD).line(z, t[:, None], r[:, None]), **EXACT)
    assert torch.equal(model(z, t, t), z)
    randomised = MeanFlow(TwoUnits(), (2,)).double()
    assert torch.equal(randomised(z, 0.4, 0.4), z)
    composed = randomised(randomised(z, t, q), q, r)
    assert ((composed - randomised(z, t, r))[(q < t) & (r < q)].abs() > 1e-4).all()


GRIDS = [(1, UniformGrid()), (2, UniformGrid()), (7, UniformGrid()), (3, CustomGrid(times=(1.0, 0.9, 0.05, 0.0)))]


@pytest.mark.parametrize(("steps", "grid"), GRIDS, ids=str)
def test_the_exact_flow_is_sampled_exactly_at_every_number_of_steps(steps, grid):
    """`x_0 = m + s z`, and so has the law of the data; the noise alone decides."""
    z = normals(20_000, 2, seed=6)
    x_0 = FlowMap(steps, grid)(linear_model(), z)
    assert_close(x_0, MEAN + STD * z, **EXACT)
    assert torch.equal(x_0, FlowMap(steps, grid)(linear_model(), z, generator(7)))
    covariance = STD**2 * torch.eye(2).double()
    assert accepts(mean_and_covariance(x_0, MEAN, covariance))
    wide = FlowMap(steps, grid)(linear_model(STD * 1.2**0.5), z)
    assert rejects(mean_and_covariance(wide, MEAN, covariance))


def test_a_velocity_in_place_of_its_average_is_not_exact_in_one_step():
    """`u(z, t, t)` is Euler's method: its error is there, and falls with the number of steps."""
    model, z = linear_model(), normals(100, 2, seed=8)
    exact = model.network.exact
    model.u = lambda z, r, t: exact(z, t, t)
    errors = [(FlowMap(m)(model, z) - (MEAN + STD * z)).abs().mean().item() for m in (1, 8, 64)]
    assert errors[0] > 0.1
    assert 4 < errors[1] / errors[2] < 12


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_sample_costs_one_evaluation_a_step(steps):
    model = MeanFlow(TwoUnits(), (2,)).double()
    with EvaluationCounter(model) as counter:
        x_0 = FlowMap(steps)(model, normals(10, 2, seed=9))
    assert (counter.calls, counter.items) == (steps, 10 * steps)
    assert not x_0.requires_grad


def test_the_data_is_standardised_and_put_back():
    x_0 = gaussian(MEAN, STD).sample((1000,), generator(10))
    plain, standard = (MeanFlow(TwoUnits(), (2,), standardise).double() for standardise in (False, True))
    for model in (plain, standard):
        model.fit(x_0)
        assert_close(model.decode(model.encode(x_0)), x_0, **EXACT)
        assert_close(model.encode(model.decode(x_0)), x_0, **EXACT)
    assert torch.equal(plain.encode(x_0), x_0)
    w = standard.encode(x_0)
    assert_close(w.mean(0), doubles(0, 0), **EXACT)
    assert_close(w.square().mean(), doubles(1.0)[0], **EXACT)
    z = normals(5, 2, seed=11)
    undone = (FlowMap()(standard, z) - x_0.mean(0)) / standard.data_std
    assert_close(undone, standard.flow_map(z, 1.0, 0.0).detach(), **EXACT)


@pytest.mark.parametrize("standardise", [False, True])
def test_there_and_back_gives_the_same_bits(tmp_path, standardise):
    """A model without a diffusion has no schedule to be checked; one that claims ends of a diffusion is refused."""
    with seeded(0):
        model = randomise(MeanFlowConfig(network=MLPConfig(width=16, depth=1), standardise=standardise).build((2,)))
    model.fit(normals(50, 2, seed=1, dtype=torch.float32) + 0.5)
    folder = tmp_path / "model"
    save_pretrained(model, folder, FlowMap(3))
    config = json.loads((folder / "config.json").read_text())
    assert config["schedule"] == {}
    loaded = load(folder)
    assert loaded.schedule is None
    assert loaded.sampler == FlowMap(3)
    assert loaded.standardise is standardise
    assert torch.equal(sample(loaded, 5, seed=3), sample(model, 5, seed=3, sampler=FlowMap(3)))
    assert not torch.equal(sample(loaded, 5, seed=3, steps=1), sample(loaded, 5, seed=3))

    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != CHECKSUMS}
    config["schedule"] = {"alpha_1": 0.0066, "sigma_1": 1.0}
    write_folder(folder, files | {"config.json": json.dumps(config).encode()})
    with pytest.raises(UserError, match="ends"):
        load(folder)


def refusal(sampler, model):
    """The call past the test run's check of types, as a user makes it."""
    with pytest.raises(UserError) as error:
        inspect.unwrap(type(sampler).__call__)(sampler, model, normals(4, 2, seed=0), generator(0))
    return str(error.value)


@pytest.mark.parametrize("sampler", [Ancestral(), OfMeans(), ProbabilityFlow(), ReverseSDE()], ids=repr)
def test_a_sampler_of_posteriors_refuses_a_mean_flow(sampler):
    message = refusal(sampler, linear_model())
    assert f"{type(sampler).__name__} draws from a PosteriorModel, and MeanFlow is none" in message


def test_what_the_flow_map_refuses():
    message = refusal(FlowMap(), MixturePosterior(t2(), SCHEDULE))
    assert "FlowMap draws from a MeanFlow, and MixturePosterior is none" in message
    for steps in (1, 4):
        assert "log-SNR" in refusal(FlowMap(steps, LogSNRGrid()), linear_model())
    assert "steps" in refusal(FlowMap(2, CustomGrid(times=(1.0, 0.5, 0.2, 0.0))), linear_model())
    for steps in (0, -1):
        with pytest.raises(UserError, match="steps"):
            FlowMap(steps)
