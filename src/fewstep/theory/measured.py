"""The distances that the certificates bound, measured on draws, so that a user sees by how much they exceed the truth.

The W2 of two samples of n items is no unbiased estimate: its square is too large in the mean (W2^2 is convex in the pair
of laws), and between two samples of one law of 2-D items at n = 2000 its root is still .14. So half the squared
distance of each law's sample to another sample of itself is taken off. The result is right for equal laws and for
shifted ones, but too small for laws of different shape (for a point mass, by half the floor of the other law): it is the
number to look at, and `plain` the one to put into a bound.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep import transition
from fewstep.errors import UserError
from fewstep.metrics.frechet import between_gaussians
from fewstep.metrics.optimal_transport import Wasserstein
from fewstep.mixture import GaussianMixture
from fewstep.models.base import PosteriorModel
from fewstep.theory.certificate import Estimate, check_draws
from fewstep.theory.exact_flow import check_mixture


@dataclass(frozen=True, kw_only=True)
class Distance(Estimate):
    """A squared W2 distance: `value` is debiased; `plain`, of the raw distances between samples, is no less than the
    truth in the mean.
    """

    plain: Estimate


def sampled_distance(x: Tensor, y: Tensor, blocks: int = 4) -> Distance:
    """`W2^2` of the laws of two samples `(n, d)` of the same size, cut into `blocks` independent parts, an even number.

    The standard error comes from pairs of parts, `blocks / 2` of them: make it 8 or more where it matters. Exact
    matching: sorted in one dimension, cubic in `n / blocks` else. Raises `UserError` where the sizes do not fit.
    """
    if x.shape != y.shape or x.ndim != 2 or blocks < 4 or blocks % 2 or len(x) < blocks:
        raise UserError(
            f"samples {tuple(x.shape)} and {tuple(y.shape)}, {blocks} blocks: give equal sizes, blocks 4, 6, ..."
        )
    size = len(x) // blocks
    parts = [part[: size * blocks].reshape(blocks, size, -1).double() for part in (x, y)]
    return _debiased(*parts)


@torch.no_grad()
def conditional_distance(
    model: PosteriorModel,
    mixture: GaussianMixture,
    tau: float,
    *,
    flow_steps: int = 1,
    states: int = 32,
    draws: int = 256,
    generator: torch.Generator | None = None,
) -> Distance:
    """`E_{x_tau} W2^2(p_theta(.|x_tau), q(.|x_tau))`, what Corollary 1 bounds, over `states` draws of `x_tau ~ q_tau`.

    For each state two samples of `draws` items from either law. The standard error counts the states' scatter.
    """
    check_mixture(model, mixture, tau)
    check_draws("states", states)
    check_draws("draws", draws)
    time = torch.tensor(tau, dtype=torch.float64)
    x_0 = mixture.sample((states,), generator)
    x_tau = transition.sample(x_0, torch.zeros_like(time), time, model.schedule, generator)
    exact = mixture.posterior(x_tau, time, model.schedule).sample((2 * draws,), generator)
    drawn = model(x_tau.to(model.like), time).sample((2 * draws,), flow_steps=flow_steps, generator=generator)
    parts = (s.double().transpose(0, 1).reshape(2 * states, draws, -1) for s in (drawn, exact))
    return _debiased(*parts)


def gaussian_distance(mean: Tensor, covariance: Tensor, mean_2: Tensor, covariance_2: Tensor) -> float:
    """`||m - m'||^2 + Tr(C + C' - 2 (C^1/2 C' C^1/2)^1/2)`: W2^2 of two Gaussians, and of any two laws with these moments
    at most their W2^2 (Gelbrich 1990): the certificate's other side.
    """  # fmt: skip
    return max(between_gaussians(mean, mean_2, covariance, covariance_2), 0.0)


def _debiased(x: Tensor, y: Tensor) -> Distance:
    """Samples `(2 k, n, d)`: k pairs of independent samples of either law."""
    cross = torch.tensor([_squared(a, b) for a, b in zip(x, y, strict=True)], dtype=torch.float64).reshape(-1, 2)
    selves = [[_squared(a, b) for a, b in zip(s[::2], s[1::2], strict=True)] for s in (x, y)]
    floor = torch.tensor(selves, dtype=torch.float64).mean(0)
    cross = cross.mean(1)
    debiased = Estimate.of(cross - floor)
    return Distance(value=debiased.value, standard_error=debiased.standard_error, plain=Estimate.of(cross))


def _squared(x: Tensor, y: Tensor) -> float:
    if x.shape[1] == 1:
        return (x.sort(0).values - y.sort(0).values).square().mean().item()
    return Wasserstein()(x, y)["w2"] ** 2
