"""The energy score of one-step draws as a loss: what it is, that it is proper, and what the peers change."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from fewstep import evidence, transition
from fewstep.errors import UserError
from fewstep.metrics import EnergyScore
from fewstep.models import PosteriorFlow
from fewstep.objectives import EnergyScoreObjective, Semigroup
from fewstep.scaling import GaussianScaling, IdentityScaling
from fewstep.times import Uniform
from problems import SCHEDULE, TINY_MLP, doubles, gaussian, generator, generators, normals, randomise, seeded, t2
from stats import accepts, rejects, z_tests

MEAN, STD = doubles(1.0, -0.5), 0.6


def small_model(scaling=GaussianScaling()):
    with seeded(0):
        network = randomise(TINY_MLP.build((2,), inputs=2, times=3).double())
    model = PosteriorFlow(network, SCHEDULE, scaling, (2,)).double()
    model.data_std.fill_(1.3)
    return model


class Draws(nn.Module):
    """One-step draws of the exact posterior of Gaussian data, their deviations multiplied by `factor`."""

    def __init__(self, factor: float = 1.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, x, times):
        z, x_tau, tau = x[:, :2], x[:, 2:], times[:, 2]
        law = gaussian(MEAN, STD).posterior(x_tau, tau, SCHEDULE)
        deviation = law.covariances[:, 0].diagonal(dim1=-2, dim2=-1).sqrt()
        return z - (law.mean + self.factor * deviation * z)


@pytest.mark.parametrize("detour", [0.0, 1.0])
def test_it_is_the_energy_score_of_the_draws(detour):
    """Number by number against the metric, on the same draws, of one step or of two; raw is their mean squared error."""
    model, x_0 = small_model(), normals(5, 2, seed=0)
    objective = EnergyScoreObjective(draws=3, detour=detour)
    sources = generators(*range(5))
    tau = objective.tau_law.sample(5, sources, x_0)
    x_tau = transition.sample(x_0, torch.zeros_like(tau), tau, SCHEDULE, sources)
    noise = torch.stack([torch.randn(3, 2, generator=g, dtype=torch.float64) for g in sources], dim=1)
    between = [torch.rand((), generator=g, dtype=torch.float64).item() for g in sources]
    loss = objective(model, {"x_0": x_0}, generators(*range(5)))
    for i in range(5):
        q = model(x_tau[i : i + 1], tau[i])
        grid = (1.0, between[i], 0.0) if detour else None
        draws = q.sample((3,), noise=noise[:, i : i + 1], flow_grid=grid)
        w = torch.stack([model.encode(d, x_tau[i : i + 1], tau[i : i + 1]) for d in draws])
        target = model.encode(x_0[i : i + 1], x_tau[i : i + 1], tau[i : i + 1])
        assert loss.per_sample[i].item() == pytest.approx(EnergyScore()(w, target)["energy_score"], rel=1e-10)
        assert loss.raw[i].item() == pytest.approx((w - target).square().sum(-1).mean().item(), rel=1e-10)


def test_a_share_of_the_draws_takes_the_detour():
    """The other items are as without it, bit for bit."""
    model, x_0 = small_model(), normals(2000, 2, seed=0)
    losses = {d: EnergyScoreObjective(detour=d)(model, {"x_0": x_0}, generator(0)).per_sample for d in (0.0, 0.3, 1.0)}
    straight, around = losses[0.3] == losses[0.0], losses[0.3] == losses[1.0]
    assert (straight | around).double().mean() > 0.99  # to the rounding of another batch size
    assert abs(around.double().mean() - 0.3) < 5 * (0.3 * 0.7 / 2000) ** 0.5


def test_the_weight_of_the_mean_adds_the_product_of_the_errors_of_two_draws():
    """Which sees their mean alone: `E <W_1 - w, W_2 - w> = ||E W - w||^2`. With peers, the same in the mean over them."""
    model, x_0 = small_model(), normals(5, 2, seed=0)
    for peers in (False, True):
        plain = EnergyScoreObjective(draws=3, peers=peers)
        with torch.no_grad():
            added = [
                replace(plain, mean_weight=weight)(model, {"x_0": x_0}, generators(*range(5))).per_sample
                - plain(model, {"x_0": x_0}, generators(*range(5))).per_sample
                for weight in (0.3, 0.6)
            ]
        sources = generators(*range(5))
        tau = plain.tau_law.sample(5, sources, x_0)
        x_tau = transition.sample(x_0, torch.zeros_like(tau), tau, SCHEDULE, sources)
        noise = torch.stack([torch.randn(3, 2, generator=g, dtype=torch.float64) for g in sources], dim=1)
        alpha, sigma = SCHEDULE.alpha(tau), SCHEDULE.sigma(tau)
        for i in range(5):
            state = x_tau[i : i + 1], tau[i : i + 1]
            draws = model(x_tau[i : i + 1], tau[i]).sample((3,), noise=noise[:, i : i + 1])
            w = torch.stack([model.encode(d, *state) for d in draws])
            products = torch.zeros(5, dtype=torch.float64)
            for j, item in enumerate(x_0):
                errors = (w - model.encode(item[None], *state)).flatten(1)
                products[j] = sum(errors[a] @ errors[b] for a in range(3) for b in range(3) if a != b) / 6
            made = (-(x_tau[i] - alpha[i] * x_0).square().sum(-1) / (2 * sigma[i] ** 2)).softmax(0)
            expected = (made * products).sum() if peers else products[i]
            assert added[0][i].item() == pytest.approx(0.3 * alpha[i].item() ** 2 * expected.item(), rel=1e-9)
            assert added[1][i].item() == pytest.approx(0.6 * alpha[i].item() ** 2 * expected.item(), rel=1e-9)


def test_the_rule_of_the_mean_is_blind_to_the_width_of_the_draws():
    """Its slope in the width is 0 far from the true width too, where the energy score has one; its slope in the mean is not."""
    x_0 = gaussian(MEAN, STD).sample((20_000,), generator(0))
    objective = EnergyScoreObjective(draws=2, tau_law=Uniform(low=0.2, high=0.9))

    def slope(weight, factor, shift):
        network = Draws()
        model, losses = PosteriorFlow(network, SCHEDULE, IdentityScaling(), (2,)).double(), []
        for sign in (1, -1):
            network.factor.data.fill_(0.6 + sign * factor)
            hook = network.register_forward_hook(lambda _, __, u, sign=sign: u - (0.2 + sign * shift))
            with torch.no_grad():
                found = [
                    replace(objective, mean_weight=w)(model, {"x_0": x_0}, generator(1)).per_sample
                    for w in (weight, 0.0)
                ]
            hook.remove()
            losses.append(found[0] - found[1] if weight else found[1])
        return z_tests((losses[0] - losses[1])[:, None], torch.zeros(1, dtype=torch.float64))

    assert accepts(slope(weight=1.0, factor=0.05, shift=0.0))
    assert rejects(slope(weight=0.0, factor=0.05, shift=0.0))  # the energy score does see the width
    assert rejects(slope(weight=1.0, factor=0.0, shift=0.05))


@pytest.mark.parametrize("power", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("draws", [2, 6])
def test_it_is_proper_for_every_number_of_draws(power, draws):
    """Its derivative in the width of the draws vanishes at the truth, and nowhere near it.

    With the mean over all pairs, i = j too, it would not: such a score rewards narrow draws, the more the fewer they are.
    """
    n = 20_000
    x_0 = gaussian(MEAN, STD).sample((n,), generator(0))
    objective = EnergyScoreObjective(power=power, draws=draws, tau_law=Uniform(low=0.2, high=0.9))

    def slopes(factor, biased=False):
        network = Draws(factor)
        model = PosteriorFlow(network, SCHEDULE, IdentityScaling(), (2,)).double()
        step, losses = 1e-3, []
        for shift in (step, -step):
            network.factor.data.fill_(factor + shift)
            with torch.no_grad():
                loss = objective(model, {"x_0": x_0}, generator(1)).per_sample
                if biased:  # 1/2 mean over i != j is shrunk by (m - 1) / m
                    other = EnergyScoreObjective(power=power, draws=draws, tau_law=objective.tau_law)
                    miss = distance_to_item(other, model, x_0)
                    loss = miss - (miss - loss) * (draws - 1) / draws
            losses.append(loss)
        return (losses[0] - losses[1])[:, None] / (2 * step)

    zero = torch.zeros(1, dtype=torch.float64)
    assert accepts(z_tests(slopes(1.0), zero))
    assert rejects(z_tests(slopes(0.85), zero))
    assert rejects(z_tests(slopes(1.15), zero))
    assert slopes(0.85).mean() < 0 < slopes(1.15).mean()
    assert rejects(z_tests(slopes(1.0, biased=True), zero))


def distance_to_item(objective, model, x_0):
    """The first half of the score alone, with the objective's own randomness."""
    source = generator(1)
    tau = objective.tau_law.sample(len(x_0), source, x_0)
    x_tau = transition.sample(x_0, torch.zeros_like(tau), tau, model.schedule, source)
    noise = torch.randn(objective.draws, *x_0.shape, generator=source, dtype=torch.float64)
    draws = model(x_tau, tau).sample((objective.draws,), noise=noise)
    return (draws - x_0).norm(dim=-1).pow(objective.power).mean(0)


def test_peers_leave_the_mean_of_the_score_and_its_gradient_and_lower_the_variance(monkeypatch):
    """Batches of 6 items of T2, 400 times; as a wrong twin, shares that are all equal."""
    model, repeats, size = small_model(), 400, 6
    weight = model.network.out.weight
    direction = normals(*weight.shape, seed=9)
    plain = EnergyScoreObjective(draws=2, tau_law=Uniform(low=0.1))
    items = t2().sample((repeats, size), generator(0))

    def measured(objective):
        rows = []
        for i, x_0 in enumerate(items):
            loss = objective(model, {"x_0": x_0}, generator(i)).per_sample.mean()
            (gradient,) = torch.autograd.grad(loss, weight)
            rows.append(torch.stack([loss.detach(), (gradient * direction).sum()]))
        return torch.stack(rows)

    one, peers, zero = measured(plain), measured(replace(plain, peers=True)), torch.zeros(2, dtype=torch.float64)
    assert accepts(z_tests(one - peers, zero))
    assert (peers.var(0) < one.var(0)).all()
    monkeypatch.setattr(evidence, "shares", lambda y, lam, x: torch.full((len(y), len(x)), 1 / len(x)).double())
    assert rejects(z_tests(one - measured(replace(plain, peers=True)), zero))


def test_a_share_of_the_items_gives_the_same_mean():
    """A quarter of the items, each four times; unscored items cost nothing."""
    n, x_0 = 20_000, t2().sample((20_000,), generator(0))
    model, plain = small_model(), EnergyScoreObjective()
    with torch.no_grad():
        whole = plain(model, {"x_0": x_0}, generator(1)).per_sample
        part = replace(plain, share=0.25)(model, {"x_0": x_0}, generator(2)).per_sample
    assert abs((part != 0).double().mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / n)
    assert accepts(z_tests((part - whole)[:, None], torch.zeros(1, dtype=torch.float64)))
    assert rejects(z_tests((0.9 * part - whole)[:, None], torch.zeros(1, dtype=torch.float64)))


def test_no_item_scored_is_no_error():
    """Small shares of small batches: the loss is 0, and still has a gradient, which is 0."""
    for objective in (EnergyScoreObjective(share=1e-6), Semigroup(share=1e-6)):
        model = small_model()
        loss = objective(model, {"x_0": normals(3, 2, seed=0)}, generator(0))
        assert torch.equal(loss.per_sample, torch.zeros(3, dtype=torch.float64))
        loss.per_sample.mean().backward()
        assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())


def test_draws_that_coincide_have_a_finite_gradient():
    """As those of a network that ignores its noise: z - u is the same for all."""

    class Still(nn.Module):
        def __init__(self):
            super().__init__()
            self.at = nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, x, times):
            return x[:, :2] - self.at

    for power in (0.5, 1.0):
        model = PosteriorFlow(Still(), SCHEDULE, IdentityScaling(), (2,)).double()
        EnergyScoreObjective(power=power)(
            model, {"x_0": normals(4, 2, seed=0)}, generator(0)
        ).per_sample.mean().backward()
        assert model.network.at.grad.isfinite().all()
        assert model.network.at.grad.norm() > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"draws": 1}, "at least 2 draws"), ({"power": 2.0}, "between 0 and 2"), ({"power": 0.0}, "between 0 and 2"),
     ({"share": 0.0}, "share"), ({"share": 1.5}, "share"), ({"detour": -0.1}, "detour"),
     ({"mean_weight": -1.0}, "mean_weight"), ({"mean_weight": math.inf}, "mean_weight")],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        EnergyScoreObjective(**fields)
