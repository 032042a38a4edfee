"""The score view of drifting: decompositions to rounding, populations against sampling, and what high dimension does."""

import math

import pytest
import torch
from torch.testing import assert_close

from fewstep.errors import UserError
from fewstep.kernels import ExponentialPower, Gaussian, InverseMultiquadric, Laplace, Matern
from fewstep.mixture import GaussianMixture
from fewstep.score_view import alignment, decompose, decompose_population, decompose_sharp
from fewstep.shapes import distances
from problems import doubles, generator, normals, t2

KERNELS = [
    Gaussian(bandwidth=0.9),
    Laplace(bandwidth=0.6),
    Matern(bandwidth=0.8),
    InverseMultiquadric(bandwidth=0.9),
    ExponentialPower(bandwidth=1.1),
]
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: type(k).__name__)


def clusters(d):
    """Two clusters of unequal spread."""
    return torch.cat([normals(20, d, seed=1) + 1, 0.3 * normals(20, d, seed=2) - 1])


def gradient(function, x):
    at = x.clone().requires_grad_()
    return torch.autograd.grad(function(at).sum(), at)[0]


@every_kernel
@pytest.mark.parametrize("d", [2, 16])
def test_both_decompositions_are_exact(kernel, d):
    """To 1e-10: the scores are gradients of log densities, the parts make the mean shift; sharp, nothing is left over."""
    x, y = normals(6, d, seed=0), clusters(d)
    own, sharp = decompose(kernel, x, y), decompose_sharp(kernel, x, y)
    w = kernel.log_k(distances(x, y)).softmax(1)
    assert_close(own.shift, w @ y - x, atol=1e-10, rtol=0)
    assert_close(own.score, gradient(lambda z: kernel.log_k(distances(z, y)).logsumexp(1), x), atol=1e-10, rtol=0)
    assert_close(sharp.score, gradient(lambda z: kernel.log_sharp(distances(z, y)).logsumexp(1), x), atol=1e-10, rtol=0)
    assert_close(sharp.delta, torch.zeros_like(x), atol=1e-10, rtol=0)
    b = kernel.b(distances(x, y))
    pull = (y - x[:, None]) / b[..., None]
    covariance = ((w * (b - own.alpha[:, None]))[..., None] * pull).sum(1)
    assert_close(own.delta, covariance, atol=1e-10, rtol=0)
    assert (own.delta.norm(dim=1).max() > 1e-3) == (not isinstance(kernel, Gaussian))
    assert_close((own.delta_across * own.score).sum(1), torch.zeros(6).double(), atol=1e-10, rtol=0)


def test_a_laplace_companion_is_a_shorter_step_away():
    """`alpha# = alpha + tau^2`."""
    x, y, kernel = normals(6, 3, seed=0), clusters(3), Laplace(bandwidth=0.6)
    assert_close(decompose_sharp(kernel, x, y).alpha, decompose(kernel, x, y).alpha + 0.36)


@pytest.mark.parametrize("d", [1, 2, 8, 64])
def test_populations_under_a_gaussian_kernel(d):
    """Theorem 1 for mixtures: the mean of the tilted law, by its own closed form, is `h^2` times the score, to 1e-10."""
    law = mixture(d, seed=0)
    x, h = normals(5, d, seed=3), 0.8
    found = decompose_population(Gaussian(bandwidth=h), x, law)
    tilted = law.condition(x, torch.eye(d).double(), h**2 * torch.eye(d).double())  # y given x = y + h n
    assert_close(found.shift, tilted.mean - x, atol=1e-10, rtol=0)
    assert_close(found.delta, torch.zeros_like(x), atol=1e-12, rtol=0)


def mixture(d, seed, std=0.5, radius=3.0):
    """Six centres of norm 3 in random directions."""
    centres = torch.nn.functional.normalize(normals(6, d, seed=seed), dim=1) * radius
    return GaussianMixture(torch.ones(6).double(), centres, std**2 * torch.eye(d).double().expand(6, d, d))


def test_populations_under_a_laplace_kernel_are_the_limit_of_clouds():
    """T2, 400 000 draws; and on the line by quadrature to 1e-9."""
    kernel, x = Laplace(bandwidth=0.4), doubles(0.4, -0.7, 1.5, 0.2).reshape(2, 2)
    exact = decompose_population(kernel, x, t2())
    cloud = decompose(kernel, x, t2().sample((400_000,), generator(0)))
    assert_close(cloud.shift, exact.shift, atol=0.01, rtol=0)
    assert_close(cloud.score, exact.score, atol=0.02, rtol=0)
    assert_close(cloud.alpha, exact.alpha, atol=0.004, rtol=0)
    assert (decompose_population(Laplace(bandwidth=0.5), x, t2()).shift - exact.shift).abs().max() > 0.03
    line = GaussianMixture(doubles(0.3, 0.7), doubles(-1.0, 0.8)[:, None], doubles(0.2, 0.5)[:, None, None])
    y = torch.linspace(-9, 9, 400_001, dtype=torch.float64)[:, None]
    at = doubles(0.25)[:, None]
    weight = (line.log_prob(y) + kernel.log_k(distances(at, y)[0])).softmax(0)
    found = decompose_population(kernel, at, line)
    assert found.shift.item() == pytest.approx((weight @ y).item() - 0.25, abs=1e-8)
    assert found.alpha.item() == pytest.approx(0.4 * (weight @ (y[:, 0] - 0.25).abs()).item(), abs=1e-8)
    with pytest.raises(UserError, match="not Matern"):
        decompose_population(Matern(bandwidth=0.4), at, line)


def population(d, seed, sigma=(0.5, 0.5), n=40):
    """Drift and scores of two random-centre mixtures under a Laplace kernel of .2 rho, at draws of q."""
    p, q = mixture(d, 2 * seed, sigma[0]), mixture(d, 2 * seed + 1, sigma[1])
    x = q.sample((n,), generator(seed))
    rho = (p.covariance.trace() + q.covariance.trace() + (p.mean - q.mean).square().sum()).sqrt().item()
    kernel = Laplace(bandwidth=0.2 * rho)
    parts = decompose_population(kernel, x, p), decompose_population(kernel, x, q)
    return alignment(*parts, tau_rho=0.2 * rho**2)


def test_in_many_dimensions_a_laplace_drift_is_a_score_difference():
    """Random centres, D = 256: cosine .997 and `C* / C_alpha` 1.00 within 2 %; D = 16 is far from that."""
    found = [population(256, seed) for seed in range(3)]
    assert sum(f["cosine"] for f in found) / 3 == pytest.approx(0.9971, rel=0.02)
    assert sum(f["c_star"] / f["c_alpha"] for f in found) / 3 == pytest.approx(1.001, rel=0.02)
    assert max(f["relative"] for f in found) < 0.02
    few = population(16, 0)
    assert few["relative"] > 0.05
    assert few["cosine"] < 0.97


def test_an_alignment_is_of_the_same_points():
    x, y = normals(5, 3, seed=0), normals(6, 3, seed=1)
    kernel = Gaussian(bandwidth=1.0)
    for others in (y, x[:1], x[:, :1]):
        with pytest.raises(UserError, match="at the same points x"):
            alignment(decompose(kernel, x, y), decompose(kernel, others, others))


def test_unequal_radii_break_the_alignment():
    """sigma .5 and .8, D = 256: cosine .66, `alpha_p / alpha_q` .85: the theorem needs equal radii."""
    found = population(256, 0, (0.5, 0.8))
    assert found["cosine"] < 0.8
    assert found["alpha_ratio"] == pytest.approx(0.85, abs=0.03)
    assert found["relative"] > 1


def test_the_alignment_of_a_thing_with_itself():
    x, y, z = normals(6, 3, seed=0), clusters(3), clusters(3) + 0.4
    kernel = Gaussian(bandwidth=0.7)
    found = alignment(decompose(kernel, x, y), decompose(kernel, x, z))
    assert found["cosine"] == pytest.approx(1)
    assert found["c_star"] == pytest.approx(0.49)
    assert found["c_alpha"] == pytest.approx(0.49)
    assert found["relative"] < 1e-20
    assert math.isfinite(found["gap_share"])


def test_a_point_of_the_cloud_itself_and_a_cloud_far_from_the_origin():
    """The direction to itself is none; and moving everything changes nothing, in single precision too."""
    y = clusters(3)
    found = decompose(Laplace(bandwidth=0.7), y[:4], y)
    assert found.score.isfinite().all()
    away = y[None] - y[:4, None]
    r = away.norm(dim=2, keepdim=True)
    w = (-r[..., 0] / 0.7).softmax(1)[..., None]
    assert_close(found.score, (w * torch.where(r > 0, away / r, 0.0)).sum(1) / 0.7, atol=1e-10, rtol=0)
    x = normals(3, 64, seed=0, dtype=torch.float32)
    cloud = normals(40, 64, seed=1, dtype=torch.float32)
    here, there = (decompose(Laplace(bandwidth=3.0), x + c, cloud + c) for c in (0.0, 1000.0))
    assert_close(there.shift, here.shift, atol=2e-3, rtol=0)


def test_a_point_of_a_population_does_not_see_the_others():
    """Each has scales of its own: one far away changes nothing for those near."""
    p = mixture(64, 0)
    x = p.sample((3,), generator(0))
    far = torch.cat([x, x[:1] + 1e4])
    alone, together = (decompose_population(Laplace(bandwidth=1.6), z, p) for z in (x, far))
    for name in ("shift", "score", "alpha"):
        assert_close(getattr(together, name)[:3], getattr(alone, name), rtol=1e-9, atol=1e-12)
    towards = torch.cosine_similarity(together.shift[3], p.mean - far[3], dim=0)
    assert towards > 0.999
