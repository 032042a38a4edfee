"""The exact flow from noise to a Gaussian mixture: its law at the clean end, its velocity, and its map from 1 to 0.

A flow transports `w`: the data itself, or the data as the model's scaling sees it, `x_0 = offset + scale w`. Along
`z_t = (1 - t) w + t eps` the marginal velocity is `v(z, t) = E[eps - w | z_t = z] = (z - E[w | z_t = z]) / t`, which is
0/0 at t = 0. Component by component nothing cancels: given component k, `(eps - w, z_t)` is jointly Gaussian, and
`v_k(z, t) = -m_k + (t I - (1 - t) C_k) S_k^-1 (z - (1 - t) m_k)` with `S_k = (1 - t)^2 C_k + t^2 I`, so that
`v = sum_k P(k | z) v_k`; `v(z, 0) = -z` and `v(z, 1) = z - E[w]`.

With `(x_tau, tau)` held the law of w is the posterior of the mixture, again a mixture, one for each item; the same
formula gives `v(z, t | x_tau)`.
"""

from itertools import pairwise

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.mixture import GaussianMixture
from fewstep.models.base import Model
from fewstep.models.mean_flow import MeanFlow
from fewstep.models.posterior_flow import PosteriorFlow


def posterior_law(
    model: PosteriorFlow, mixture: GaussianMixture, x_tau: Tensor, tau: Tensor
) -> tuple[GaussianMixture, Tensor]:
    """The law of w given `x_tau` `(batch, d)`, one mixture per item, and the scale `()` of w in `x_0`; tau is one time `()`."""
    law = mixture.posterior(x_tau, tau, model.schedule)
    offset, scales = model.coefficients(x_tau, tau.expand(x_tau.shape[0]))
    scale = scales.flatten()[0]
    return _rescaled(law, offset[:, None, :], scale), scale


def data_law(model: MeanFlow, mixture: GaussianMixture) -> tuple[GaussianMixture, Tensor]:
    """The law of w, where a Mean Flow ends, and the scale of w in `x_0`."""
    one = torch.ones((), dtype=mixture.means.dtype)
    if not model.standardise:
        return mixture, one
    scale = model.data_std.to(one)
    return _rescaled(mixture, model.data_mean.to(mixture.means), scale), scale


def velocity(law: GaussianMixture, z: Tensor, t: Tensor) -> Tensor:
    """`v(z, t)` of the flow to `law`, one mixture for all items or one per item: `z` `(batch, d)`, `t` `(batch,)` in [0, 1].

    At t = 0 the covariances must not be singular.
    """
    values, Q = torch.linalg.eigh(law.covariances)  # C_k = Q diag(values) Q', and S_k has the same axes
    t = t[:, None, None]
    S = (1 - t) ** 2 * values + t**2
    residual = torch.einsum("...ji,...j->...i", Q, z[:, None, :] - (1 - t) * law.means)
    log_share = law.weights.log() - 0.5 * (residual.square() / S + S.log()).sum(-1)
    v_k = torch.einsum("...ij,...j->...i", Q, (t - (1 - t) * values) / S * residual) - law.means
    return (log_share.softmax(-1)[..., None] * v_k).sum(-2)


def exact_flow_map(law: GaussianMixture, z: Tensor, steps: int = 64) -> Tensor:
    """`z_0` from `z_1 = z`: the exact flow by the classical Runge-Kutta method at `t = (i / steps)^2`, error O(steps^-4)."""
    times = torch.linspace(1, 0, steps + 1, dtype=z.dtype, device=z.device) ** 2

    def v(z: Tensor, t: Tensor) -> Tensor:
        return velocity(law, z, t.expand(z.shape[0]))

    for t, r in pairwise(times):
        h = r - t
        k_1 = v(z, t)
        k_2 = v(z + h / 2 * k_1, t + h / 2)
        k_3 = v(z + h / 2 * k_2, t + h / 2)
        k_4 = v(z + h * k_3, r)
        z = z + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)
    return z


def check_mixture(model: Model, mixture: GaussianMixture, tau: float | None = None) -> None:
    """`UserError` where items and mixture do not fit, either is not on the CPU, or tau is no noisy time."""
    if model.item_shape != (mixture.dim,) or mixture.means.ndim != 2:
        raise UserError(
            f"a model of items {model.item_shape} and a mixture with means {tuple(mixture.means.shape)}: give one "
            f"mixture (K, d) of the model's dimension, the law of the data it was trained on"
        )
    if {model.like.device.type, mixture.means.device.type} != {"cpu"}:
        raise UserError("certificates on a mixture are computed on the CPU: move the model there with model.cpu()")
    if tau is not None and not 0 < tau <= 1:
        raise UserError(f"tau is above 0 (data) and at most 1 (noise), not {tau}")


def _rescaled(law: GaussianMixture, offset: Tensor, scale: Tensor) -> GaussianMixture:
    """The law of `(x - offset) / scale`."""
    return GaussianMixture(law.weights, (law.means - offset) / scale, law.covariances / scale**2)
