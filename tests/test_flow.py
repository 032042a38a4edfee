"""Mean Flow: the identity, the flow map, and the derivative along the flow."""

import pytest
import torch
from numpy.polynomial.legendre import leggauss
from torch.testing import assert_close

from fewstep.flow import (
    conditional_velocity,
    flow_map,
    follow,
    interpolate,
    mean_flow_target,
    standard_slope,
    total_derivative,
)
from fewstep.times import even_times
from problems import LinearFlow, doubles, gradients, normals, tiny_network

FLOW = LinearFlow(mean=1.5, std=0.4)
R, T = doubles(0.0, 0.0, 0.2, 0.3, 0.6, 0.5), doubles(1.0, 0.3, 0.7, 1.0, 0.65, 0.5)  # the last one with r = t
Z = normals(6, 2, seed=0) + 0.5
EXACT = {"rtol": 1e-11, "atol": 1e-12}
NETWORKS = pytest.mark.parametrize("name", ["mlp", "unet"])


def test_the_closed_form_is_the_average_of_the_velocity():
    """`u = 1/(t - r) int_r^t v(z_q, q) dq` along the flow line, by Gauss-Legendre quadrature."""
    nodes, weights = leggauss(60)
    r, t = R[:5, None], T[:5, None]
    average = torch.zeros_like(Z[:5])
    for node, weight in zip(nodes, weights, strict=True):
        q = r + (t - r) * (node + 1) / 2
        average += weight / 2 * FLOW.v(FLOW.line(Z[:5], t, q), q)
    assert_close(FLOW(Z[:5], R[:5], T[:5]), average, **EXACT)


def test_u_of_no_interval_is_v():
    assert_close(FLOW(Z, T, T), FLOW.v(Z, T[:, None]), **EXACT)


def test_mean_flow_identity():
    """`u = v - (t - r) du/dt`; not with the sign of the derivative turned, nor with r and t swapped."""
    u, du_dt = total_derivative(FLOW, Z, R, T, FLOW.v(Z, T[:, None]))
    v, interval = FLOW.v(Z, T[:, None]), (T - R)[:, None]
    assert_close(u, v - interval * du_dt, **EXACT)
    assert_close(u, FLOW(Z, R, T), **EXACT)
    assert ((u - (v + interval * du_dt))[:5].abs() > 1e-2).all()
    _, swapped = total_derivative(lambda z, t, r: FLOW(z, r, t), Z, T, R, v)
    assert ((u - (v - interval * swapped))[:5].abs() > 1e-3).all()


def test_the_target_at_the_solution_is_the_solution():
    """With the marginal velocity the regression's target is u itself, also where r = t; for a wrong flow it is not."""
    v = FLOW.v(Z, T[:, None])
    assert_close(mean_flow_target(FLOW, Z, R, T, v), FLOW(Z, R, T), **EXACT)
    assert_close(mean_flow_target(FLOW, Z, R, T, v + 1, tangent="own"), FLOW(Z, R, T) + 1, **EXACT)
    wrong = LinearFlow(mean=1.5, std=0.5)
    assert ((mean_flow_target(wrong, Z, R, T, v) - wrong(Z, R, T))[T < 1].abs() > 1e-4).all()


def test_the_flow_map_is_a_semigroup():
    """From t to q to r is from t to r, and it is the exact flow line; a flow map through a wrong u leaves it."""
    q = (R + T) / 2
    direct = flow_map(FLOW, Z, T, R)
    assert_close(flow_map(FLOW, flow_map(FLOW, Z, T, q), q, R), direct, **EXACT)
    assert_close(direct, FLOW.line(Z, T[:, None], R[:, None]), **EXACT)
    assert_close(flow_map(FLOW, Z, 0.7, 0.7), Z)

    def instantaneous(z, r, t):
        return FLOW(z, t, t)

    halved = flow_map(instantaneous, flow_map(instantaneous, Z, T, q), q, R)
    assert ((halved - flow_map(instantaneous, Z, T, R))[:5].abs() > 1e-4).all()


@pytest.mark.parametrize("grid", [even_times(1), even_times(7), doubles(1.0, 0.9, 0.05, 0.0)], ids=len)
def test_the_exact_flow_carries_noise_to_data_along_any_grid(grid):
    z = normals(5, 3, seed=1)
    assert_close(follow(FLOW, z, grid), 1.5 + 0.4 * z, **EXACT)


def test_interpolant_and_velocity():
    x_0, eps = normals(6, 2, seed=2), normals(6, 2, seed=3)
    zero = torch.zeros_like(T)
    assert torch.equal(interpolate(x_0, eps, zero), x_0)
    assert torch.equal(interpolate(x_0, eps, zero + 1), eps)
    slope = (interpolate(x_0, eps, T + 1e-6) - interpolate(x_0, eps, T)) / 1e-6
    assert_close(conditional_velocity(x_0, eps), slope, rtol=1e-8, atol=1e-8)


def velocity_problem(name):
    """A network as `u(z, r, t, x_tau)`, and a batch for it that mixes r < t and r = t."""
    network, item = tiny_network(name, inputs=2, times=2)

    def u(z, r, t, x_tau):
        return network(torch.cat([z, x_tau], dim=1), torch.stack([t, t - r], dim=1))

    return network, u, normals(6, *item, seed=4), normals(6, *item, seed=5), normals(6, *item, seed=6)


@NETWORKS
def test_total_derivative_against_central_differences(name):
    """The line moves z by v and t by 1, and neither r nor what is held; moving r or x_tau too gives something else."""
    _, u, z, v, x_tau = velocity_problem(name)
    value, derivative = total_derivative(u, z, R, T, v, (x_tau,))

    def difference(dr=0.0, dx=0.0, h=1e-6):
        ends = [u(z + e * v, R + e * dr, T + e, x_tau + e * dx) for e in (h, -h)]
        return ((ends[0] - ends[1]) / (2 * h)).detach()

    def error(other):
        return ((other - derivative).abs().amax() / derivative.abs().amax()).item()

    assert_close(value, u(z, R, T, x_tau), rtol=1e-10, atol=1e-12)  # another kernel may run, and round otherwise
    assert error(difference()) < 1e-6
    assert error(difference(dr=1.0)) > 1e-3
    assert error(difference(dx=1.0)) > 1e-3


def test_held_tensors_have_no_tangent():
    _, derivative = total_derivative(lambda z, r, t, h: h**2 + 0 * z, Z, R, T, Z, (Z,))
    assert (derivative == 0).all()


@NETWORKS
def test_a_target_for_the_few_gives_the_gradient_of_the_whole(name):
    """One derivative through the full batch, its target detached afterwards, has the gradient of the cheap form."""
    network, u, z, v_c, x_tau = velocity_problem(name)
    target = mean_flow_target(u, z, R, T, v_c, (x_tau,))
    assert not target.requires_grad
    (u(z, R, T, x_tau) - target).square().sum().backward()
    cheap = gradients(network)

    network.zero_grad()
    lines = (v_c, torch.zeros(6).double(), torch.ones(6).double(), torch.zeros_like(x_tau))
    value, du_dt = torch.func.jvp(u, (z, R, T, x_tau), lines)
    whole = v_c - (T - R).reshape(6, *[1] * (z.ndim - 1)) * du_dt
    (value - whole.detach()).square().sum().backward()
    assert_close(cheap, gradients(network), rtol=1e-10, atol=1e-10)

    network.zero_grad()
    value, du_dt = torch.func.jvp(u, (z, R, T, x_tau), lines)
    graded = v_c - (T - R).reshape(6, *[1] * (z.ndim - 1)) * du_dt
    (value - graded).square().sum().backward()
    assert (gradients(network) - cheap).abs().amax() > 1e-3 * cheap.abs().amax()


def test_where_no_interval_is_positive_no_derivative_is_taken():
    def u(z, r, t):
        raise AssertionError("u was called")

    assert torch.equal(mean_flow_target(u, Z, T, T, Z), Z)


def test_the_slope_of_a_standard_normal_target():
    """It is the closed form at mean 0 and deviation 1, at r = t too; another deviation has another slope."""
    assert_close(standard_slope(R, T)[:, None] * Z, LinearFlow(mean=0.0, std=1.0)(Z, R, T), **EXACT)
    assert (standard_slope(R, T)[:, None] * Z - LinearFlow(mean=0.0, std=0.9)(Z, R, T)).abs().amax() > 0.05
    assert_close(standard_slope(doubles(0.0, 1.0), doubles(1.0, 1.0)), doubles(0.0, 1.0))
