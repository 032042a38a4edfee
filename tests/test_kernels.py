"""Kernels: their derivatives, companions and matches, for all five."""

import math

import pytest
import torch
from scipy.integrate import quad
from torch.testing import assert_close

from fewstep.errors import UserError
from fewstep.kernels import (
    ExponentialPower,
    Gaussian,
    InverseMultiquadric,
    Laplace,
    Matern,
    matched_gaussian,
    matched_laplace,
)
from problems import doubles, normals

KERNELS = [
    Gaussian(bandwidth=0.7),
    Laplace(bandwidth=0.6),
    Matern(bandwidth=0.8),
    Matern(bandwidth=0.8, order=2),
    InverseMultiquadric(bandwidth=0.9),
    ExponentialPower(bandwidth=1.1),
    ExponentialPower(bandwidth=1.1, beta=0.7),
]
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=repr)
R = doubles(0.05, 0.3, 1.0, 2.5, 6.0)


@every_kernel
def test_b_is_what_the_derivative_says(kernel):
    """`b = r / (-d log k / dr)`, and `k(0) = 1`."""
    r = R.clone().requires_grad_()
    slope = torch.autograd.grad(kernel.log_k(r).sum(), r)[0]
    assert_close(kernel.b(R), R / -slope, rtol=1e-10, atol=0)
    assert_close(kernel.log_k(doubles(0.0)), doubles(0.0))
    wrong = Gaussian(bandwidth=2.0) if isinstance(kernel, Laplace) else Laplace(bandwidth=2.0)
    assert (wrong.b(R) - kernel.b(R)).abs().max() > 0.1


@every_kernel
def test_the_companion_is_an_integral(kernel):
    """`k#(r) = int_r^inf u k(u) du` by quadrature, and its derivative is `-r k`."""
    for r in R.tolist():
        expected = quad(
            lambda u: u * kernel.log_k(torch.tensor(u, dtype=torch.float64)).exp().item(), r, math.inf, epsabs=0
        )[0]
        assert kernel.log_sharp(doubles(r)).exp().item() == pytest.approx(expected, rel=1e-6)
    r = R.clone().requires_grad_()
    slope = torch.autograd.grad(kernel.log_sharp(r).exp().sum(), r)[0]
    assert_close(slope, -R * kernel.log_k(R).exp(), rtol=1e-9, atol=1e-14)


@every_kernel
def test_the_gradient_of_a_kernel_pulls_to_the_other_point(kernel):
    """`grad_x k = k (y - x) / b(r)` and `grad_x k# = k (y - x)`, in three dimensions."""
    x, y = normals(4, 3, seed=0).requires_grad_(), normals(4, 3, seed=1)
    r = (x - y).norm(dim=1)
    pull = (y - x).detach()
    k, b = kernel.log_k(r).exp(), kernel.b(r.detach())
    found = torch.autograd.grad(k.sum(), x, retain_graph=True)[0]
    assert_close(found, (k / b)[:, None].detach() * pull, rtol=1e-10, atol=0)
    sharp = torch.autograd.grad(kernel.log_sharp(r).exp().sum(), x)[0]
    assert_close(sharp, k[:, None].detach() * pull, rtol=1e-9, atol=0)
    assert_close(kernel(x, y).diagonal(), k)


@every_kernel
def test_far_points_have_finite_logarithms(kernel):
    r = torch.tensor([1e3, 1e4])
    assert kernel.log_k(r).isfinite().all()
    assert kernel.log_sharp(r).isfinite().all()
    assert (kernel.log_sharp(r).diff() < 0).all()


def test_the_incomplete_gamma_function_is_joined_to_its_series():
    kernel = ExponentialPower(bandwidth=1.0)
    r = doubles(499.9999, 500.0001) ** (1 / 1.5)
    value = kernel.log_sharp(r)
    assert value.diff().item() == pytest.approx(-0.0002, rel=0.05)


def test_members_of_two_families_are_one():
    assert_close(Laplace(bandwidth=0.6).log_sharp(R), (0.6 * (R + 0.6)).log() - R / 0.6)
    assert_close(ExponentialPower(bandwidth=0.6, beta=1.0).log_sharp(R), Laplace(bandwidth=0.6).log_sharp(R))
    assert_close(ExponentialPower(bandwidth=0.7 * 2**0.5, beta=2.0).log_sharp(R), Gaussian(bandwidth=0.7).log_sharp(R))
    assert_close(Matern(bandwidth=0.6, order=0).b(R), Laplace(bandwidth=0.6).b(R))
    wide = InverseMultiquadric(bandwidth=0.7 * (2 * 1e7) ** 0.5, power=1e7)  # a Gaussian in the limit
    assert_close(wide.log_k(R), Gaussian(bandwidth=0.7).log_k(R), rtol=1e-4, atol=0)


def test_matched_kernels_have_one_slope_in_the_squared_distance():
    """`sigma^2 = tau rho` for Laplace, and back; at the distance the derivatives of log k in r^2 agree, elsewhere not."""
    laplace = Laplace(bandwidth=0.3)
    gaussian = matched_gaussian(laplace, 4.0)
    assert gaussian.bandwidth**2 == pytest.approx(0.3 * 4.0)
    assert matched_laplace(gaussian, 4.0).bandwidth == pytest.approx(0.3)
    for kernel in KERNELS:
        match = matched_gaussian(kernel, 1.3)
        at = doubles(1.3, 2.6)
        assert_close(match.b(at)[0], kernel.b(at)[0])
        if not isinstance(kernel, Gaussian):
            assert abs(match.b(at)[1] - kernel.b(at)[1]) > 0.01
    with pytest.raises(UserError, match="distance above 0"):
        matched_gaussian(laplace, 0.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gaussian(bandwidth=0.0),
        lambda: Laplace(bandwidth=-1.0),
        lambda: Laplace(bandwidth=math.nan),
        lambda: Laplace(bandwidth=1.0, order=1),
        lambda: Matern(bandwidth=1.0, order=3),
        lambda: InverseMultiquadric(bandwidth=1.0, power=1.0),
        lambda: ExponentialPower(bandwidth=1.0, beta=2.5),
    ],
)
def test_numbers_out_of_range(make):
    with pytest.raises(UserError):
        make()
