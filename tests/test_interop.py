"""deepinv's two interfaces, in its range [0, 1], against the closed form on T2; with deepinv itself where it is installed."""

from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close

from fewstep.errors import UserError
from fewstep.inverse import AsDenoiser, AsReconstructor, DecoupledSIR, SplitGibbs
from fewstep.mixture import GaussianMixture
from fewstep.models import MixturePosterior
from fewstep.operators import Matrix
from fewstep.recipes import find_recipe
from problems import SCHEDULE, doubles, generator, t2

MODEL = MixturePosterior(t2(), SCHEDULE)
HALVED = GaussianMixture(t2().weights, (t2().means + 1) / 2, t2().covariances / 4)  # the law of x' = (x + 1) / 2
EYE = torch.eye(2, dtype=torch.float64)


@dataclass
class Physics:
    """What deepinv offers, on [0, 1]: a matrix."""

    matrix: torch.Tensor

    def __post_init__(self):
        self.operator = Matrix(item_shape=(2,), matrix=self.matrix)

    def A(self, x):
        return self.operator.A(x)

    def A_adjoint(self, y):
        return self.operator.A_adjoint(y)

    def A_dagger(self, y):
        return self.operator.A_dagger(y)

    def prox_l2(self, z, y, gamma):
        return self.operator.prox_l2(z, y, gamma)


@dataclass
class Forward:
    """A physics of which only A is known."""

    physics: Physics

    def A(self, x):
        return self.physics.A(x)


@pytest.mark.parametrize("sigma", [0.05, 0.4])
def test_the_denoiser_is_the_posterior_mean(sigma):
    """In closed form; a denoiser that forgets the factor 2 of the range is another."""
    x = HALVED.sample((6,), generator(0)) + sigma * torch.randn(6, 2, generator=generator(1), dtype=torch.float64)
    truth = HALVED.condition(x, EYE.expand(6, 2, 2), sigma**2 * EYE).mean
    assert_close(AsDenoiser(MODEL)(x, sigma), truth, rtol=1e-6, atol=1e-6)
    assert_close(AsDenoiser(MODEL)(x, torch.full((6,), sigma)), truth, rtol=1e-6, atol=1e-6)
    assert (AsDenoiser(MODEL)(x, sigma / 2) - truth).abs().max() > 1e-3
    drawn = AsDenoiser(MODEL, draws=3000)(x, sigma)
    assert (drawn - truth).abs().max() < 0.05
    assert torch.equal(AsDenoiser(MODEL, draws=4)(x, sigma)[:2], AsDenoiser(MODEL, draws=4)(x[:2], sigma))


def test_noise_out_of_range_is_told():
    x = torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(UserError, match="above 0"):
        AsDenoiser(MODEL)(x, 0.0)
    with pytest.raises(UserError, match="the diffusion ends at"):
        AsDenoiser(MODEL)(x, 1e4)


@pytest.mark.filterwarnings("ignore::fewstep.inverse.DegeneracyWarning")
@pytest.mark.parametrize("linear", [True, False], ids=["linear", "A alone"])
def test_the_reconstructor_has_the_posterior(linear):
    """y on [0, 1]: mean and variance of the samples are those of `p(x' | y)`; with twice the noise they are others."""
    matrix, sigma = doubles(1.0, 0.5)[None], 0.2
    physics = Physics(matrix) if linear else Forward(Physics(matrix))
    y = doubles(0.9, 0.4)[:, None]
    truth = HALVED.condition(y, matrix.expand(2, 1, 2), sigma**2 * torch.eye(1).double())
    made = AsReconstructor(MODEL, lambda noise: DecoupledSIR(noise=noise, draws=64), sigma, num_samples=1000)
    assert (made(y, physics) - truth.mean).abs().max() < 0.06
    samples = (made.samples(y, physics).x + 1) / 2
    variance = truth.covariance.diagonal(dim1=-2, dim2=-1)
    assert ((samples.var(0) / variance) - 1).abs().max() < 0.25
    wrong = AsReconstructor(MODEL, lambda noise: DecoupledSIR(noise=noise, draws=64), 3 * sigma, num_samples=1000)
    assert (wrong(y, physics) - truth.mean).abs().max() > 0.06


def test_with_deepinv():
    """Its physics in the reconstructor, our denoiser called as its own are."""
    deepinv = pytest.importorskip("deepinv", exc_type=ImportError)
    physics = deepinv.physics.Inpainting((1, 8, 8), mask=0.5)
    with torch.no_grad():
        model = find_recipe("digits-stmd").model.build((1, 8, 8)).eval()
    y = physics(torch.rand(2, 1, 8, 8, generator=generator(0)))
    made = AsReconstructor(model, lambda noise: SplitGibbs(noise=noise, anneal=2, steps=2), 0.1, num_samples=2)
    assert made(y, physics).shape == (2, 1, 8, 8)
    assert AsDenoiser(model)(y, 0.1).shape == y.shape
