"""Propositions 1 and 2: the conditional objectives have the gradients of the marginal ones, on a mixture, where v is known.

`v(z, t) = E[eps - x_0 | z_t = z] = (z - E[x_0 | z_t = z]) / t`, and `(z - E[x_0 | z_t = z, x_tau]) / t` given `x_tau`.
"""

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp
from torch.testing import assert_close

from fewstep.models import MeanFlow, PosteriorFlow
from fewstep.objectives import STMD, MeanFlowObjective
from fewstep.scaling import IdentityScaling
from fewstep.times import Uniform
from problems import SCHEDULE, generator, normals, randomise, seeded, t2
from stats import accepts, rejects, z_tests

N, DIRECTIONS = 40_000, 8
MIXTURE = t2()
KINDS = pytest.mark.parametrize("kind", ["mean flow", "stmd"])


class Small(nn.Module):
    """A network in general position, and for each item how far it is moved along fixed directions of its weights.

    The derivative of an item's loss in `off` is the gradient of that loss in the weights, projected on the directions.
    """

    def __init__(self, inputs, times):
        super().__init__()
        with seeded(1):
            self.plain = nn.Sequential(nn.Linear(2 * inputs + times, 16), nn.SiLU(), nn.Linear(16, 16), nn.Tanh())
            self.plain.append(nn.Linear(16, 2))
        randomise(self.double(), seed=1, scale=0.5)
        self.weights = {name: p.detach() for name, p in self.plain.named_parameters()}
        self.directions = [
            {name: normals(*p.shape, seed=100 * i + j) for j, (name, p) in enumerate(self.weights.items())}
            for i in range(DIRECTIONS)
        ]
        self.off = nn.Parameter(torch.zeros(N, DIRECTIONS, dtype=torch.float64))

    def forward(self, x, times):
        x = torch.cat([x, times], dim=1)
        value = functional_call(self.plain, self.weights, x)
        if not torch.is_grad_enabled():  # the target's part
            return value
        return value + sum(
            self.off[:, i : i + 1] * jvp(lambda w: functional_call(self.plain, w, x), (self.weights,), (line,))[1]
            for i, line in enumerate(self.directions)
        )


class ExactVelocity(nn.Module):
    """`v(z, t)` of the mixture itself, given `x_tau` where there is one, and each item's constant off it."""

    def __init__(self):
        super().__init__()
        self.off = nn.Parameter(torch.zeros(N, 2, dtype=torch.float64))

    def forward(self, x, times):
        return velocity(x[:, :2], times[:, 0], *(() if x.shape[1] == 2 else (x[:, 2:], times[:, 2]))) + self.off


def velocity(z, t, x_tau=None, tau=None):
    """The marginal velocity; with `x_tau`, z and x_tau are two observations of x_0 with independent noise."""
    eye = torch.eye(2, dtype=torch.float64)
    H, Gam, y = (1 - t)[:, None, None] * eye, (t**2)[:, None, None] * eye, z
    if x_tau is not None:
        alpha, sigma = SCHEDULE.alpha(tau)[:, None, None], SCHEDULE.sigma(tau)[:, None, None]
        H, y = torch.cat([H, alpha * eye], dim=1), torch.cat([z, x_tau], dim=1)
        zero = torch.zeros_like(Gam)
        Gam = torch.cat([torch.cat([Gam, zero], dim=2), torch.cat([zero, sigma**2 * eye], dim=2)], dim=1)
    return (z - MIXTURE.condition(y, H, Gam).mean) / t[:, None]


def conditional(kind, network, **options):
    """Each item's gradient in `off` of the library's objective, and what it drew: `x_0` and `(z, r, t, *held)`."""
    if kind == "stmd":
        model, objective = PosteriorFlow(network, SCHEDULE, IdentityScaling(), (2,)), STMD(tau_law=Uniform(), **options)
    else:
        model, objective = MeanFlow(network, (2,)), MeanFlowObjective(**options)
    calls, u = [], model.u
    model.u = lambda *arguments: calls.append(arguments) or u(*arguments)
    x_0 = MIXTURE.sample((N,), generator(2))
    network.off.grad = None
    objective(model, {"x_0": x_0}, generator(3)).per_sample.sum().backward()
    return network.off.grad, x_0, calls[-1], u


def marginal(network, u, drawn, power=0.0, tangent=None):
    """Each item's gradient of the objective with v in the target and, unless another is given, in the tangent."""
    z, r, t, *held = drawn
    v = velocity(z, t, *held)
    lines = (v if tangent is None else tangent, torch.zeros_like(r), torch.ones_like(t))
    with torch.no_grad():
        _, du_dt = jvp(lambda z, r, t: u(z, r, t, *held), (z, r, t), lines)
    raw = (u(z, r, t, *held) - (v - (t - r)[:, None] * du_dt)).square().sum(1)
    network.off.grad = None
    ((raw.detach() + 1e-3) ** -power * raw).sum().backward()
    return network.off.grad


def network_of(kind):
    return Small(inputs=2, times=3) if kind == "stmd" else Small(inputs=1, times=2)


@KINDS
def test_the_conditional_objective_has_the_gradient_of_the_marginal_one(kind):
    """Propositions 1 and 2, in eight directions of the weights of a network in general position.

    Not with a tangent that is zero (v in the target only) or `eps + x_0`, nor with the model's own in its place.
    """
    network = network_of(kind)
    gradient, x_0, drawn, u = conditional(kind, network, adaptive_power=0.0)
    z, _, t, *_ = drawn
    eps = (z - (1 - t)[:, None] * x_0) / t[:, None]
    zero = torch.zeros(DIRECTIONS, dtype=torch.float64)
    exact = marginal(network, u, drawn)
    assert exact.mean(0).abs().amin() > 0.01  # no direction in which there is nothing to compare
    assert accepts(z_tests(gradient - exact, zero))
    for wrong in (torch.zeros_like(z), eps + x_0):
        assert rejects(z_tests(gradient - marginal(network, u, drawn, tangent=wrong), zero))
    own, *_ = conditional(kind, network, adaptive_power=0.0, tangent="own")
    assert rejects(z_tests(own - exact, zero))


@KINDS
def test_the_adaptive_weight_has_another_gradient(kind):
    """The weight looks at the residual of the single draw: it is not the same in the two objectives."""
    network = network_of(kind)
    gradient, _, drawn, u = conditional(kind, network, adaptive_power=0.75)
    zero = torch.zeros(DIRECTIONS, dtype=torch.float64)
    assert rejects(z_tests(gradient - marginal(network, u, drawn, power=0.75), zero))


@KINDS
def test_the_adaptive_weight_moves_the_minimiser(kind):
    """With r = t the minimiser is v itself without a weight, and something else with one."""
    options = {"frac_r_below_t": 0.0, "pair_law": Uniform(low=0.05)}
    zero = torch.zeros(2, dtype=torch.float64)
    plain, x_0, (z, _, t, *held), _ = conditional(kind, ExactVelocity(), adaptive_power=0.0, **options)
    assert accepts(z_tests(plain, zero))
    v_c = (z - x_0) / t[:, None]  # eps - x_0, from the state
    assert_close(plain, 2 * (velocity(z, t, *held) - v_c), rtol=1e-9, atol=1e-9)
    weighted, *_ = conditional(kind, ExactVelocity(), adaptive_power=0.75, **options)
    assert rejects(z_tests(weighted, zero))
