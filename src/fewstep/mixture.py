"""Gaussian mixtures: marginals, scores, posteriors, values and tilts in closed form. The ground truth of everything
else.

Prior `sum_k w_k N(m_k, C_k)`, data `y = H x + N(0, Gam)`: `S_k = H C_k H' + Gam`,
`mu_k = m_k + C_k H' S_k^-1 (y - H m_k)`, `V_k = C_k - C_k H' S_k^-1 H C_k`, weights proportional to
`w_k N(y; H m_k, S_k)`. The same three lines serve noising (`H = alpha I`, `Gam = sigma^2 I`), measurement (`H = A`)
and both.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.draws import Source, categorical, normal
from fewstep.errors import UserError
from fewstep.schedule import Schedule, Times


@dataclass(frozen=True)
class GaussianMixture:
    """`sum_k w_k N(m_k, C_k)` or a batch of such mixtures.

    `weights` `(*batch, K)`, non-negative, normalised here; `means` `(*batch, K, d)`; `covariances` `(*batch, K, d, d)`
    or `(K, d, d)`, symmetric and positive semi-definite (definite where a density is asked for). Raises `UserError`
    where the shapes do not fit, a weight is negative, or a covariance is not symmetric or has a negative eigenvalue.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def __post_init__(self) -> None:
        parts = (self.weights, self.means, self.covariances)
        if not all(isinstance(p, Tensor) and p.is_floating_point() for p in parts) or len({p.dtype for p in parts}) > 1:
            raise UserError("weights, means and covariances are floating tensors of one dtype, float64 for choice")
        if self.means.ndim < 2:
            raise UserError(f"means of shape {tuple(self.means.shape)}: give (..., K, d), in one dimension (K, 1)")
        k, d = self.means.shape[-2:]
        if self.weights.shape[-1] != k or self.covariances.shape[-3:] != (k, d, d):
            raise UserError(
                f"a mixture of {k} components in {d} dimensions needs weights (..., {k}) and covariances "
                f"(..., {k}, {d}, {d}), not {tuple(self.weights.shape)} and {tuple(self.covariances.shape)}"
            )
        if (self.weights < 0).any() or not (self.weights.sum(-1) > 0).all():
            raise UserError("the weights of a mixture are non-negative and not all zero")
        if self.covariances.ndim == 3 and not _semi_definite(self.covariances):
            raise UserError("a covariance of the mixture is not symmetric and positive semi-definite")
        object.__setattr__(self, "weights", self.weights / self.weights.sum(-1, keepdim=True))

    @property
    def dim(self) -> int:
        """The number of components d of one item."""
        return self.means.shape[-1]

    @property
    def mean(self) -> Tensor:
        """The mean of the mixture, `(*batch, d)`."""
        return (self.weights[..., None] * self.means).sum(-2)

    @property
    def covariance(self) -> Tensor:
        """The covariance of the mixture, `(*batch, d, d)`."""
        centred = self.means - self.mean[..., None, :]
        spread = self.covariances + centred[..., :, None] * centred[..., None, :]
        return (self.weights[..., None, None] * spread).sum(-3)

    def component_log_probs(self, x: Tensor) -> Tensor:
        """`log w_k + log N(x; m_k, C_k)`, `(..., K)` for `x` `(..., d)`."""
        if x.shape[-1] != self.dim:
            raise UserError(
                f"points of shape {tuple(x.shape)} in a mixture of {self.dim} dimensions: give (..., {self.dim})"
            )
        whiten = torch.linalg.inv(torch.linalg.cholesky(self.covariances))
        white = _apply(whiten, x[..., None, :] - self.means)
        log_det = -2 * whiten.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_normal = -0.5 * (white.square().sum(-1) + log_det + self.dim * math.log(2 * math.pi))
        return self.weights.log() + log_normal

    def log_prob(self, x: Tensor) -> Tensor:
        """`log p(x)`, `(...)` for `x` `(..., d)`."""
        return self.component_log_probs(x).logsumexp(-1)

    def responsibilities(self, x: Tensor) -> Tensor:
        """The probability of each component given `x`, `(..., K)`."""
        return self.component_log_probs(x).softmax(-1)

    def score(self, x: Tensor) -> Tensor:
        """`grad log p(x)`, `(..., d)`."""
        pull = _apply(torch.linalg.inv(self.covariances), self.means - x[..., None, :])
        return (self.responsibilities(x)[..., None] * pull).sum(-2)

    def sample(self, shape: tuple[int, ...] = (), generator: Source = None, noise: Tensor | None = None) -> Tensor:
        """Draws `(*shape, *batch, d)`: a component by its weight, then `m_k + L_k noise` with `L_k L_k' = C_k`.

        The component is drawn from the generator also where the noise is given.
        """
        batch, k, d = self.means.shape[:-2], *self.means.shape[-2:]
        # without batch axes the draws themselves are the items: one generator per draw is then one per item
        items, lead = (batch, shape) if batch else (shape, ())
        n = math.prod(items)
        log_weights = self.weights.log().expand(*batch, k)
        index = categorical(log_weights.reshape(-1, k).expand(n, k), generator, lead)
        if noise is None:
            noise = normal((*lead, n, d), generator, axis=len(lead), like=self.means)
        pick = index.reshape(*shape, *batch)
        mean = torch.take_along_dim(self.means.expand(*shape, *batch, k, d), pick[..., None, None], -2)[..., 0, :]
        roots = _root(self.covariances)
        if roots.ndim == 3:
            root = roots[pick]
        else:
            index = pick[..., None, None, None]
            root = torch.take_along_dim(roots.expand(*shape, *batch, k, d, d), index, -3)[..., 0, :, :]
        return mean + _apply(root, noise.reshape(mean.shape))

    def affine(self, H: Tensor, Gam: Tensor) -> "GaussianMixture":
        """The law of `H x + N(0, Gam)`: `H` `(..., p, d)`, `Gam` `(..., p, p)`."""
        H = H[..., None, :, :]
        means = _apply(H, self.means)
        covariances = H @ self.covariances @ H.mT + Gam[..., None, :, :]
        return GaussianMixture(self.weights.expand(means.shape[:-1]), means, _symmetric(covariances))

    def condition(self, y: Tensor, H: Tensor, Gam: Tensor) -> "GaussianMixture":
        """The law of x given `y = H x + N(0, Gam)`, a batch of mixtures for `y` `(*batch, p)`.

        `Gam` may be singular as long as `H C_k H' + Gam` is not. With `Gam = 0` the observation is noiseless, and the
        posterior is degenerate along the observed directions: it has draws and moments but no density.
        """
        if y.shape[-1] != H.shape[-2]:
            raise UserError(
                f"an observation of shape {tuple(y.shape)} of {H.shape[-2]} numbers: give (..., {H.shape[-2]})"
            )
        predicted = self.affine(H, Gam)
        H = H[..., None, :, :]
        gain = torch.linalg.solve(predicted.covariances, H @ self.covariances).mT  # C H' S^-1
        residual = y[..., None, :] - predicted.means
        means = self.means + _apply(gain, residual)
        # Joseph's form: symmetric and positive definite to rounding
        keep = torch.eye(self.dim, dtype=gain.dtype, device=gain.device) - gain @ H
        covariances = keep @ self.covariances @ keep.mT + gain @ Gam[..., None, :, :] @ gain.mT
        return GaussianMixture(predicted.responsibilities(y), means, _symmetric(covariances))

    def log_evidence(self, y: Tensor, H: Tensor, Gam: Tensor) -> Tensor:
        """`log p(y)` for `y = H x + N(0, Gam)`."""
        return self.affine(H, Gam).log_prob(y)

    def marginal(self, tau: Times, schedule: Schedule) -> "GaussianMixture":
        """The law `q_tau` of `x_tau = alpha x_0 + sigma eps` (eq. 15)."""
        return self.affine(*self._noising(tau, schedule))

    def posterior(self, x_tau: Tensor, tau: Times, schedule: Schedule) -> "GaussianMixture":
        """The law `q(x_0 | x_tau)`, one mixture for each state of the batch `(batch, d)`; tau is one time or one per item."""
        return self.condition(x_tau, *self._noising(tau, schedule))

    def value(self, x_tau: Tensor, tau: Times, schedule: Schedule, y: Tensor, A: Tensor, Gam: Tensor) -> Tensor:
        """`V_tau(x) = log E[N(y; A x_0, Gam) | x_tau = x]`, the log-likelihood of a measurement seen from `x_tau`."""
        return self.posterior(x_tau, tau, schedule).log_evidence(y, A, Gam)

    def tilt(self, b: Tensor) -> tuple["GaussianMixture", Tensor]:
        """The law proportional to `p(x) exp(b . x)`, and the log of its normaliser: `b` `(d,)`."""
        log_gain = self.means @ b + 0.5 * (b @ self.covariances @ b)
        log_weights = self.weights.log() + log_gain
        means = self.means + self.covariances @ b
        return GaussianMixture(log_weights.softmax(-1), means, self.covariances), log_weights.logsumexp(-1)

    def _noising(self, tau: Times, schedule: Schedule) -> tuple[Tensor, Tensor]:
        tau = torch.as_tensor(tau, dtype=self.means.dtype, device=self.means.device)
        eye = torch.eye(self.dim, dtype=self.means.dtype, device=self.means.device)
        alpha, sigma = schedule.alpha(tau)[..., None, None], schedule.sigma(tau)[..., None, None]
        return alpha * eye, sigma**2 * eye


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return torch.einsum("...ij,...j->...i", matrix, vector)


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.mT)


def _semi_definite(matrix: Tensor) -> bool:
    scale = matrix.abs().amax().clamp_min(torch.finfo(matrix.dtype).tiny)
    slack = 1e-6 * scale if matrix.dtype == torch.float32 else 1e-10 * scale
    symmetric = (matrix - matrix.mT).abs().amax() <= slack
    return bool(symmetric and torch.linalg.eigvalsh(matrix).amin() >= -slack)


def _root(covariance: Tensor) -> Tensor:
    """`L` with `L L' = C`: Cholesky's factor, or the symmetric root where C is only semi-definite."""
    factor, info = torch.linalg.cholesky_ex(covariance)
    if not info.any():
        return factor
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()[..., None, :]) @ vectors.mT
